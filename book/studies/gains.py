"""What a change in training gains over its control, and how much training again changes.

Tables hold one row per unit (a pair of tasks, or a task), method, `variant` (what was changed in
training) and `run` (one training of that variant: a seed, or the name of a released file).
"""

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd

from mergelib.core.errors import MergelibError
from mergelib.pairs.inference import interval, task_weights
from mergelib.pairs.tables import KEYS, ends
from studies.spread import drawn_means


def gains(
    frame: pd.DataFrame,
    value: str,
    control: str,
    units: Sequence[str] = KEYS,
    paired: bool = True,
) -> pd.DataFrame:
    """Value minus the control's value of the same unit and method (if there is one).

    `paired`: the control's value is that of the same run (seed); otherwise the mean over its runs.
    `units` names the columns of what is measured. Columns: units, method, variant, run, value,
    control, gain; one row per row of `frame` that is not the control, has a value and a partner.
    Raises MergelibError for missing columns, repeated rows, and if no row has a partner.
    """
    keys, kept = _checked(frame, value, units)
    mask = kept["variant"] == control
    on = [*keys, "run"] if paired else keys
    base = kept[mask].groupby(on, sort=False)[value].mean().rename("control").reset_index()
    joined = kept[~mask].rename(columns={value: "value"}).merge(base, on=on)
    if not len(joined):
        same = ", ".join(on)
        raise MergelibError(
            f"no row has a control (variant {control!r}) of the same {same}: add it"
        )
    return joined.assign(gain=joined["value"] - joined["control"])


def against_others(
    frame: pd.DataFrame, value: str, control: str, units: Sequence[str] = KEYS
) -> pd.DataFrame:
    """Each run of the control minus the mean of its other runs, in the columns of `gains`.

    What training the control once more changes, with nothing else changed.
    Raises MergelibError for missing columns, repeated rows and a control of one run.
    """
    keys, kept = _checked(frame, value, units)
    base = _runs(kept, control)
    total = base.groupby(keys, sort=False)[value].transform("sum")
    count = base.groupby(keys, sort=False)[value].transform("count")
    base = base[count > 1].rename(columns={value: "value"})
    others = (total - base["value"])[count > 1] / (count[count > 1] - 1)
    return base.assign(control=others, gain=base["value"] - others)


def retraining(
    frame: pd.DataFrame, value: str, control: str, units: Sequence[str] = KEYS
) -> pd.DataFrame:
    """The yardstick of a gain: how two runs of the control differ.

    One row per method (if there is one) and two runs: run_a, run_b, `change`, the mean over their
    common units of run_b's value minus run_a's.
    Raises MergelibError for missing columns, repeated rows and a control of one run.
    """
    keys, kept = _checked(frame, value, units)
    base = _runs(kept, control)
    rows = []
    for name in dict.fromkeys(base["method"]) if "method" in keys else [None]:
        part = base if name is None else base[base["method"] == name]
        wide = part.pivot(index=list(units), columns="run", values=value)
        named = {} if name is None else {"method": name}
        for a, b in itertools.combinations(dict.fromkeys(part["run"]), 2):
            change = (wide[b] - wide[a]).mean()
            rows.append({**named, "run_a": a, "run_b": b, "change": change})
    return pd.DataFrame(rows)


def _checked(
    frame: pd.DataFrame, value: str, units: Sequence[str]
) -> tuple[list[str], pd.DataFrame]:
    keys = [*units, *(["method"] if "method" in frame else [])]
    names = [*keys, "variant", "run"]
    missing = [name for name in (*names, value) if name not in frame]
    if missing:
        raise MergelibError(f"the table has no column {missing[0]}: it has {list(frame.columns)}")
    if frame.duplicated(names).any():
        raise MergelibError(f"the table repeats a row of the same {', '.join(names)}")
    return keys, frame[[*names, value]].dropna(subset=value)


def _runs(kept: pd.DataFrame, control: str) -> pd.DataFrame:
    base = kept[kept["variant"] == control]
    count = base["run"].nunique()
    if count < 2:
        raise MergelibError(
            f"the control (variant {control!r}) has {count} run: its spread needs two or more"
        )
    return base


def summarize_gains(
    table: pd.DataFrame,
    units: Sequence[str] = KEYS,
    by: Sequence[str] = ("variant",),
    draws: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Per method (if there is one) and `by`: the mean gain and its two spreads.

    `mean` over units of the gain averaged over runs; `low`, `high` its 95 % task-bootstrap
    interval, the runs taken as given; `run_sd` the sd (n − 1) over runs of the mean over units,
    `run_min` and `run_max` its extremes; `units`, `runs` how many.
    """
    groups = [*(["method"] if "method" in table else []), *by]
    named = list(units) if len(units) > 1 else units[0]
    wide = table.pivot_table(index=named, columns=groups, values="gain", sort=False)
    weights = _weights(wide.index, draws, seed)
    rows = []
    for names, part in table.groupby(groups, sort=False):
        each = part.groupby(named, sort=False)["gain"].mean()
        runs = part.groupby("run")["gain"].mean()
        held = weights[:, wide.index.get_indexer(each.index)]
        low, high = interval(drawn_means(held, each.to_numpy()))
        rows.append(
            {
                **dict(zip(groups, names, strict=True)),
                "units": len(each),
                "runs": len(runs),
                "mean": each.mean(),
                "low": float(low),
                "high": float(high),
                "run_sd": runs.std(ddof=1),
                "run_min": runs.min(),
                "run_max": runs.max(),
            }
        )
    return pd.DataFrame(rows)


def _weights(index: pd.Index, draws: int, seed: int) -> np.ndarray:
    """How often each unit counts in bootstrap samples of tasks, (draws, units)."""
    if isinstance(index, pd.MultiIndex):  # pairs
        return task_weights(ends(index), draws, seed)
    rng = np.random.default_rng([seed, 5])
    chosen = rng.integers(len(index), size=(draws, len(index)))
    return (chosen[..., None] == np.arange(len(index))).sum(axis=1).astype(np.float64)
