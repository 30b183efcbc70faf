"""The splits of a task."""

from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from mergelib.core.store import save_tensors
from mergelib.pipeline.keys import path
from mergelib.pipeline.params import Run
from mergelib.tasks.registry import SPLITS
from mergelib.tasks.splits import build


def make(store: Path, run: Run, task: str) -> Path:
    """Store a task's three splits."""
    file = path(store, run, "data", task)
    if not file.is_file():
        built = build(task, asdict(run.sizes), run.seed)
        held: dict[str, Tensor] = {}
        for name in SPLITS:
            part = getattr(built, name)
            held |= {f"{name}/images": part.images, f"{name}/labels": part.labels}
        save_tensors(file, held)
    return file
