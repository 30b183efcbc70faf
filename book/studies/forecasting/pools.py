"""A task's pool: images of its calibration kind that neither training nor test has seen."""

from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from mergelib.core.store import digest, load_tensors, save_tensors
from mergelib.pipeline.keys import key
from mergelib.pipeline.params import Run
from mergelib.pipeline.task_data import split
from mergelib.tasks.splits import build

SEEDS = 4  # a source of few images has no more to give after that
MADE = 300  # images that a seed is asked for: a smaller pool is the beginning of a larger one


def pool_key(run: Run, task: str, size: int) -> str:
    """The digest that a task's pool is stored under."""
    return digest("pool", key(run, "data", task), size, SEEDS, MADE)[:24]


def pool_file(store: Path, run: Run, task: str, size: int) -> Path:
    """Where a task's pool is stored."""
    return Path(store) / "pool" / f"{task}-{pool_key(run, task, size)}.safetensors"


def make_pool(store: Path, run: Run, task: str, size: int) -> Path:
    """Store a task's pool, images and labels, at most `size` (up to MADE).

    First the run's own calibration split, then those of the same task under other seeds, without
    any image of the run's training or test split or of the pool. What a source does not have it
    does not give: the pool is as small as that. Of a task that a parameter file gives: no more
    than the calibration split.
    """
    file = pool_file(store, run, task, size)
    if file.is_file():
        return file
    own = split(store, run, task, "calibration")
    images, labels = [own.images], [own.labels]
    held = (split(store, run, task, name) for name in ("train", "test", "calibration"))
    seen = {image.tobytes() for part in held for image in part.images.numpy()}
    sizes = asdict(run.sizes) | {"train": 1, "test": 1, "calibration": MADE}
    for seed in () if task in run.given else range(1, SEEDS + 1):
        if sum(map(len, labels)) >= size:
            break
        more = build(task, sizes, run.seed + seed).calibration
        fresh = [k for k, x in enumerate(more.images.numpy()) if x.tobytes() not in seen]
        fresh = fresh[: max(size - sum(map(len, labels)), 0)]
        images.append(more.images[fresh])
        labels.append(more.labels[fresh])
        seen |= {image.tobytes() for image in more.images[fresh].numpy()}
    save_tensors(file, {"images": torch.cat(images)[:size], "labels": torch.cat(labels)[:size]})
    return file


@lru_cache(maxsize=64)
def pool(file: Path) -> tuple[Tensor, Tensor]:
    """Images (N, 3, H, W) uint8 and labels (N,) of a stored pool."""
    held = load_tensors(file)
    return held["images"], held["labels"]
