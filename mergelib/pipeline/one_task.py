"""Fine-tuning on one task by itself, with several seeds."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from mergelib.core.atomic import atomic
from mergelib.core.errors import MergelibError
from mergelib.core.registry import unknown
from mergelib.core.store import read_json
from mergelib.pipeline.keys import path
from mergelib.pipeline.params import Run
from mergelib.pipeline.run import plan, workplace
from mergelib.pipeline.units import data, heads, tuned

SUFFIXES = (".safetensors", ".json", ".csv")  # checkpoint, accuracies, log


def finetuned(
    run: Run,
    task: str,
    seeds: Sequence[int],
    store: Path,
    out: Path,
    jobs: int = 0,
    cluster: str = "",
) -> list[str]:
    """Fine-tune on a task of a run, once a seed; a line about each model.

    Writes out/TASK-SEED with `SUFFIXES`. Raises MergelibError for a task that the run does not
    have, and as the stations do.
    """
    if task not in run.tasks:
        raise MergelibError(unknown("task of the run", task, run.tasks))
    runs = {seed: replace(run, finetune=replace(run.finetune, seed=seed)) for seed in seeds}
    with workplace(run, store, jobs, cluster) as do:
        for label, station, work in plan(run):
            if station in (data, heads) and (task,) in work:
                do(label, station, [(run, (task,))])
        do("fine-tuning", tuned, [(each, (task,)) for each in runs.values()])
    lines = []
    for seed, each in runs.items():
        made = path(Path(store), each, "tuned", task)
        for suffix in SUFFIXES:
            source = made.with_suffix(suffix)
            atomic(out / f"{task}-{seed}{suffix}", partial(shutil.copyfile, source))
        scores = read_json(made.with_suffix(".json"))["test"]
        lines.append(
            f"{out / f'{task}-{seed}.safetensors'}: {scores['zero_shot']:.3f} before, "
            f"{scores['fine_tuned']:.3f} after, of {scores['n']} test images"
        )
    return lines
