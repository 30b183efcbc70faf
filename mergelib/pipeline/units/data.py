"""The splits of a task."""

from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from mergelib.core.errors import MergelibError
from mergelib.core.store import save_tensors
from mergelib.pipeline.keys import path, pixels
from mergelib.pipeline.params import Run
from mergelib.tasks.cached import write_splits
from mergelib.tasks.given import dealt
from mergelib.tasks.registry import SPLITS
from mergelib.tasks.splits import build


def make(store: Path, run: Run, task: str) -> Path:
    """Store a task's three splits; of a given task at the size that the encoder takes."""
    file = path(store, run, "data", task)
    if file.is_file():
        return file
    if task in run.given:
        _check_pool(run, task)
        write_splits(file, run.given[task], asdict(run.sizes), run.seed, pixels(run))
        return file
    built = build(task, asdict(run.sizes), run.seed)
    held: dict[str, Tensor] = {}
    for name in SPLITS:
        part = getattr(built, name)
        held |= {f"{name}/images": part.images, f"{name}/labels": part.labels}
    save_tensors(file, held)
    return file


def _check_pool(run: Run, task: str) -> None:
    n = len(dealt(run.given[task], asdict(run.sizes), run.seed)["calibration"][1])
    if n < run.pool_per_task:
        raise MergelibError(
            f"task {task!r} has {n} calibration images, pool_per_task asks for "
            f"{run.pool_per_task}: lower it, or give more images"
        )
