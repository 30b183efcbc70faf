"""A task's splits, made from its registered source."""

from collections.abc import Mapping

import numpy as np
import torch

from mergelib.core.errors import MergelibError
from mergelib.core.store import digest
from mergelib.tasks.registry import TASKS, Split, Task


def build(name: str, sizes: Mapping[str, int], seed: int = 0) -> Task:
    """Make a task's splits; the same name, sizes and seed give the same pixels.

    `sizes` maps train, calibration and test to image counts; a source that has fewer images gives
    what it has, two fifths at most to the test split and a tenth to calibration.

    Raises MergelibError for an unknown task and if two splits share an image.
    """
    row = TASKS[name]
    rng = np.random.default_rng(int(digest("task", name, seed)[:15], 16))
    made = row.make(rng, sizes)
    splits = {
        split: Split(
            torch.from_numpy(np.ascontiguousarray(images, dtype=np.uint8)),
            torch.from_numpy(np.asarray(labels, dtype=np.int64)),
        )
        for split, (images, labels) in made.items()
    }
    _check_disjoint(name, splits)
    return Task(name, row.family, row.source, row.class_names, row.templates, **splits)


def _check_disjoint(name: str, splits: Mapping[str, Split]) -> None:
    seen: set[bytes] = set()
    for split in splits.values():
        for image in split.images.numpy():
            pixels = image.tobytes()
            if pixels in seen:
                raise MergelibError(f"task {name!r} holds an image twice: give another seed")
            seen.add(pixels)
