"""A task as the units see it: its stored splits, its frozen head, accuracies under that head."""

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from mergelib.core.store import load_tensors, read_json
from mergelib.models.accuracy import accuracy
from mergelib.models.heads import zero_shot_head
from mergelib.pipeline.keys import device, path
from mergelib.pipeline.loaded import backbone, backbone_of
from mergelib.pipeline.params import Run
from mergelib.tasks.registry import TASKS, Split


def head(run: Run, task: str) -> Tensor:
    """The frozen zero-shot head of a task, on the run's device."""
    return _head(run.backbone, run.weights, device(run), task)


@lru_cache(maxsize=64)
def _head(name: str, weights: str, on: str, task: str) -> Tensor:
    row = TASKS[task]
    return zero_shot_head(backbone_of(name, weights, on), row.class_names, row.templates)


def split(store: Path, run: Run, task: str, name: str) -> Split:
    """A stored split of a task."""
    held = _read(path(store, run, "data", task))
    return Split(held[f"{name}/images"], held[f"{name}/labels"])


@lru_cache(maxsize=64)
def _read(file: Path) -> dict[str, Tensor]:
    return load_tensors(file)


def ready(store: Path, run: Run, task: str, name: str) -> tuple[Tensor, Tensor]:
    """Normalized images, at the backbone's size, and labels of a split on the run's device."""
    part = _pixels(store, run, task, name)
    return backbone(run).normalize(part.images), part.labels


def score(store: Path, run: Run, visual: nn.Module, task: str, name: str) -> float:
    """Accuracy of an encoder on a split under the task's head."""
    part = _pixels(store, run, task, name)
    return accuracy(
        visual,
        part.images,
        part.labels,
        head(run, task),
        bfloat16=run.bfloat16,
        normalize=backbone(run).normalize,
    )


def stored_scores(store: Path, run: Run, task: str) -> dict:
    """The accuracies that fine-tuning on a task wrote beside its checkpoint."""
    return read_json(path(store, run, "tuned", task).with_suffix(".json"))


def _pixels(store: Path, run: Run, task: str, name: str) -> Split:
    """A split on the run's device, uint8, at the backbone's size."""
    file = path(store, run, "data", task)
    return _sized(file, name, backbone(run).image_size, device(run))


@lru_cache(maxsize=128)
def _sized(file: Path, name: str, size: int, on: str) -> Split:
    """A split on a device, uint8, at size x size pixels: enlarged bicubically where smaller."""
    held = _read(file)
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
