"""From parameters to tables: tasks, fine-tuning, summaries, merges; every unit kept by its key.

A unit of work is a function of the store's folder, the run's parameters and names; what it makes
is stored under a digest of everything that it depends on, so a run that was interrupted goes on
where it stopped and an unchanged one is read back.
"""

import contextlib
import fcntl
import importlib
import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from tqdm import tqdm

from mergelib import tasks as sources
from mergelib.backbones import GLYPH_VIT, WEIGHTS, Backbone, load, load_state
from mergelib.checkpoints import TEXT_MATRICES
from mergelib.devices import find_device
from mergelib.errors import MergelibError
from mergelib.evaluate import accuracy
from mergelib.finetune import finetune
from mergelib.heads import zero_shot_head
from mergelib.merging import METHODS, merge, preset
from mergelib.merging.base_protecting import weights_of_knowledge
from mergelib.merging.kept import keep_factors
from mergelib.metrics import (
    EXTRA,
    METRICS,
    cross_accuracies,
    find,
    ingredients,
    mean_activation,
    pairwise,
    pool_gradients,
    summarize,
)
from mergelib.metrics.published_gradients import calibration, heads_of_pair, of_model, of_pair
from mergelib.params import Run
from mergelib.store import (
    digest,
    file_digest,
    load_tensors,
    read_json,
    save_tensors,
    write_json,
    write_table,
)
from mergelib.tasks import SPLITS, TASKS, Split
from mergelib.vectors import Source

# --- what a unit depends on -----------------------------------------------------------------


@lru_cache
def _source(*modules: str) -> str:
    """Digest of the source of modules, so that a changed formula is never answered from before."""
    loaded = [importlib.import_module(f"mergelib.{module}") for module in modules]
    return digest([inspect.getsource(module) for module in loaded])


@lru_cache
def _sources() -> str:
    return sources.pixels_digest()


@lru_cache
def _weights_digest(backbone: str, weights: str) -> str:
    path = Path(weights) if weights else WEIGHTS / f"{GLYPH_VIT}.safetensors"
    if path.is_dir():
        return digest(backbone, [file_digest(f) for f in sorted(path.iterdir()) if f.is_file()])
    if backbone != GLYPH_VIT and not path.is_file():
        return digest(backbone, weights)  # a tag that open_clip resolves
    if not path.is_file():
        raise MergelibError(f"weights file {path} is missing: check `weights` in the parameters")
    return digest(backbone, file_digest(path))


def device(run: Run) -> str:
    """The device that a run computes on. Raises MergelibError as `find_device` does."""
    return find_device(run.device)


@lru_cache  # reading a package's metadata takes milliseconds, and every key asks
def _versions() -> list[str]:
    return [version(package) for package in ("torch", "open-clip-torch")]


def _numerics(run: Run) -> list:
    return [device(run), run.bfloat16, *_versions()]


def _needs(run: Run, category: str) -> bool:
    """Whether the run names a metric of an extra category."""
    return any(find(name).category == category for name in run.metrics)


def _places(run: Run, *tasks: str) -> list[int]:
    return [run.tasks.index(task) for task in tasks]


def key(run: Run, station: str, *names: str) -> str:
    """The digest that an artifact of a station is stored under.

    base: the encoder; data (task); tuned (task): checkpoint and accuracies; summary (task): what
    the metrics need of one model; factors (task): what its merges share; merged (task, task,
    method): the merge's accuracies; gradients (task, task): the published gradient metrics.
    """
    match station:
        case "base":
            parts = [_weights_digest(run.backbone, run.weights), _source("backbones")]
        case "data":
            made_by = TASKS[names[0]].make.__module__.removeprefix("mergelib.")
            code = _source("tasks", "tasks.glyphs", "tasks.render", made_by)
            parts = [*names, asdict(run.sizes), run.seed, _sources(), code]
        case "tuned":
            code = _source("finetune", "heads", "evaluate", "regularizers")
            parts = [key(run, "base"), key(run, "data", *names), asdict(run.finetune)]
            parts += [_numerics(run), code]
        case "summary":
            pool = [key(run, "data", task) for task in run.tasks]
            weighed = ("metrics.weights", "factors", "lapack", "vectors", "checkpoints")
            code = _source("metrics.summary", "heads", *weighed)
            parts = [key(run, "tuned", *names), pool, run.pool_per_task, _numerics(run), code]
            parts += [run.mode, _needs(run, "cross_task")]
        case "gradients":
            parts = [[key(run, "tuned", task) for task in names], _places(run, *names), run.seed]
            parts += [run.pool_per_task, _numerics(run), _source("metrics.published_gradients")]
        case "factors":
            parts = [key(run, "tuned", *names), _numerics(run), _merging("kept")]
        case "merged":
            *pair, method = names
            tuned = [key(run, "tuned", task) for task in pair]
            parts = [tuned, method, _method_params(run, method), run.seed, _numerics(run)]
            parts += [run.compile, _merging(method), _source("evaluate")]
            if METHODS[method].factored:
                parts += [key(run, "factors", task) for task in pair]
        case _:
            raise ValueError(station)
    return digest(station, parts)[:24]


def _merging(*parts: str) -> str:
    """Digest of the merging engine's source, and of further modules of it."""
    engine = ("", *(f".{part}" for part in ("catalogue", "factors", "layer", "stream", *parts)))
    shared = ("factors", "lapack", "parallel", "vectors", "checkpoints")
    return _source(*(f"merging{part}" for part in engine), *shared)


def _method_params(run: Run, method: str) -> dict[str, Any]:
    return {**preset(method, run.mode), **(run.methods[method] or {})}


def path(store: Path, run: Run, station: str, *names: str) -> Path:
    """Where an artifact is stored."""
    suffix = "json" if station in ("merged", "gradients") else "safetensors"
    label = "-".join([*names, key(run, station, *names)])
    return Path(store) / station / f"{label}.{suffix}"


# --- the units ------------------------------------------------------------------------------


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: parallelism is over units, and results do not depend on the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@lru_cache(maxsize=2)
def _backbone(name: str, weights: str, on: str) -> Backbone:
    backbone = load(name, weights or None)
    backbone.model.to(on)
    return backbone


def _loaded(run: Run) -> Backbone:
    return _backbone(run.backbone, run.weights, device(run))


@lru_cache(maxsize=64)
def _head(run_backbone: str, weights: str, on: str, task: str) -> Tensor:
    row = TASKS[task]
    return zero_shot_head(_backbone(run_backbone, weights, on), row.class_names, row.templates)


def head(run: Run, task: str) -> Tensor:
    """The frozen zero-shot head of a task, on the run's device."""
    return _head(run.backbone, run.weights, device(run), task)


@lru_cache(maxsize=64)
def _read_data(file: Path) -> dict[str, Tensor]:
    return load_tensors(file)


def split(store: Path, run: Run, task: str, name: str) -> Split:
    """A stored split of a task."""
    held = _read_data(path(store, run, "data", task))
    return Split(held[f"{name}/images"], held[f"{name}/labels"])


@lru_cache(maxsize=128)
def _sized(file: Path, name: str, size: int, on: str) -> Split:
    """A split on a device, uint8, at size x size pixels: enlarged bicubically where smaller."""
    held = _read_data(file)
    images, labels = (held[f"{name}/{part}"].to(on) for part in ("images", "labels"))
    if images.shape[-2:] != (size, size):
        parts = [
            interpolate(part.float(), (size, size), mode="bicubic", antialias=True)
            .round()
            .clamp(0, 255)
            .byte()
            for part in images.split(100)  # in float32 one image takes four times the memory
        ]
        images = torch.cat(parts)
    return Split(images, labels)


def _pixels(store: Path, run: Run, task: str, name: str) -> Split:
    """A split on the run's device, uint8, at the backbone's size."""
    file = path(store, run, "data", task)
    return _sized(file, name, _loaded(run).image_size, device(run))


def _ready(store: Path, run: Run, task: str, name: str) -> tuple[Tensor, Tensor]:
    """Normalized images, at the backbone's size, and labels of a split on the run's device."""
    part = _pixels(store, run, task, name)
    return _loaded(run).normalize(part.images), part.labels


def _score(store: Path, run: Run, visual: nn.Module, task: str, name: str) -> float:
    """Accuracy of an encoder on a split under the task's head."""
    part = _pixels(store, run, task, name)
    return accuracy(
        visual,
        part.images,
        part.labels,
        head(run, task),
        bfloat16=run.bfloat16,
        normalize=_loaded(run).normalize,
    )


def make_base(store: Path, run: Run) -> Path:
    """Store the pretrained image encoder that task vectors are taken from."""
    file = path(store, run, "base")
    if not file.is_file():
        save_tensors(file, _loaded(run).visual_state())
    return file


def make_data(store: Path, run: Run, task: str) -> Path:
    """Store a task's three splits."""
    file = path(store, run, "data", task)
    if not file.is_file():
        built = sources.build(task, asdict(run.sizes), run.seed)
        held = {}
        for name in SPLITS:
            part = getattr(built, name)
            held |= {f"{name}/images": part.images, f"{name}/labels": part.labels}
        save_tensors(file, held)
    return file


def make_tuned(store: Path, run: Run, task: str) -> Path:
    """Fine-tune on a task; store the checkpoint and, beside it, accuracies before and after."""
    file = path(store, run, "tuned", task)
    if file.is_file() and file.with_suffix(".json").is_file():
        return file
    with _one_thread():
        backbone, words = _loaded(run), head(run, task)
        images, labels = _ready(store, run, task, "train")
        try:
            state = finetune(
                backbone.model.visual, images, labels, words, run.finetune, run.bfloat16
            )
        except MergelibError as error:
            raise MergelibError(f"task {task!r}: {error}") from None
        after = _encoder(run, state, file)
        scores = {}
        for part in ("calibration", "test"):
            scores[part] = {
                "zero_shot": _score(store, run, backbone.model.visual, task, part),
                "fine_tuned": _score(store, run, after, task, part),
                "n": len(split(store, run, task, part).labels),
            }
        write_json(file.with_suffix(".json"), scores | {"n_train": len(labels)})
        save_tensors(file, state)
    return file


@lru_cache(maxsize=2)
def _scratch(name: str, weights: str, on: str) -> nn.Module:
    """A second image encoder whose weights are replaced at will."""
    return load(name, weights or None).model.visual.to(on)


@lru_cache(maxsize=2)
def _compiled(name: str, weights: str, on: str) -> nn.Module:
    return torch.compile(_scratch(name, weights, on))


def _fast(run: Run, visual: nn.Module) -> nn.Module:
    """The encoder that evaluates: the scratch one itself, or compiled, with the same weights."""
    if not run.compile:
        return visual
    return _compiled(run.backbone, run.weights, device(run))


def _encoder(run: Run, state: dict[str, Tensor], file: Path | str) -> nn.Module:
    visual = _scratch(run.backbone, run.weights, device(run))
    load_state(visual, state, file)
    return visual.eval()


@lru_cache(maxsize=32)
def _on_device(file: Path, on: str) -> dict[str, Tensor]:
    return {name: tensor.to(on) for name, tensor in load_tensors(file).items()}


def _checkpoint(run: Run, file: Path) -> Source:
    """A checkpoint where a merge wants it: read tensor by tensor on a CPU, kept on a GPU."""
    return file if device(run) == "cpu" else _on_device(file, device(run))


def make_summary(store: Path, run: Run, task: str) -> Path:
    """Store what the metrics need of one model: factors, activation, gradients, accuracies.

    In the paper edition the gradients are those of pairs (`make_gradients`).
    """
    file = path(store, run, "summary", task)
    if file.is_file():
        return file
    with _one_thread():
        tuned = path(store, run, "tuned", task)
        state = load_tensors(tuned)
        visual = _encoder(run, state, tuned)
        held = summarize(path(store, run, "base"), tuned, device(run))
        images, labels, index = pool(store, run)
        held["activation"] = mean_activation(visual, images, mode=run.mode)
        heads = [head(run, name) for name in run.tasks]
        if run.mode == "corrected":
            encoder, pixels = pool_gradients(visual, images, labels, heads, index)
            held |= {f"encoder_gradient/{name}": value for name, value in encoder.items()}
            held["input_gradient"] = pixels
        if _needs(run, "cross_task"):
            whole = calibration_pool(store, run, run.sizes.calibration)
            held["cross_accuracy"] = cross_accuracies(visual, whole[0], whole[1], heads, whole[2])
        scores = _scores(store, run, task)["calibration"]
        for name in ("zero_shot", "fine_tuned"):
            held[name] = torch.tensor(scores[name], dtype=torch.float64)
        save_tensors(file, held)
    return file


Pool = tuple[Tensor, Tensor, Tensor]


def pool(store: Path, run: Run) -> Pool:
    """The pool that all models share: images, labels, and the index of each's task.

    `run.pool_per_task` images of each task: the first of its calibration split, or as published,
    drawn from the test split.
    """
    if run.mode == "corrected":
        return calibration_pool(store, run, run.pool_per_task)
    sizes = [len(split(store, run, task, "test").labels) for task in run.tasks]
    chosen = calibration(sizes, run.pool_per_task)
    splits = [_ready(store, run, task, "test") for task in run.tasks]
    return _pooled([(x[i], y[i]) for (x, y), i in zip(splits, chosen, strict=True)])


def calibration_pool(store: Path, run: Run, per_task: int) -> Pool:
    """The first images of each task's calibration split."""
    splits = [_ready(store, run, task, "calibration") for task in run.tasks]
    return _pooled([(images[:per_task], labels[:per_task]) for images, labels in splits])


def _pooled(parts: Sequence[tuple[Tensor, Tensor]]) -> Pool:
    index = [torch.full((len(labels),), i) for i, (_, labels) in enumerate(parts)]
    images, labels = zip(*parts, strict=True)
    return torch.cat(images), torch.cat(labels), torch.cat(index)


def make_gradients(store: Path, run: Run, first: str, second: str) -> Path:
    """Store a pair's gradient metrics as published: random heads, test images of its own."""
    file = path(store, run, "gradients", first, second)
    if file.is_file():
        return file
    with _one_thread():
        data = [_ready(store, run, task, "test") for task in (first, second)]
        chosen = calibration([len(labels) for _, labels in data], run.pool_per_task)
        classes = tuple(len(TASKS[task].class_names) for task in (first, second))
        sides = []
        for side, task in enumerate((first, second)):
            tuned = path(store, run, "tuned", task)
            visual = _encoder(run, load_tensors(tuned), tuned)
            images, labels = (part[chosen[side]] for part in data[side])
            heads = heads_of_pair(run.seed, _places(run, first, second), classes, visual.output_dim)
            sides.append(of_model(visual, images, labels, heads[side]))
        write_json(file, of_pair(*sides))
    return file


def make_factors(store: Path, run: Run, task: str) -> Path:
    """Store the factors that merges of one model share."""
    file = path(store, run, "factors", task)
    if not file.is_file():
        with _one_thread():
            keep_factors(file, path(store, run, "base"), path(store, run, "tuned", task))
    return file


def _by_pairs(run: Run) -> bool:
    """Whether the gradient metrics are those of pairs, as published."""
    return run.mode == "paper" and not run.is_study


def _factored(run: Run) -> bool:
    return any(METHODS[method].factored for method in run.methods)


def _weights(store: Path, run: Run, tasks: Sequence[str]) -> list[float]:
    """Weights for a merge by what the base knows of the tasks, seen on their calibration splits."""
    scores = [_scores(store, run, task)["calibration"] for task in tasks]
    before, after = ([score[k] for score in scores] for k in ("zero_shot", "fine_tuned"))
    return weights_of_knowledge(before, after)


def make_merged(store: Path, run: Run, first: str, second: str) -> list[Path]:
    """Merge a pair by every method; store the merged model's accuracy on both test splits.

    A method that takes weights and was given none gets those of `weights_of_knowledge`.
    """
    files = []
    for method in run.methods:
        file = path(store, run, "merged", first, second, method)
        files.append(file)
        if file.is_file():
            continue
        with _one_thread():
            tuned = [path(store, run, "tuned", task) for task in (first, second)]
            base = path(store, run, "base")
            params = _method_params(run, method)
            if "weights" in params and params["weights"] is None:
                params["weights"] = _weights(store, run, (first, second))
            kept = None
            if METHODS[method].factored:
                kept = [path(store, run, "factors", task) for task in (first, second)]
            # one encoder, whose weights every merge writes over
            visual = _scratch(run.backbone, run.weights, device(run)).eval()
            origin, *models = (_checkpoint(run, each) for each in (base, *tuned))
            merge(origin, models, method, run.seed, kept, visual.state_dict(), **params)
            fast = _fast(run, visual)
            sides = {"acc_a": first, "acc_b": second}
            found = {s: _score(store, run, fast, task, "test") for s, task in sides.items()}
            write_json(file, found)
    return files


# --- the run --------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(store: Path) -> Iterator[None]:
    """Hold the store for one run, and clear temporary files that a killed run left."""
    store.mkdir(parents=True, exist_ok=True)
    with (store / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise MergelibError(
                f"store {store} is in use by another run: wait for it or give another --store"
            ) from None
        for stale in store.glob("*/.*.tmp"):
            stale.unlink(missing_ok=True)
        yield


Work = Sequence[tuple[Run, tuple[str, ...]]]


def _each(what: str, unit: Callable, store: Path, work: Work, jobs: int) -> None:
    """Run a unit over its work, with a progress bar."""
    todo = (joblib.delayed(unit)(store, run, *names) for run, names in work)
    # The backend is joblib's choice, so that a caller can put the units on Dask, Ray or Slurm.
    results = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")(todo)
    for _ in tqdm(results, total=len(work), desc=f"{what:>12}", unit="unit", mininterval=0.5):
        pass


def _unfinished(store: Path, station: str, work: Work) -> Work:
    """What is not stored yet; a merge unit covers all methods of its pair."""

    def files(run: Run, names: tuple[str, ...]) -> list[Path]:
        if station != "merged":
            return [path(store, run, station, *names)]
        return [path(store, run, station, *names, method) for method in run.methods]

    return [(run, names) for run, names in work if not all(f.is_file() for f in files(run, names))]


def execute(run: Run, store: Path, tables: Path, jobs: int = 0) -> dict[str, pd.DataFrame]:
    """Run the pipeline and write metrics.csv, merges.csv, tasks.csv and meta.json.

    A study (`run.strengths`, `run.seeds`) runs every combination; its tables carry `strength` and
    `seed`, and hold no metrics. Interrupted and started again, a run goes on without redoing
    finished units and ends with the same tables. `jobs` units run at a time (0: one a core, or one
    where there is a GPU). Raises MergelibError as its stations do.
    """
    store, tables = Path(store), Path(tables)
    jobs = jobs or (1 if device(run) == "cuda" else joblib.cpu_count())
    variants = run.variants()
    pairs = list(itertools.combinations(run.tasks, 2))
    singles = [(task,) for task in run.tasks]
    stations = [
        ("tasks", make_data, "data", [run], singles),
        ("fine-tuning", make_tuned, "tuned", variants, singles),
        ("summaries", make_summary, "summary", [] if run.is_study else variants, singles),
        ("gradients", make_gradients, "gradients", variants if _by_pairs(run) else [], pairs),
        ("factors", make_factors, "factors", variants if _factored(run) else [], singles),
        ("merges", make_merged, "merged", variants, pairs),
    ]
    with _locked(store):
        make_base(store, run)
        for what, unit, station, runs, names in stations:
            work = [(each, some) for each in runs for some in names]
            if left := _unfinished(store, station, work):
                _each(what, unit, store, left, jobs)
        made = {
            "merges": _stacked(merges_table, store, variants, run.is_study),
            "tasks": _stacked(tasks_table, store, variants, run.is_study),
        }
        if not run.is_study:
            made["metrics"] = metrics_table(store, run)
    for name, table in made.items():
        write_table(tables / f"{name}.csv", table)
    write_json(tables / "meta.json", meta(run, made))
    return made


def _stacked(table: Callable, store: Path, variants: Sequence[Run], study: bool) -> pd.DataFrame:
    """One table of all variants; in a study `seed` is the fine-tuning seed."""
    parts = [table(store, variant) for variant in variants]
    if study:
        for part, variant in zip(parts, variants, strict=True):
            part["strength"], part["seed"] = variant.finetune.strength, variant.finetune.seed
    return pd.concat(parts, ignore_index=True)


def metrics_table(store: Path, run: Run) -> pd.DataFrame:
    """One row per pair, one column per metric."""
    names = run.metrics or list(METRICS)
    by_pairs = {n for n in names if _by_pairs(run) and find(n).category == "gradient"}
    with _one_thread():
        held = ingredients(
            path(store, run, "base"),
            [path(store, run, "tuned", task) for task in run.tasks],
            [path(store, run, "summary", task) for task in run.tasks],
            len(TEXT_MATRICES) if run.mode == "paper" else 0,
        )
        table = pairwise(held, run.tasks, [n for n in names if n not in by_pairs], run.mode)
    pairs = zip(table["task_a"], table["task_b"], strict=True)
    files = [path(store, run, "gradients", *pair) for pair in pairs if by_pairs]
    if files:
        published = pd.DataFrame([read_json(file) for file in files])
        table = pd.concat([table, published], axis=1)
    order = [row.name for row in (*METRICS.rows(), *EXTRA.rows()) if row.name in names]
    return table[["task_a", "task_b", *order]]


def merges_table(store: Path, run: Run) -> pd.DataFrame:
    """One row per pair and method: accuracies of the merge and of the single models."""
    single = {task: _scores(store, run, task)["test"]["fine_tuned"] for task in run.tasks}
    rows = []
    for first, second in itertools.combinations(run.tasks, 2):
        for method in run.methods:
            found = read_json(path(store, run, "merged", first, second, method))
            rows.append(
                {
                    "task_a": first,
                    "task_b": second,
                    "method": method,
                    "acc_a": found["acc_a"],
                    "acc_b": found["acc_b"],
                    "single_a": single[first],
                    "single_b": single[second],
                    "seed": run.seed,
                }
            )
    return pd.DataFrame(rows)


def _scores(store: Path, run: Run, task: str) -> dict:
    return read_json(path(store, run, "tuned", task).with_suffix(".json"))


def tasks_table(store: Path, run: Run) -> pd.DataFrame:
    """One row per task: sizes, classes, accuracies on the test split and on calibration."""
    rows = []
    for task in run.tasks:
        row, scores = TASKS[task], _scores(store, run, task)
        rows.append(
            {
                "task": task,
                "family": row.family,
                "source": row.source,
                "n_classes": len(row.class_names),
                "n_train": scores["n_train"],
                "n_calibration": scores["calibration"]["n"],
                "n_test": scores["test"]["n"],
                "zero_shot": scores["test"]["zero_shot"],
                "fine_tuned": scores["test"]["fine_tuned"],
                "zero_shot_calibration": scores["calibration"]["zero_shot"],
                "fine_tuned_calibration": scores["calibration"]["fine_tuned"],
            }
        )
    return pd.DataFrame(rows)


def meta(run: Run, made: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """What the tables are of: source, backbone, optimizer, calibration, mode, digests."""
    recipe = asdict(run.finetune)
    return {
        "source": "glyph benchmark" if run.backbone == GLYPH_VIT else run.backbone,
        "name": run.name,
        "backbone": run.backbone,
        "optimizer": {"name": "AdamW", **recipe},
        "calibration": {
            "split": "test" if run.mode == "paper" else "calibration",
            "images_per_task": run.pool_per_task,
        },
        "mode": run.mode,
        "methods": {name: METHODS[name].check(_method_params(run, name)) for name in run.methods},
        "seed": run.seed,
        "sizes": asdict(run.sizes),
        "device": device(run),
        "bfloat16": run.bfloat16,
        "compile": run.compile,
        "strengths": run.strengths,
        "finetuning_seeds": run.seeds or [run.finetune.seed],
        "digests": {
            "weights": _weights_digest(run.backbone, run.weights),
            "tuned": digest([key(v, "tuned", t) for v in run.variants() for t in run.tasks]),
            **{name: digest(table.to_csv(index=False)) for name, table in made.items()},
        },
    }
