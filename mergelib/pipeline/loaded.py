"""What units of work share in memory: the backbone, heads, splits, one scratch encoder."""

import contextlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from mergelib.checkpoints.weights import Source
from mergelib.core.store import load_tensors
from mergelib.models.accuracy import accuracy
from mergelib.models.backbones import Backbone, load, load_state
from mergelib.models.heads import zero_shot_head
from mergelib.pipeline.keys import device, path
from mergelib.pipeline.params import Run
from mergelib.tasks import TASKS, Split

# --- the units ------------------------------------------------------------------------------


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
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


def loaded(run: Run) -> Backbone:
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
    return _sized(file, name, loaded(run).image_size, device(run))


def ready(store: Path, run: Run, task: str, name: str) -> tuple[Tensor, Tensor]:
    """Normalized images, at the backbone's size, and labels of a split on the run's device."""
    part = _pixels(store, run, task, name)
    return loaded(run).normalize(part.images), part.labels


def score(store: Path, run: Run, visual: nn.Module, task: str, name: str) -> float:
    """Accuracy of an encoder on a split under the task's head."""
    part = _pixels(store, run, task, name)
    return accuracy(
        visual,
        part.images,
        part.labels,
        head(run, task),
        bfloat16=run.bfloat16,
        normalize=loaded(run).normalize,
    )


@lru_cache(maxsize=2)
def scratch(name: str, weights: str, on: str) -> nn.Module:
    """A second image encoder whose weights are replaced at will."""
    return load(name, weights or None).model.visual.to(on)


@lru_cache(maxsize=2)
def _compiled(name: str, weights: str, on: str) -> nn.Module:
    return torch.compile(scratch(name, weights, on))


def _fast(run: Run, visual: nn.Module) -> nn.Module:
    """The encoder that evaluates: the scratch one itself, or compiled, with the same weights."""
    if not run.compile:
        return visual
    return _compiled(run.backbone, run.weights, device(run))


def _encoder(run: Run, state: dict[str, Tensor], file: Path | str) -> nn.Module:
    visual = scratch(run.backbone, run.weights, device(run))
    load_state(visual, state, file)
    return visual.eval()


@lru_cache(maxsize=32)
def _on_device(file: Path, on: str) -> dict[str, Tensor]:
    return {name: tensor.to(on) for name, tensor in load_tensors(file).items()}


def checkpoint(run: Run, file: Path) -> Source:
    """A checkpoint where a merge wants it: read tensor by tensor on a CPU, kept on a GPU."""
    return file if device(run) == "cpu" else _on_device(file, device(run))
