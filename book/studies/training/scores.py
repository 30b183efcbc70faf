"""What the merges of a variant's models can do: accuracies by group, task and scale."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from mergelib.core.store import digest, load_tensors, read_table, write_table
from mergelib.pipeline.keys import device, key, method_params, path
from mergelib.pipeline.loaded import one_thread, scratch
from mergelib.pipeline.params import Run
from mergelib.pipeline.sources import code_behind
from mergelib.pipeline.task_data import score
from mergelib.pipeline.units import factors, tuned
from mergelib.pipeline.units.merged import merged_state
from studies.training.variants import groups

COLUMNS = ["group", "task", "scale", "accuracy"]
Scales = dict[int, Sequence[float]]  # by the number of models in a merge


def train(store: Path, run: Run, task: str) -> Path:
    """Fine-tune a variant's model of a task, with the factors of its merges."""
    tuned.make(store, run, task)
    return factors.make(store, run, task)


def length(store: Path, run: Run, task: str) -> float:
    """‖τ‖ of a variant's model, over all tensors."""
    base, model = (load_tensors(path(store, run, *of)) for of in (("base",), ("tuned", task)))
    return sum(float((model[n].double() - base[n].double()).square().sum()) for n in base) ** 0.5


def merges_file(store: Path, run: Run, method: str, part: str, scales: Scales) -> Path:
    """Where `merges` keeps its table."""
    parts = [[key(run, "tuned", task) for task in run.tasks], run.tasks, run.seed, method]
    parts += [method_params(run, method), part, sorted((n, list(s)) for n, s in scales.items())]
    made = digest("studies.training.scores", code_behind("mergelib.pipeline.units.merged"), parts)
    return Path(store) / "training" / f"{method}-{part}-{made[:24]}.csv"


def merges(store: Path, run: Run, method: str, part: str, scales: Scales) -> Path:
    """Merge every group of tasks by a method; keep accuracies on a split ("calibration", "test").

    Scale s is the model θ0 + s Δ, Δ the method's merged task vector; 1 is the method as it stands.
    Columns: group (tasks joined by +), task, scale, accuracy; a row per group, scale and task.
    """
    file = merges_file(store, run, method, part, scales)
    if file.is_file():
        return file
    rows = []
    with one_thread(), torch.no_grad():
        visual = scratch(run)
        weights = visual.state_dict()
        base = {n: t.to(device(run)) for n, t in load_tensors(path(store, run, "base")).items()}
        for group in groups(run.tasks):
            merged = merged_state(store, run, group, method)
            for scale in scales[len(group)]:
                for name, value in merged.items():
                    as_is = scale == 1 or not value.is_floating_point()
                    weights[name].copy_(value if as_is else base[name].lerp(value, scale))
                for task in group:
                    right = score(store, run, visual, task, part)
                    rows.append(("+".join(group), task, scale, right))
    write_table(file, pd.DataFrame(rows, columns=COLUMNS))
    return file


def read_merges(store: Path, run: Run, method: str, part: str, scales: Scales) -> pd.DataFrame:
    """The table that `merges` kept."""
    return read_table(merges_file(store, run, method, part, scales))
