"""The models that units of work share in memory: the backbone, and one scratch encoder."""

import contextlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from mergelib.checkpoints.reading import Source
from mergelib.core.store import load_tensors
from mergelib.models.backbones import Backbone, load
from mergelib.models.states import load_state
from mergelib.pipeline.keys import device
from mergelib.pipeline.params import Run


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: parallelism is over units, and results do not depend on the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def backbone(run: Run) -> Backbone:
    """The pretrained model, on the run's device; not to be changed."""
    return backbone_of(run.backbone, run.weights, run.image_size, device(run))


@lru_cache(maxsize=2)
def backbone_of(name: str, weights: str, size: int, on: str) -> Backbone:
    """A pretrained model on a device, for images of that size (0: its own); not to be changed."""
    found = load(name, weights or None, size)
    found.model.to(on)
    return found


def scratch(run: Run) -> nn.Module:
    """A second image encoder, whose weights are replaced at will; in eval mode."""
    return _scratch(run.backbone, run.weights, run.image_size, device(run)).eval()


@lru_cache(maxsize=2)
def _scratch(name: str, weights: str, size: int, on: str) -> nn.Module:
    return load(name, weights or None, size).model.visual.to(on)


def evaluating(run: Run) -> nn.Module:
    """The encoder that evaluates: the scratch one itself, or compiled, with the same weights."""
    if not run.compile:
        return scratch(run)
    return _compiled(run.backbone, run.weights, run.image_size, device(run))


@lru_cache(maxsize=2)
def _compiled(name: str, weights: str, size: int, on: str) -> nn.Module:
    module = torch.compile(_scratch(name, weights, size, on))
    return cast(nn.Module, module)  # of a module, a module


def encoder(run: Run, state: dict[str, Tensor], file: Path) -> nn.Module:
    """The scratch encoder with the weights of a checkpoint; errors name its file."""
    visual = scratch(run)
    load_state(visual, state, file)
    return visual


def checkpoint(run: Run, file: Path) -> Source:
    """A checkpoint where a merge wants it: read tensor by tensor on a CPU, kept on a GPU."""
    return file if device(run) == "cpu" else _on_device(file, device(run))


@lru_cache(maxsize=32)
def _on_device(file: Path, on: str) -> dict[str, Tensor]:
    return {name: tensor.to(on) for name, tensor in load_tensors(file).items()}
