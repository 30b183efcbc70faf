"""The bank's forecasts judged: the tables that the chapter reads."""

from pathlib import Path

import pandas as pd

from mergelib.core.store import read_table
from mergelib.forecasting.bank import Bank
from mergelib.forecasting.forecaster import Level, columns, paired
from mergelib.forecasting.moments import moments_of_pairs
from studies.forecasting import scores
from studies.forecasting.baselines import attainable, baselines
from studies.forecasting.protocol import evaluate

JUDGED: dict[str, Level] = {  # by what it is called in the tables
    "weights": (True, False, ""),
    "known": (False, True, ""),
    "weights + known": (True, True, ""),
    "features": (False, False, "features"),
    "features + known": (False, True, "features"),
    "unlabelled": (False, False, "scores"),
    "unlabelled + known": (False, True, "scores"),
    "unlabelled + known + weights": (True, True, "scores"),
    "labelled": (False, False, "labels"),
    "labelled + known": (False, True, "labels"),
    "labelled + known + weights": (True, True, "labels"),
}


def judge(bank: Bank, folder: Path) -> dict[str, pd.DataFrame]:
    """Tables errors, coverage, probabilities and regrets (columns in `scores`), and attainable.

    Baselines are of the world's run whose tables lie in the bank's folder.
    """
    of_pairs = moments_of_pairs(bank)
    sizes = bank.sizes.tolist()
    held = {k: read_table(folder / f"{k}.csv") for k in ("metrics", "merges", "tasks")}
    plain = {k: v.drop(columns="world") for k, v in held.items()}
    outcomes = {
        name: evaluate(bank, of_pairs, columns(level), paired(level))
        for name, level in JUDGED.items()
    }
    forecasts = baselines(bank, plain["metrics"], plain["merges"], plain["tasks"])
    forecasts |= {name: found.mean for name, found in outcomes.items()}
    return {
        "errors": scores.errors(bank, forecasts, sizes),
        "coverage": scores.coverage(bank, outcomes, sizes),
        "probabilities": scores.probabilities(bank, outcomes, sizes),
        "regrets": scores.regrets(bank, forecasts, sizes),
        "attainable": attainable(bank, plain["merges"], plain["tasks"]),
    }
