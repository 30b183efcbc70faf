"""The frozen head of a task that is made of images of its classes."""

from pathlib import Path

import torch

from mergelib.core.errors import MergelibError
from mergelib.core.store import save_tensors
from mergelib.models.heads import probe, prototypes
from mergelib.pipeline.keys import path
from mergelib.pipeline.loaded import backbone, one_thread
from mergelib.pipeline.params import Run
from mergelib.pipeline.task_data import ready

BATCH = 100
MAKERS = {"prototypes": prototypes, "probe": probe}


def make(store: Path, run: Run, task: str) -> Path:
    """Store a head made of the base's features of `run.head_split`, never of the test split."""
    file = path(store, run, "heads", task)
    if file.is_file():
        return file
    with one_thread(), torch.inference_mode():
        images, labels = ready(store, run, task, run.head_split)
        visual = backbone(run).model.visual
        features = torch.cat([visual(batch).float().cpu() for batch in images.split(BATCH)])
    try:
        head = MAKERS[run.head](features.clone(), labels.cpu(), len(run.row(task).class_names))
    except MergelibError as error:
        raise MergelibError(f"task {task!r}, {run.head_split} split: {error}") from None
    save_tensors(file, {"head": head})
    return file
