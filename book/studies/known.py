"""Is it known of every task what a forecast asks for?"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mergelib.pairs.covariates import NEEDED
from mergelib.pairs.tables import Pairs


def has_values(pairs: Pairs, tasks: pd.DataFrame, names: Sequence[str] = NEEDED) -> bool:
    """Does the table of tasks have the columns `names`, with a value for every task in a pair?"""
    if not {"task", *names} <= set(tasks.columns):
        return False
    used = [pairs.tasks[k] for k in np.unique(pairs.ends)]
    values = tasks.drop_duplicates("task").set_index("task").reindex(used)[list(names)]
    return bool(values.notna().all(axis=None))
