"""Fine-tuning on a task."""

from pathlib import Path
from typing import Any

import pandas as pd

from mergelib.core.errors import MergelibError
from mergelib.core.store import save_tensors, write_json, write_table
from mergelib.models.finetune import train
from mergelib.models.progress import LOG
from mergelib.pipeline.keys import path
from mergelib.pipeline.loaded import backbone, encoder, one_thread
from mergelib.pipeline.params import Run
from mergelib.pipeline.task_data import head, ready, score, split


def make(store: Path, run: Run, task: str) -> Path:
    """Fine-tune on a task; store the checkpoint and, beside it, accuracies and the steps' log.

    What it goes on from, killed, lies in the store's folder `resume` until the checkpoint is there.
    """
    file = path(store, run, "tuned", task)
    if file.is_file() and file.with_suffix(".json").is_file():
        return file
    with one_thread():
        before = backbone(run).model.visual
        images, labels = ready(store, run, task, "train")
        judged = ready(store, run, task, "calibration") if run.finetune.validate_every else None
        kept = resume(store, run, task)
        recipe, mixed = run.finetune, run.bfloat16
        try:
            state, log = train(
                before, (images, labels), head(store, run, task), recipe, mixed, judged, kept
            )
        except MergelibError as error:
            raise MergelibError(f"task {task!r}: {error}") from None
        after = encoder(run, state, file)
        scores: dict[str, Any] = {"n_train": len(labels)}
        for part in ("calibration", "test"):
            scores[part] = {
                "zero_shot": score(store, run, before, task, part),
                "fine_tuned": score(store, run, after, task, part),
                "n": len(split(store, run, task, part).labels),
            }
        write_table(file.with_suffix(".csv"), pd.DataFrame(log, columns=LOG))
        write_json(file.with_suffix(".json"), scores)
        save_tensors(file, state)
        kept.unlink(missing_ok=True)
    return file


def resume(store: Path, run: Run, task: str) -> Path:
    """Where the state of an unfinished training is kept."""
    return Path(store) / "resume" / path(store, run, "tuned", task).name
