"""Tables of pairs: metrics and merges joined, ready for a fit, and what a merge kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mergelib.core.errors import MergelibError
from mergelib.core.registry import unknown
from mergelib.core.store import write_json, write_table

# The methods of the published final version: its fits keep a pair only if all five have it.
FINAL_METHODS = ("weight_avg", "arithmetic", "tsv", "ties", "dare")
KEYS = ["task_a", "task_b"]
BENCHMARK = "benchmark"  # the source of this library's own tables

MERGE_COLUMNS = [*KEYS, "method", "acc_a", "acc_b", "single_a", "single_b"]


@dataclass(frozen=True)
class Pairs:
    """The pairs that enter a fit.

    n pairs, p metrics, m methods; `ends` (n, 2) indexes `tasks`; `X` (n, p) raw metrics;
    `accuracy` and `single` (n, m, 2) fractions of the merged and of the fine-tuned models.
    `n_dropped` counts the pairs of the metrics table that did not enter.
    """

    tasks: tuple[str, ...]
    ends: np.ndarray
    metrics: tuple[str, ...]
    X: np.ndarray
    methods: tuple[str, ...]
    accuracy: np.ndarray
    single: np.ndarray
    n_dropped: int

    def __len__(self) -> int:
        return len(self.ends)


def assemble(
    metrics: pd.DataFrame,
    merges: pd.DataFrame,
    methods: Sequence[str],
    exclude: Sequence[str] = (),
    keep_incomplete: bool = False,
    require: Sequence[str] = FINAL_METHODS,
) -> Pairs:
    """Join metrics and merges into the pairs that enter a fit of `methods`.

    A pair enters if no metric of the table is missing and those methods of `require` that the
    table holds have merged it too (by default the released fits' rule, so that every method and
    every ablation sees the same pairs); with `keep_incomplete`, if the metrics in use and the
    methods asked for have it. Accuracies of several seeds are averaged. `exclude` names metric
    categories.

    Raises MergelibError for missing columns, repeated pairs, pairs of a task with itself,
    non-numeric metrics and unknown methods or categories.
    """
    need(merges, MERGE_COLUMNS, "merges table")
    known = list(dict.fromkeys(merges["method"]))
    for method in methods:
        if method not in known:
            raise MergelibError(unknown("method", method, known))
    keyed, order = _keyed(metrics)
    out = excluded_metrics(keyed.columns, exclude)
    used = [c for c in keyed.columns if c not in out]
    if not used:
        raise MergelibError("no metric is left after --exclude-category: exclude fewer categories")

    needed = list(dict.fromkeys(methods))
    if not keep_incomplete:
        needed += [m for m in require if m in known and m not in needed]
    values = _oriented(merges[merges["method"].isin(needed)], order)
    here = keyed[used if keep_incomplete else keyed.columns].notna().all(axis=1)
    for method in needed:
        have = values.loc[values["method"] == method].dropna().set_index("key").index
        here &= keyed.index.isin(have)
    rows = sorted(keyed.index[here])
    if len(rows) < 3:
        raise MergelibError(
            f"only {len(rows)} pairs have all metrics and merges: a fit needs at least 3 "
            "(do the two tables hold the same tasks? --keep-incomplete drops fewer pairs)"
        )
    blocks = [values[values["method"] == m].set_index("key").loc[rows] for m in methods]
    accuracy, single = (
        np.stack([b[[f"{stem}_a", f"{stem}_b"]].to_numpy(np.float64) for b in blocks], axis=1)
        for stem in ("acc", "single")
    )
    ends = np.array(rows, dtype=np.intp)
    X = keyed.loc[rows, used].to_numpy(np.float64)
    dropped = len(keyed) - len(rows)
    return Pairs(tuple(order), ends, tuple(used), X, tuple(methods), accuracy, single, dropped)


def _keyed(metrics: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """The metrics in float64, indexed by pairs of task numbers, and those numbers by task."""
    need(metrics, KEYS, "metrics table")
    columns = [c for c in metrics.columns if c not in KEYS]
    if not columns:
        raise MergelibError("the metrics table has no metric column beside task_a and task_b")
    for column in columns:
        if not pd.api.types.is_numeric_dtype(metrics[column]):
            raise MergelibError(f"metrics table: column {column!r} holds values that are no number")
    order = {task: k for k, task in enumerate(dict.fromkeys(metrics[KEYS].to_numpy().ravel()))}
    keyed = metrics.assign(key=_keys(metrics, order, "metrics table"))
    if keyed["key"].duplicated().any():
        a, b = keyed.loc[keyed["key"].duplicated(), KEYS].iloc[0]
        raise MergelibError(f"metrics table: the pair {a}, {b} occurs twice: keep one row a pair")
    keyed = keyed.set_index("key")[columns].astype(np.float64)
    return keyed.replace([np.inf, -np.inf], np.nan), order


def excluded_metrics(columns: Sequence[str], categories: Sequence[str]) -> list[str]:
    """The columns whose category (as `mergelib.metrics` registers it) is among `categories`."""
    if not categories:
        return []
    from mergelib.metrics.registry import METRICS

    category = {row.name: row.category for row in METRICS.rows()}
    plain = {_plain(c): c for c in dict.fromkeys(category.values())}
    wanted = set()
    for name in categories:
        if _plain(name) not in plain:
            raise MergelibError(unknown("category", name, plain.values()))
        wanted.add(plain[_plain(name)])
    return [c for c in columns if category.get(c) in wanted]


def _plain(name: str) -> str:
    return name.lower().replace("_", " ").replace("-", " ")


def _keys(frame: pd.DataFrame, order: dict[str, int], what: str) -> list[tuple[int, int]]:
    keys = []
    for a, b in frame[KEYS].itertuples(index=False):
        if a == b:
            raise MergelibError(f"{what}: the pair {a}, {b} is one task twice: a pair needs two")
        i, j = order[a], order[b]
        keys.append((min(i, j), max(i, j)))
    return keys


def _oriented(merges: pd.DataFrame, order: dict[str, int]) -> pd.DataFrame:
    """Seed-averaged accuracies keyed by pair, `_a` belonging to the earlier task."""
    inside = merges["task_a"].isin(list(order)) & merges["task_b"].isin(list(order))
    frame = merges[inside].copy()
    for column in ("acc_a", "acc_b", "single_a", "single_b"):
        if not pd.api.types.is_numeric_dtype(frame[column]):
            raise MergelibError(f"merges table: column {column!r} holds values that are no number")
    frame["key"] = _keys(frame, order, "merges table")
    swap = (frame["task_a"].map(order) > frame["task_b"].map(order)).to_numpy()
    for stem in ("acc", "single"):
        a, b = frame[f"{stem}_a"].to_numpy(np.float64), frame[f"{stem}_b"].to_numpy(np.float64)
        frame[f"{stem}_a"], frame[f"{stem}_b"] = np.where(swap, b, a), np.where(swap, a, b)
    numbers = ["acc_a", "acc_b", "single_a", "single_b"]
    return frame.groupby(["method", "key"], sort=False)[numbers].mean().reset_index()


# ---- Accuracy of a merge ------------------------------------------------------------------------


def raw(accuracy: np.ndarray) -> np.ndarray:
    """Mean accuracy of the merged model on the pair's two tasks, (n, m) from (n, m, 2).

    The target of the released fits.
    """
    return accuracy.mean(axis=-1)


def normalized(accuracy: np.ndarray, single: np.ndarray) -> np.ndarray:
    """Mean of accuracy / single-task accuracy over the two tasks, (n, m).

    The target that the paper's text names. A single-task accuracy of 0 gives inf.
    """
    return (accuracy / single).mean(axis=-1)


def pair_accuracy(merges: pd.DataFrame, unit: str | None = None) -> np.ndarray:
    """`raw` accuracy of each row of a merges table, or `normalized` by the columns of `unit`, (n,).

    `unit` names them without _a and _b: "single" for the fine-tuned models'.
    """
    accuracy = merges[["acc_a", "acc_b"]].to_numpy(np.float64)
    if unit is None:
        return raw(accuracy)
    return normalized(accuracy, merges[[f"{unit}_a", f"{unit}_b"]].to_numpy(np.float64))


def outcomes(merges: pd.DataFrame) -> pd.DataFrame:
    """The merges table with `raw` and `normalized` accuracy added.

    Raises MergelibError for a missing column or a single-task accuracy that is not positive.
    """
    single = ["single_a", "single_b"]
    need(merges, [*KEYS, "acc_a", "acc_b", *single], "merges table")
    if not (merges[single] > 0).all(axis=None):
        raise MergelibError("merges table: single_a and single_b must be above 0 to normalize by")
    return merges.assign(raw=pair_accuracy(merges), normalized=pair_accuracy(merges, "single"))


def check_once(merges: pd.DataFrame) -> None:
    """Raise MergelibError if a pair and method come twice (several seeds)."""
    again = merges.duplicated([*KEYS, "method"])
    if again.any():
        a, b, method = merges.loc[again, [*KEYS, "method"]].iloc[0]
        raise MergelibError(f"the pair {a}, {b} is merged by {method} twice: choose one seed first")


def identical(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """What two merges tables share bit for bit, by method in the order of the first.

    Index method; pairs that both have merged, identical (of these with both accuracies equal),
    and equal of `of` accuracies.
    """
    joined = one.merge(other, on=[*KEYS, "method"], suffixes=("", "_other"))
    a, b = (joined[side] == joined[f"{side}_other"] for side in ("acc_a", "acc_b"))
    counts = {"pairs": 1, "identical": (a & b).astype(int), "equal": a.astype(int) + b, "of": 2}
    return joined[["method"]].assign(**counts).groupby("method", sort=False).sum()


def ends(pairs: pd.MultiIndex) -> np.ndarray:
    """Numbers of the two tasks of every pair, (n, 2)."""
    names = np.stack([np.asarray(pairs.get_level_values(k), dtype=str) for k in (0, 1)], axis=1)
    return np.unique(names, return_inverse=True)[1].reshape(-1, 2)


def need(frame: pd.DataFrame, names: Sequence[str], what: str) -> None:
    """Raise MergelibError if a table lacks one of the columns `names`; `what` is its name."""
    missing = [name for name in names if name not in frame]
    if missing:
        found = ", ".join(map(str, frame.columns))
        raise MergelibError(f"{what}: no column {', '.join(missing)}; it has {found}")


@dataclass(frozen=True)
class Tables:
    """Metrics, merges and tasks tables, their meta record, and the methods that enter fits."""

    metrics: pd.DataFrame
    merges: pd.DataFrame
    tasks: pd.DataFrame
    meta: dict[str, Any]
    methods: tuple[str, ...]


def write_setting(tables: Tables, folder: Path) -> None:
    """metrics.csv, merges.csv, tasks.csv and meta.json in `folder`."""
    write_table(folder / "metrics.csv", tables.metrics)
    write_table(folder / "merges.csv", tables.merges)
    write_table(folder / "tasks.csv", tables.tasks)
    write_json(folder / "meta.json", tables.meta)
