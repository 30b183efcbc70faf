"""The gradient metrics of a pair, as published."""

from pathlib import Path
from typing import cast

from mergelib.core.store import load_tensors, write_json
from mergelib.metrics.published_gradients import calibration, heads_of_pair, of_model, of_pair
from mergelib.pipeline.keys import path, places
from mergelib.pipeline.loaded import encoder, one_thread
from mergelib.pipeline.params import Run
from mergelib.pipeline.task_data import ready


def make(store: Path, run: Run, first: str, second: str) -> Path:
    """Store a pair's gradient metrics as published: random heads, test images of its own."""
    file = path(store, run, "gradients", first, second)
    if file.is_file():
        return file
    pair = (first, second)
    with one_thread():
        data = [ready(store, run, task, "test") for task in pair]
        chosen = calibration([len(labels) for _, labels in data], run.pool_per_task)
        classes = tuple(len(run.row(task).class_names) for task in pair)
        sides = []
        for side, task in enumerate(pair):
            tuned = path(store, run, "tuned", task)
            visual = encoder(run, load_tensors(tuned), tuned)
            images, labels = (part[chosen[side]] for part in data[side])
            heads = heads_of_pair(
                run.seed, places(run, *pair), classes, cast(int, visual.output_dim)
            )
            sides.append(of_model(visual, images, labels, heads[side]))
        write_json(file, of_pair(*sides))
    return file
