"""The digest that every artifact is stored under: of all that it depends on."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mergelib.core.devices import find_device
from mergelib.core.errors import MergelibError
from mergelib.core.store import digest, file_digest
from mergelib.merging.registry import METHODS, preset
from mergelib.metrics.registry import METRICS
from mergelib.models.backbones import GLYPH_VIT, WEIGHTS, pixels_of
from mergelib.models.rules import RULES
from mergelib.pipeline.params import Run
from mergelib.pipeline.sources import code_behind, code_of
from mergelib.tasks import TASKS
from mergelib.tasks.given import content

UNITS = "mergelib.pipeline.units"  # one module a station
JSON = ("merged", "gradients")  # stations whose artifacts are numbers


def key(run: Run, station: str, *names: str) -> str:
    """The digest that an artifact of a station is stored under.

    base: the encoder; data (task); heads (task), of images; tuned (task): checkpoint and
    accuracies; summary (task): what the metrics need of one model; factors (task): what its merges
    share; merged (task, task, method): the merge's accuracies; gradients (task, task): the
    published gradient metrics.
    """
    of_station: dict[str, Callable[..., list]] = {
        "base": _base,
        "data": _data,
        "heads": _heads,
        "tuned": _tuned,
        "summary": _summary,
        "gradients": _gradients,
        "factors": _factors,
        "merged": _merged,
    }
    code = code_behind(f"{UNITS}.{station}")
    return digest(station, code, of_station[station](run, *names))[:24]


def path(store: Path, run: Run, station: str, *names: str) -> Path:
    """Where an artifact is stored."""
    suffix = "json" if station in JSON else "safetensors"
    label = "-".join([*names, key(run, station, *names)])
    return Path(store) / station / f"{label}.{suffix}"


# --- what the artifacts depend on beside the code of their units ----------------------------


def _base(run: Run) -> list:
    return [weights_digest(run.backbone, run.weights), run.image_size]


def _data(run: Run, task: str) -> list:
    if task in run.given:
        return [task, content_of(run, task), pixels(run)]
    make = TASKS[task].make
    parts = [task, asdict(run.sizes), run.seed, code_of(make)]
    if make.__module__.startswith("mergelib.tasks."):
        parts.append(_pixels())
    return parts


def _heads(run: Run, task: str) -> list:
    classes = len(run.row(task).class_names)
    parts = [key(run, "base"), key(run, "data", task), run.head, run.head_split, classes]
    return [*parts, _numerics(run), version("scikit-learn")]


def _head(run: Run, task: str) -> list:
    """Of the head of a task: what is stored, or the words of a task that is given."""
    if run.head != "zero_shot":
        return [key(run, "heads", task)]
    row = run.row(task)
    return [row.class_names, row.templates] if task in run.given else []


def _tuned(run: Run, task: str) -> list:
    recipe = asdict(run.finetune)
    del recipe["save_every"]  # whatever was kept on the way, the weights are the same bits
    parts = [key(run, "base"), key(run, "data", task), recipe, _numerics(run)]
    parts += _head(run, task)
    if run.finetune.rule:
        parts.append(code_of(RULES[run.finetune.rule].function))
    return parts


def _summary(run: Run, task: str) -> list:
    pool = [key(run, "data", each) for each in run.tasks]
    parts = [key(run, "tuned", task), pool, run.pool_per_task, _numerics(run)]
    parts += [_head(run, each) for each in run.tasks]
    return [*parts, run.edition, needs(run, "cross_task")]


def _gradients(run: Run, first: str, second: str) -> list:
    pair = (first, second)
    tuned = [key(run, "tuned", task) for task in pair]
    return [tuned, places(run, *pair), run.seed, run.pool_per_task, _numerics(run)]


def _factors(run: Run, task: str) -> list:
    return [key(run, "tuned", task), _numerics(run)]


def _merged(run: Run, first: str, second: str, method: str) -> list:
    pair, row = (first, second), METHODS[method]
    parts: list[Any] = [[key(run, "tuned", task) for task in pair], method]
    parts.append(method_params(run, method))
    parts += [run.seed, _numerics(run), run.compile, code_of(row.function)]
    if row.survey is not None:
        parts.append(code_of(row.survey))
    if row.factored:
        parts.append([key(run, "factors", task) for task in pair])
    return parts


@lru_cache
def _pixels() -> str:
    from mergelib.tasks.glyphs import pixels_digest  # of an extra, which other tasks do without

    return pixels_digest()


@lru_cache  # reading a package's metadata takes milliseconds, and every key asks
def _versions() -> list[str]:
    return [version(package) for package in ("torch", "open-clip-torch")]


def _numerics(run: Run) -> list:
    return [device(run), run.bfloat16, *_versions()]


# --- what of a run the units ask for too ----------------------------------------------------


@lru_cache
def weights_digest(backbone: str, weights: str) -> str:
    """Digest of a backbone's weights: of its files, or of the tag that open_clip resolves.

    Raises MergelibError for a missing file.
    """
    file = Path(weights) if weights else WEIGHTS / f"{GLYPH_VIT}.safetensors"
    if file.is_dir():
        return digest(backbone, [file_digest(f) for f in sorted(file.iterdir()) if f.is_file()])
    if backbone != GLYPH_VIT and not file.is_file():
        return digest(backbone, weights)
    if not file.is_file():
        raise MergelibError(f"weights file {file} is missing: check `weights` in the parameters")
    return digest(backbone, file_digest(file))


def content_of(run: Run, task: str) -> str:
    """Digest of a given task's images and labels. Raises MergelibError where they are not there."""
    return content(run.given[task], asdict(run.sizes), run.seed)


def pinned(run: Run) -> Run:
    """The same with the digests of given tasks' images, which every process would find anew."""
    given = {n: replace(each, pinned=content_of(run, n)) for n, each in run.given.items()}
    return replace(run, given=given)


def pixels(run: Run) -> int:
    """Pixels a side of the images that the run's encoder takes."""
    return run.image_size or pixels_of(run.backbone)


def device(run: Run) -> str:
    """The device that a run computes on. Raises MergelibError as `find_device` does."""
    return find_device(run.device)


def needs(run: Run, category: str) -> bool:
    """Whether the run names a metric of an extra category."""
    return any(METRICS[name].category == category for name in run.metrics)


def places(run: Run, *tasks: str) -> list[int]:
    """Where tasks stand in the run's list."""
    return [run.tasks.index(task) for task in tasks]


def method_params(run: Run, method: str) -> dict[str, Any]:
    """The parameters of a method: those of the run's edition, then the run's own."""
    return {**preset(method, run.edition), **(run.methods[method] or {})}
