"""The tasks' registry: what is asked, the words for the answers, and how the images are made."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mergelib.core.registry import Registry

SPLITS = ("train", "calibration", "test")


@dataclass(frozen=True)
class Split:
    """Images (N, 3, H, W) uint8 and class indices (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Task:
    """A task with its words and its three splits, which share no image."""

    name: str
    family: str
    source: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    train: Split
    calibration: Split
    test: Split


@dataclass(frozen=True)
class Source:
    """How a task comes about: `make(rng, sizes)` gives images and labels per split name."""

    name: str
    family: str
    source: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    make: Callable[[np.random.Generator, Mapping[str, int]], Mapping[str, tuple]]


TASKS: Registry[Source] = Registry("task")
