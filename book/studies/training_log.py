"""How fine-tunings went: the logs that `mergelib finetune` writes, as one table and a figure."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from mergelib.core.errors import MergelibError
from mergelib.core.store import read_table
from mergelib.models.progress import LOG
from mergelib.pairs.tables import need
from studies import plots


def read_logs(folder: Path) -> pd.DataFrame:
    """The logs TASK-SEED.csv in a folder: task, seed, and the columns of LOG, a row a step.

    Raises MergelibError for a folder without one, and for a table with other columns.
    """
    parts = []
    for file in sorted(Path(folder).glob("*-*.csv")):
        task, _, seed = file.stem.rpartition("-")
        need(part := read_table(file), list(LOG), str(file))
        parts.append(part.assign(task=task, seed=int(seed)))
    if not parts:
        raise MergelibError(f"{folder} has no log TASK-SEED.csv: `mergelib finetune` writes them")
    return pd.concat(parts, ignore_index=True)[["task", "seed", *LOG]]


def validated(logs: pd.DataFrame) -> pd.DataFrame:
    """The steps at which the validation images were looked at."""
    return logs.dropna(subset=["validation_loss"])


def turning(logs: pd.DataFrame) -> pd.DataFrame:
    """Where validation loss was lowest: a row per task and seed.

    Columns task, seed, steps, lowest_at (step, the first of equal ones), lowest, last, accuracy (of
    the last validation).
    """
    rows = []
    for (task, seed), part in validated(logs).groupby(["task", "seed"], sort=True):
        loss = part["validation_loss"].round(9)
        best, end = part.loc[loss.idxmin()], part.iloc[-1]
        found = (int(end["step"]), int(best["step"]), best["validation_loss"])
        rows.append((task, seed, *found, end["validation_loss"], end["validation_accuracy"]))
    names = ["task", "seed", "steps", "lowest_at", "lowest", "last", "accuracy"]
    return pd.DataFrame(rows, columns=names)


def curves(logs: pd.DataFrame) -> Figure:
    """Learning rate, loss (batches thin, validation images thick) and accuracy, by step."""
    fig, (rate, loss, accuracy) = plt.subplots(1, 3, figsize=(9.5, 3.2))
    for k, ((task, _), part) in enumerate(logs.groupby(["task", "seed"], sort=True)):
        color, seen = plots.color(task, k), validated(part)
        rate.plot(part["step"], part["learning_rate"], color=plots.BASELINE)
        loss.plot(part["step"], part["loss"], color=color, linewidth=0.6, alpha=0.5)
        loss.plot(seen["step"], seen["validation_loss"], color=color, linewidth=2, label=task)
        accuracy.plot(seen["step"], seen["validation_accuracy"], color=color, linewidth=2)
    for ax, title in (
        (rate, "learning rate"),
        (loss, "cross-entropy"),
        (accuracy, "validation accuracy"),
    ):
        ax.set(xlabel="step", title=title)
    handles = loss.get_legend_handles_labels()
    fig.tight_layout(rect=(0, 0.1, 1, 1))
    fig.legend(*handles, loc="lower center", ncols=len(handles[0]), frameon=False)
    return fig
