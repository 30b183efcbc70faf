"""What the study's tables say: gains over the control, their spread over seeds and tasks.

Every comparison is of the same seed, pair of tasks and method, against the control of the same
number of steps, or against the curve of all controls at the same single-task accuracy.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from mergelib.core.errors import MergelibError
from mergelib.core.store import read_json, read_table
from mergelib.pairs.inference import interval, task_weights
from mergelib.pairs.tables import KEYS, ends, outcomes, pair_accuracy
from studies.training.stages import NAMED
from studies.training.variants import CONTROL

UNIT = ["seed", *KEYS]  # one merge of a method: both spreads are over these


@dataclass(frozen=True)
class Results:
    """The study's tables, in the columns of `studies.training.stages`.

    merges has raw (mean accuracy of both tasks), tuned (the same at the best scale), normalized and
    single (mean accuracy of the two single models) added.
    """

    merges: pd.DataFrame
    many: pd.DataFrame
    tasks: pd.DataFrame
    metrics: pd.DataFrame
    search: pd.DataFrame
    scales: pd.DataFrame
    meta: dict[str, Any]


def read(folder: Path) -> Results:
    """The tables in a folder. Raises MergelibError for a missing one."""
    names = ("merges", "many", "tasks", "metrics", "search", "scales")
    held = {name: read_table(Path(folder) / f"{name}.csv") for name in names}
    merges = outcomes(held["merges"])
    best = merges.rename(columns={"acc_a": "old_a", "acc_b": "old_b"})
    best = best.rename(columns={"best_a": "acc_a", "best_b": "acc_b"})
    single = merges[["single_a", "single_b"]].mean(axis=1)
    held["merges"] = merges.assign(tuned=pair_accuracy(best), single=single)
    return Results(**held, meta=read_json(Path(folder) / "meta.json"))


def searched(search: pd.DataFrame) -> pd.DataFrame:
    """The search's merges of pairs over the control of the same steps: gain and lost, in fractions.

    A row a variant: rule, strength, steps, raw (mean over methods), single, gain, lost.
    """
    pairs = search[search["models"] == 2].rename(columns={"fine_tuned": "single"})
    table = pairs.groupby(NAMED, sort=False)[["raw", "single"]].mean().reset_index()
    control = table[table["rule"] == CONTROL].set_index("steps")
    of = control.loc[table["steps"]].reset_index()
    return table.assign(gain=table["raw"] - of["raw"], lost=of["single"] - table["single"])


# ---- Spread over seeds and tasks ----------------------------------------------------------------


def weights(index: pd.MultiIndex, draws: int, seed: int) -> np.ndarray:
    """How often each (seed, task_a, task_b) counts in bootstrap samples, (draws, units).

    Tasks and seeds are drawn with replacement, each apart; a unit counts times of its seed x times
    of one task x times of the other.
    """
    frame = index.to_frame(index=False)
    of_pairs = task_weights(ends(pd.MultiIndex.from_frame(frame[KEYS])), draws, seed)
    number, seeds = pd.factorize(frame["seed"])
    rng = np.random.default_rng([seed, 6])
    times = rng.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), size=draws)
    return of_pairs * times[:, number]


def means(table: pd.DataFrame, value: str, draws: int = 0, seed: int = 0) -> pd.DataFrame:
    """Mean of a column of merges for each variant: over methods, then over seeds and pairs.

    Rows: the mean itself, then (if asked) bootstrap samples; columns: variants (rule, strength,
    steps). A sample of one task alone, which has no pair, is NaN. Raises MergelibError if a
    variant was not judged with every seed.
    """
    wide = table.groupby([*UNIT, *NAMED], sort=False)[value].mean().unstack(NAMED)
    if wide.isna().any(axis=None):
        lacking = wide.columns[wide.isna().any()][0]
        raise MergelibError(
            f"the study lacks merges of {lacking} with some seed: run it to its end"
        )
    held = np.vstack([np.ones(len(wide)), *([weights(wide.index, draws, seed)] if draws else [])])
    total = held.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return pd.DataFrame(held @ wide.to_numpy() / total, columns=wide.columns)


def summarized(drawn: pd.DataFrame) -> pd.DataFrame:
    """Mean and 95 % interval of each column of `means`-like draws: rule, strength, steps, …"""
    low, high = np.full((2, drawn.shape[1]), np.nan)
    known = drawn.iloc[1:].notna().any().to_numpy()
    low[known], high[known] = interval(drawn.to_numpy()[1:, known])
    named = drawn.columns.to_frame(index=False)
    return named.assign(mean=drawn.iloc[0].to_numpy(), low=low, high=high)


# ---- Gains --------------------------------------------------------------------------------------


def over_control(drawn: pd.DataFrame) -> pd.DataFrame:
    """Each variant's column of `means` minus that of the control of the same steps."""
    rules = [column for column in drawn.columns if column[0] != CONTROL]
    control = drawn[[(CONTROL, 0.0, column[2]) for column in rules]].to_numpy()
    return drawn[rules] - control


def at_equal_accuracy(raw: pd.DataFrame, single: pd.DataFrame) -> pd.DataFrame:
    """Each variant's raw accuracy minus the controls' at its single-task accuracy.

    The controls of all numbers of steps make a curve, raw by single-task accuracy, linear between
    them; NaN beyond its ends. `raw` and `single` from `means` with the same draws.
    """
    controls = [column for column in raw.columns if column[0] == CONTROL]
    rules = [column for column in raw.columns if column[0] != CONTROL]
    out = np.full((len(raw), len(rules)), np.nan)
    for k, (x, y) in enumerate(
        zip(single[controls].to_numpy(), raw[controls].to_numpy(), strict=True)
    ):
        order = np.argsort(x, kind="stable")
        at = single[rules].iloc[k].to_numpy()
        curve = np.interp(at, x[order], y[order], left=np.nan, right=np.nan)
        out[k] = raw[rules].iloc[k].to_numpy() - curve
    return pd.DataFrame(out, columns=pd.MultiIndex.from_tuples(rules, names=NAMED))


def of_same_seeds(table: pd.DataFrame) -> Iterator[tuple[int, pd.DataFrame]]:
    """The table in parts, each of rules judged with the same seeds and the controls that have them.

    With each the number of seeds. A study that goes on has more of them for some rules than for
    others. Raises MergelibError for a rule without a control of its steps and seeds.
    """
    seeds = table.groupby(NAMED, sort=False)["seed"].agg(frozenset)
    shared: dict[frozenset, list] = {}
    for variant in seeds.index[seeds.index.get_level_values("rule") != CONTROL]:
        control = seeds.get((CONTROL, 0.0, variant[2]), frozenset())
        if not (both := seeds[variant] & control):
            raise MergelibError(f"the study lacks a control of {variant}: run it to its end")
        shared.setdefault(both, []).append(variant)
    controls = [v for v in seeds.index if v[0] == CONTROL]
    named = pd.MultiIndex.from_frame(table[NAMED])
    for held, variants in shared.items():
        wanted = [*variants, *(v for v in controls if seeds[v] >= held)]
        yield len(held), table[named.isin(wanted) & table["seed"].isin(held)]


def gains(results: Results, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Every judged variant: what it gains in merges and loses in single models, in fractions.

    Columns: rule, strength, steps; gain, low, high (raw accuracy of merges of pairs over the
    control's, mean over methods, 95 % bootstrap interval over seeds and tasks); tuned, tuned_low,
    tuned_high (the same, both at their best scales); equal, equal_low, equal_high (over the
    controls at the same single-task accuracy) and both, both_low, both_high (that at the best
    scales); lost, lost_low, lost_high (single-task accuracy, control minus rule); normalized (its
    gain); raw and single (both themselves); seeds (how many the comparison is over, those of the
    variant and its controls).
    """
    parts = [
        _gains(part, draws, seed).assign(seeds=count)
        for count, part in of_same_seeds(results.merges)
    ]
    order = results.merges[NAMED].drop_duplicates()
    return order.merge(pd.concat(parts), on=NAMED)


def _gains(merges: pd.DataFrame, draws: int, seed: int) -> pd.DataFrame:
    drawn = {
        value: means(merges, value, draws, seed)
        for value in ("raw", "tuned", "normalized", "single")
    }
    table = summarized(over_control(drawn["raw"])).rename(columns={"mean": "gain"})
    others = {
        "tuned": over_control(drawn["tuned"]),
        "equal": at_equal_accuracy(drawn["raw"], drawn["single"]),
        "both": at_equal_accuracy(drawn["tuned"], drawn["single"]),
        "lost": -over_control(drawn["single"]),
    }
    for name, values in others.items():
        part = summarized(values).set_index(NAMED)
        renamed = {"mean": name, "low": f"{name}_low", "high": f"{name}_high"}
        table = table.join(part.rename(columns=renamed), on=NAMED)
    for name in ("normalized", "raw", "single"):
        one = drawn[name] if name != "normalized" else over_control(drawn[name])
        table = table.join(one.iloc[0].rename(name), on=NAMED)
    return table


def power(low: pd.Series, high: pd.Series, effect: float) -> np.ndarray:
    """Chance that a 95 % interval so wide excludes 0 where `effect` is true: Φ(effect/se − z).

    z = 1.96, se = (high − low) / 2z: a normal estimate of that spread.
    """
    z = norm.ppf(0.975)
    return norm.cdf(effect * 2 * z / (high - low) - z)


def by_method(
    results: Results, variant: Sequence, draws: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """A variant's gain by method: gain, low, high and at the best scales tuned, tuned_low, …"""
    rows = []
    held = results.merges
    control = (CONTROL, 0.0, variant[2])
    named = pd.MultiIndex.from_frame(held[NAMED])
    wanted = held[named.isin([tuple(variant), control])]
    ((_, both),) = of_same_seeds(wanted)
    for method, part in both.groupby("method", sort=False):
        row: dict[str, Any] = {"method": method}
        for value, name in (("raw", "gain"), ("tuned", "tuned")):
            found = summarized(over_control(means(part, value, draws, seed))).iloc[0]
            prefix = "" if name == "gain" else f"{name}_"
            row |= {
                name: found["mean"],
                f"{prefix}low": found["low"],
                f"{prefix}high": found["high"],
            }
        rows.append(row)
    return pd.DataFrame(rows)


def of_all(results: Results) -> pd.DataFrame:
    """Merges of all models at once: gain over the control, mean over tasks and methods.

    Columns: rule, strength, steps, seeds, gain, least, most (over seeds), tuned.
    """
    wide = {
        value: results.many.groupby(["seed", *NAMED], sort=False)[value].mean().unstack(NAMED)
        for value in ("acc", "best")
    }
    gain, tuned = (over_control(table) for table in wide.values())
    return pd.DataFrame(
        {
            "seeds": gain.count(),
            "gain": gain.mean(),
            "least": gain.min(),
            "most": gain.max(),
            "tuned": tuned.mean(),
        }
    ).reset_index()


def drivers(results: Results) -> pd.DataFrame:
    """How each metric moves with a rule, and whether the merges move with it.

    Rows: metrics; columns: rule-wise correlation `r_variants` of the change of the metric's mean
    with the gain of raw accuracy, over variants; and `r_pairs`, the mean over variants of the same
    correlation over the pairs of a variant (each the mean over seeds); n_variants, n_pairs.
    """
    names = [c for c in results.metrics.columns if c not in (*NAMED, *UNIT)]

    def change_of(table: pd.DataFrame, name: str) -> pd.DataFrame:
        """By pair and variant, mean over the seeds that variant and control have in common."""
        value = table.groupby([*UNIT, *NAMED], sort=False)[name].mean().unstack(NAMED)
        return over_control(value).groupby(level=KEYS, sort=False).mean()

    gain = change_of(results.merges, "raw")
    rows = []
    for name in names:
        change = change_of(results.metrics, name).reindex(index=gain.index, columns=gain.columns)
        each = [change[c].corr(gain[c]) for c in gain.columns]
        across = change.mean().corr(gain.mean())
        rows.append((name, across, float(np.nanmean(each)), len(gain.columns), len(gain)))
    return pd.DataFrame(rows, columns=["metric", "r_variants", "r_pairs", "n_variants", "n_pairs"])
