"""The digest that every artifact is stored under: of all that it depends on."""

import importlib
import inspect
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mergelib.core.devices import find_device
from mergelib.core.errors import MergelibError
from mergelib.core.store import digest, file_digest
from mergelib.merging.registry import METHODS, preset
from mergelib.metrics.registry import find
from mergelib.models.backbones import GLYPH_VIT, WEIGHTS
from mergelib.pipeline.params import Run
from mergelib.tasks import TASKS, pixels_digest

# --- what a unit depends on -----------------------------------------------------------------


@lru_cache
def _source(*modules: str) -> str:
    """Digest of the source of modules, so that a changed formula is never answered from before."""
    loaded = [importlib.import_module(f"mergelib.{module}") for module in modules]
    return digest([inspect.getsource(module) for module in loaded])


@lru_cache
def _sources() -> str:
    return pixels_digest()


@lru_cache
def weights_digest(backbone: str, weights: str) -> str:
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


def needs(run: Run, category: str) -> bool:
    """Whether the run names a metric of an extra category."""
    return any(find(name).category == category for name in run.metrics)


def places(run: Run, *tasks: str) -> list[int]:
    return [run.tasks.index(task) for task in tasks]


def key(run: Run, station: str, *names: str) -> str:
    """The digest that an artifact of a station is stored under.

    base: the encoder; data (task); tuned (task): checkpoint and accuracies; summary (task): what
    the metrics need of one model; factors (task): what its merges share; merged (task, task,
    method): the merge's accuracies; gradients (task, task): the published gradient metrics.
    """
    match station:
        case "base":
            parts = [weights_digest(run.backbone, run.weights), _source("backbones")]
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
            parts += [run.mode, needs(run, "cross_task")]
        case "gradients":
            parts = [[key(run, "tuned", task) for task in names], places(run, *names), run.seed]
            parts += [run.pool_per_task, _numerics(run), _source("metrics.published_gradients")]
        case "factors":
            parts = [key(run, "tuned", *names), _numerics(run), _merging("kept")]
        case "merged":
            *pair, method = names
            tuned = [key(run, "tuned", task) for task in pair]
            parts = [tuned, method, method_params(run, method), run.seed, _numerics(run)]
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


def method_params(run: Run, method: str) -> dict[str, Any]:
    return {**preset(method, run.mode), **(run.methods[method] or {})}


def path(store: Path, run: Run, station: str, *names: str) -> Path:
    """Where an artifact is stored."""
    suffix = "json" if station in ("merged", "gradients") else "safetensors"
    label = "-".join([*names, key(run, station, *names)])
    return Path(store) / station / f"{label}.{suffix}"
