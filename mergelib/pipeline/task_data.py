"""A task as the units see it: its stored splits, its frozen head, accuracies under that head."""

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from mergelib.core.store import load_tensors, read_json
from mergelib.models.accuracy import accuracy
from mergelib.models.batches import Batches
from mergelib.models.heads import zero_shot_head
from mergelib.pipeline.keys import device, path
from mergelib.pipeline.loaded import backbone, backbone_of
from mergelib.pipeline.params import Run
from mergelib.tasks.registry import Split

RESIDENT = 2**28  # bytes of a split that is kept on a GPU; a larger one stays mapped from its file


def head(store: Path, run: Run, task: str) -> Tensor:
    """The frozen head of a task, on the run's device: zero-shot, or what its unit stored."""
    if run.head != "zero_shot":
        return _stored_head(path(store, run, "heads", task), device(run))
    row = run.row(task)
    of = (run.backbone, run.weights, run.image_size, device(run))
    return _head(*of, row.class_names, row.templates)


@lru_cache(maxsize=64)
def _stored_head(file: Path, on: str) -> Tensor:
    return load_tensors(file)["head"].to(on)


@lru_cache(maxsize=64)
def _head(
    name: str,
    weights: str,
    size: int,
    on: str,
    class_names: tuple[str, ...],
    templates: tuple[str, ...],
) -> Tensor:
    return zero_shot_head(backbone_of(name, weights, size, on), class_names, templates)


def split(store: Path, run: Run, task: str, name: str) -> Split:
    """A stored split of a task."""
    held = _read(path(store, run, "data", task))
    return Split(held[f"{name}/images"], held[f"{name}/labels"])


@lru_cache(maxsize=64)
def _read(file: Path) -> dict[str, Tensor]:
    return load_tensors(file)


def ready(store: Path, run: Run, task: str, name: str) -> tuple[Batches, Tensor]:
    """Normalized images, at the backbone's size, and labels of a split, for the run's device."""
    part, on = _pixels(store, run, task, name), torch.device(device(run))
    return Batches(part.images, backbone(run).normalize, on), part.labels.to(on)


def score(store: Path, run: Run, visual: nn.Module, task: str, name: str) -> float:
    """Accuracy of an encoder on a split under the task's head."""
    images, labels = ready(store, run, task, name)
    return accuracy(visual, images, labels, head(store, run, task), bfloat16=run.bfloat16)


def stored_scores(store: Path, run: Run, task: str) -> dict:
    """The accuracies that fine-tuning on a task wrote beside its checkpoint."""
    return read_json(path(store, run, "tuned", task).with_suffix(".json"))


def _pixels(store: Path, run: Run, task: str, name: str) -> Split:
    """A split, uint8, at the backbone's size; on the run's device where it is small."""
    file = path(store, run, "data", task)
    return _sized(file, name, backbone(run).image_size, device(run))


@lru_cache(maxsize=128)
def _sized(file: Path, name: str, size: int, on: str) -> Split:
    """A split, uint8, at size x size pixels: enlarged bicubically where smaller."""
    held = _read(file)
    images, labels = (held[f"{name}/{part}"] for part in ("images", "labels"))
    if images.nbytes <= RESIDENT:
        images = images.to(on)
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
