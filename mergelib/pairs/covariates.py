"""What is known of the tasks before any merge, as features of a pair."""

from dataclasses import replace

import numpy as np
import pandas as pd

from mergelib.core.errors import MergelibError
from mergelib.pairs.tables import Pairs

ACCURACIES = ("zero_shot", "fine_tuned")
NEEDED = (*ACCURACIES, "n_classes", "n_train")


def with_task_covariates(pairs: Pairs, tasks: pd.DataFrame) -> Pairs:
    """The pairs with ten more columns: mean and |difference| of five quantities of the two tasks.

    Zero-shot accuracy, fine-tuned accuracy, their ratio (how much the base already knows), log
    number of classes, log number of training images: all known before merging. Under
    leave-two-tasks-out they are all that tells one unseen task's main effect from another's.

    Raises MergelibError for a missing column, task or value.
    """
    absent = [c for c in ("task", *NEEDED) if c not in tasks.columns]
    if absent:
        found = ", ".join(map(str, tasks.columns))
        raise MergelibError(f"tasks table: no column {', '.join(absent)}; it has {found}")
    known = tasks.drop_duplicates("task").set_index("task")
    absent = [t for t in pairs.tasks if t not in known.index]
    if absent:
        raise MergelibError(f"tasks table: no row for {', '.join(absent)}")
    values = known.loc[list(pairs.tasks), list(NEEDED)].to_numpy(np.float64)
    used = np.unique(pairs.ends)
    for name, column in zip(NEEDED, values.T, strict=True):
        if not (np.isfinite(column[used]) & (column[used] > 0)).all():
            raise MergelibError(f"tasks table: {name} is missing or not above 0 for some task")
    zero_shot, fine_tuned, classes, images = values.T
    of_task = {
        "zero_shot": zero_shot,
        "fine_tuned": fine_tuned,
        "base_knowledge": zero_shot / fine_tuned,
        "log_n_classes": np.log(classes),
        "log_n_train": np.log(images),
    }
    names, columns = [], []
    for name, value in of_task.items():
        first, second = value[pairs.ends[:, 0]], value[pairs.ends[:, 1]]
        names += [f"mean:{name}", f"difference:{name}"]
        columns += [(first + second) / 2, np.abs(first - second)]
    return replace(
        pairs,
        metrics=(*pairs.metrics, *names),
        X=np.column_stack([pairs.X, *columns]),
    )
