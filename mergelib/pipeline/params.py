"""Run parameters: a YAML file read into typed records, every mistake named."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from reprlib import repr as brief
from typing import Any, get_args, get_origin, get_type_hints

from mergelib.core.devices import DEVICES
from mergelib.core.errors import MergelibError
from mergelib.core.registry import unknown
from mergelib.core.yaml_files import parse_yaml, read_yaml
from mergelib.merging.registry import METHODS
from mergelib.metrics.registry import EDITIONS, METRICS
from mergelib.models.backbones import GLYPH_VIT
from mergelib.models.heads import HEADS
from mergelib.models.image_encoders import TIMM
from mergelib.models.recipe import Recipe, complaints
from mergelib.models.rules import RULES
from mergelib.tasks import TASKS
from mergelib.tasks.given import Given, look_again, read_given, row, under
from mergelib.tasks.registry import Asked

MOST_IMAGES = 10**6  # of a task's split, which is held in memory
RENAMED = {"mode": "edition", "regularizer": "rule"}  # parameters of older files


@dataclass(frozen=True)
class Sizes:
    """Images per task and split."""

    train: int = 800
    calibration: int = 100
    test: int = 300


@dataclass(frozen=True)
class Run:
    """One run of the pipeline: what is fine-tuned, measured, merged and evaluated.

    `tasks` are names; `given` are those of them that the parameter file gives as mappings.
    """

    name: str
    tasks: list[str]
    methods: dict[str, Any]
    backbone: str = GLYPH_VIT
    weights: str = ""
    image_size: int = 0  # pixels a side that the backbone takes; 0: its own
    head: str = "zero_shot"  # or of images: prototypes, probe
    head_split: str = "train"  # what heads made of images are made of
    metrics: list[str] = field(default_factory=list)  # empty: all
    edition: str = "corrected"
    sizes: Sizes = field(default_factory=Sizes)
    pool_per_task: int = 10
    finetune: Recipe = field(default_factory=Recipe)
    seed: int = 0
    device: str = "auto"
    bfloat16: bool = False
    compile: bool = False  # the encoder that evaluates, by torch.compile
    given: dict[str, Given] = field(default_factory=dict)

    def row(self, task: str) -> Asked:
        """What a task asks, be it given or registered. Raises MergelibError for another name."""
        return row(self.given[task]) if task in self.given else TASKS[task]

    @classmethod
    def prepared(cls, raw: Mapping[str, Any], where: str) -> dict[str, Any]:
        """What a parameter file holds, with the tasks that are mappings taken out of the list."""
        if "given" in raw:
            raise MergelibError(f"{where}: tasks of your own stand in `tasks`: move them there")
        tasks = raw.get("tasks")
        if not isinstance(tasks, list):
            return dict(raw)
        given = [
            read_given(task, f"{where}: tasks[{i}]")
            for i, task in enumerate(tasks)
            if isinstance(task, Mapping)
        ]
        names = [task.get("name") if isinstance(task, Mapping) else task for task in tasks]
        return {**raw, "tasks": names, "given": {each.name: each for each in given}}

    def under(self, folder: Path) -> "Run":
        """The same with the paths of tasks, and weights that are there, seen from a folder."""
        given = {name: under(each, folder) for name, each in self.given.items()}
        beside = folder / self.weights
        found = str(beside) if self.weights and beside.exists() else self.weights
        return replace(self, given=given, weights=found)

    @property
    def gradients_of_pairs(self) -> bool:
        """Whether the gradient metrics are those of pairs, as published."""
        return self.edition == "paper"


def load(path: Path) -> Run:
    """Read and check a parameter file, whose folder its relative paths are seen from.

    Raises MergelibError naming the file and the first key that is unknown, missing, of the wrong
    type, or out of range, and names of tasks, methods and metrics that are not registered.
    """
    look_again()
    held, folder = read_yaml(path), Path(path).parent
    if isinstance(held.get("tasks"), str):  # a file that several share
        held["tasks"] = read_yaml(folder / held["tasks"]).get("tasks")
    run = typed(Run, held, str(path)).under(folder)
    check(run, str(path))
    return run


def with_recipe(run: Run, changes: Sequence[str], where: str) -> Run:
    """A run whose recipe differs by KEY=VALUE each, the value read as YAML.

    Raises MergelibError as `load` does.
    """
    given = asdict(run.finetune)
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise MergelibError(f"--set {change} is no KEY=VALUE: give one, steps=200 for example")
        given[key] = parse_yaml(text, f"--set {change}")
    changed = replace(run, finetune=typed(Recipe, given, f"{where}: finetune"))
    check(changed, where)
    return changed


def typed(kind: type, raw: Any, where: str) -> Any:
    """A dataclass from a mapping, every value of its annotated type (an int may be a float)."""
    if not isinstance(raw, Mapping):
        raise MergelibError(f"{where}: wants keys and values, got {type(raw).__name__}")
    if hasattr(kind, "prepared"):
        raw = kind.prepared(raw, where)
    hints = get_type_hints(kind)
    for key in raw:
        if key in RENAMED and RENAMED[key] in hints:
            raise MergelibError(
                f"{where}: parameter {key!r} is called {RENAMED[key]!r}: rename it, its value stays"
            )
        if key not in hints:
            raise MergelibError(f"{where}: {unknown('parameter', key, hints)}")
    values = {}
    for each in fields(kind):
        if each.name in raw:
            values[each.name] = _value(hints[each.name], raw[each.name], f"{where}: {each.name}")
        elif each.default is MISSING and each.default_factory is MISSING:
            raise MergelibError(f"{where}: parameter {each.name!r} is missing: add it")
    return kind(**values)


def _value(kind: Any, value: Any, where: str) -> Any:
    if isinstance(kind, type) and is_dataclass(kind):
        return typed(kind, value, where)
    if type(None) in get_args(kind):
        if value is None:
            return None
        kind = get_args(kind)[0]
    wanted = get_origin(kind) or kind
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        hint = " (YAML wants 3.0e-4, not 3e-4)" if wanted is float else ""
        raise MergelibError(
            f"{where} must be {wanted.__name__}, not {brief(value)} ({type(value).__name__}){hint}"
        )
    inside = get_args(kind)
    if wanted is list and inside:
        return [_value(inside[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    return value


def check(run: Run, where: str) -> None:
    """Raise MergelibError, beginning with `where`, for what does not hold of a run's values."""
    try:
        _check_names(run)
    except MergelibError as error:
        raise MergelibError(f"{where}: {error}") from None
    for complaint, holds in _rules(run).items():
        if not holds:
            raise MergelibError(f"{where}: {complaint}")


def _check_names(run: Run) -> None:
    """Every name is registered and every method accepts its parameters."""
    for name in run.tasks:
        if name not in run.given:
            TASKS[name]
    for name, params in run.methods.items():
        if not isinstance(params or {}, Mapping):
            raise MergelibError(
                f"methods: {name} wants a mapping of parameters, not {brief(params)}"
            )
        METHODS[name].check(params or {})
    for name in run.metrics:
        METRICS[name]
    if run.finetune.rule:
        RULES[run.finetune.rule]


def _rules(run: Run) -> dict[str, bool]:
    """What must hold of the values, by the complaint where it does not."""
    recipe, sizes = run.finetune, run.sizes
    return {
        "finetune.strength wants finetune.rule and must be 0 or more": (
            (recipe.strength or 0) >= 0 and (bool(recipe.rule) or not recipe.strength)
        ),
        f"backbone {run.backbone} wants weights: a file, or a tag of open_clip such as openai": (
            bool(run.weights) or run.backbone == GLYPH_VIT
        ),
        "name must be one of a folder, without /": (
            Path(run.name).name == run.name and run.name not in ("", "..")
        ),
        "tasks needs at least two names": len(run.tasks) >= 2,
        "tasks names a task twice": len(set(run.tasks)) == len(run.tasks),
        "methods needs at least one name": bool(run.methods),
        f"edition must be one of {EDITIONS}": run.edition in EDITIONS,
        f"head must be one of {HEADS}": run.head in HEADS,
        "head_split must be train or calibration": run.head_split in ("train", "calibration"),
        "head zero_shot wants a text tower, which the backbone lacks: give prototypes or probe": (
            run.head != "zero_shot" or not run.backbone.startswith(TIMM)
        ),
        f"image_size must be 0 or more, and 0 or 32 of {GLYPH_VIT}": (
            run.image_size in (0, 32) or (run.image_size > 0 and run.backbone != GLYPH_VIT)
        ),
        f"device must be one of {DEVICES}": run.device in DEVICES,
        f"sizes must be between 1 and {MOST_IMAGES}": (
            all(1 <= n <= MOST_IMAGES for n in (sizes.train, sizes.calibration, sizes.test))
        ),
        "pool_per_task must be between 1 and sizes.calibration": (
            1 <= run.pool_per_task <= sizes.calibration
        ),
        **complaints(recipe),
    }
