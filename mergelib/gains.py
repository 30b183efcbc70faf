"""What a change in training gains over its control: differences between runs paired by seed."""

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd

from mergelib.describe import bootstrap_mean, ends
from mergelib.errors import MergelibError
from mergelib.predict.inference import interval

PAIR = ("task_a", "task_b")


def gains(
    frame: pd.DataFrame,
    value: str,
    units: Sequence[str] = PAIR,
    by: str = "strength",
    control: float = 0.0,
) -> pd.DataFrame:
    """Value minus the control's value of the same unit, method (if there is one) and seed.

    `units` names the columns of what is measured, a pair of tasks or one task. Columns: units,
    method, seed, `by`, control, value, gain; one row per row of `frame` that is not the control
    and has a partner there. The value of each run is its own: pass normalized accuracy with the
    single-task accuracies of the same run as denominators.
    Raises MergelibError for missing columns, repeated rows, and if no row has a partner.
    """
    keys = [*units, *(["method"] if "method" in frame else []), "seed"]
    missing = [name for name in (*keys, by, value) if name not in frame]
    if missing:
        raise MergelibError(f"the table has no column {missing[0]}: it has {list(frame.columns)}")
    if frame.duplicated([*keys, by]).any():
        raise MergelibError(f"the table repeats a row of the same {', '.join([*keys, by])}")
    kept = frame[[*keys, by, value]]
    mask = kept[by] == control
    base = kept[mask].drop(columns=by).rename(columns={value: "control"})
    joined = kept[~mask].rename(columns={value: "value"}).merge(base, on=keys)
    if not len(joined):
        raise MergelibError(
            f"no row has a control ({by} = {control:g}) of the same {', '.join(keys)}: run it too"
        )
    return joined.assign(gain=joined["value"] - joined["control"])


def summarize_gains(
    table: pd.DataFrame,
    units: Sequence[str] = PAIR,
    by: str = "strength",
    draws: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Per method (if there is one) and `by`: the mean gain and its two spreads.

    `mean` over units of the gain averaged over seeds; `low`, `high` its 95 % task-bootstrap
    interval, the seeds taken as given; `seed_sd` the sd (n − 1) over seeds of the mean over
    units, `seed_min` and `seed_max` its extremes; `units`, `seeds` how many.
    """
    groups = [*(["method"] if "method" in table else []), by]
    rows = []
    for names, part in table.groupby(groups, sort=False):
        each = part.groupby(list(units) if len(units) > 1 else units[0], sort=False)["gain"].mean()
        seeds = part.groupby("seed")["gain"].mean()
        low, high = interval(_bootstrap(each, draws, seed))
        rows.append(
            {
                **dict(zip(groups, names, strict=True)),
                "units": len(each),
                "seeds": len(seeds),
                "mean": each.mean(),
                "low": float(low),
                "high": float(high),
                "seed_sd": seeds.std(ddof=1),
                "seed_min": seeds.min(),
                "seed_max": seeds.max(),
            }
        )
    return pd.DataFrame(rows)


def _bootstrap(each: pd.Series, draws: int, seed: int) -> np.ndarray:
    if isinstance(each.index, pd.MultiIndex):  # pairs
        return bootstrap_mean(each.to_numpy(), ends(each.index), draws, seed)
    rng = np.random.default_rng([seed, 5])
    chosen = rng.integers(len(each), size=(draws, len(each)))
    return each.to_numpy()[chosen].mean(axis=1)


def retraining(
    frame: pd.DataFrame, value: str, by: str = "strength", control: float = 0.0
) -> pd.DataFrame:
    """The yardstick of a gain: what training the control again with another seed changes.

    One row per method (if there is one) and two seeds: `change`, the mean of the value over the
    rows of seed_b minus that of seed_a.
    Raises MergelibError unless the control was run with two seeds or more.
    """
    base = frame[frame[by] == control]
    method = ["method"] if "method" in frame else []
    means = base.groupby([*method, "seed"], sort=False)[value].mean()
    seeds = sorted(base["seed"].unique())
    if len(seeds) < 2:
        raise MergelibError(
            f"the control ({by} = {control:g}) has {len(seeds)} seed: its spread needs two or more"
        )
    rows = []
    for name in dict.fromkeys(base["method"]) if method else [None]:
        each = means[name] if method else means
        for a, b in itertools.combinations(seeds, 2):
            named = {"method": name} if method else {}
            rows.append({**named, "seed_a": a, "seed_b": b, "change": each[b] - each[a]})
    return pd.DataFrame(rows)
