"""The two tables joined: one row per pair of tasks, ready for a fit."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mergelib.errors import MergelibError
from mergelib.registry import unknown

# The methods of the published final version: its fits keep a pair only if all five have it.
FINAL_METHODS = ("weight_avg", "arithmetic", "tsv", "ties", "dare")
KEYS = ["task_a", "task_b"]
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
) -> Pairs:
    """Join metrics and merges into the pairs that enter a fit of `methods`.

    A pair enters if no metric of the table is missing and all published final methods that the
    table holds have merged it (the released fits' rule, so that every method and every ablation
    sees the same pairs); with `keep_incomplete`, if the metrics in use and the methods asked for
    have it. Accuracies of several seeds are averaged. `exclude` names metric categories.

    Raises MergelibError for missing columns, repeated pairs, pairs of a task with itself,
    non-numeric metrics and unknown methods or categories.
    """
    _need(metrics, KEYS, "metrics table")
    _need(merges, MERGE_COLUMNS, "merges table")
    columns = [c for c in metrics.columns if c not in KEYS]
    if not columns:
        raise MergelibError("the metrics table has no metric column beside task_a and task_b")
    for column in columns:
        if not pd.api.types.is_numeric_dtype(metrics[column]):
            raise MergelibError(f"metrics table: column {column!r} holds values that are no number")
    known = list(dict.fromkeys(merges["method"]))
    for method in methods:
        if method not in known:
            raise MergelibError(unknown("method", method, known))
    used = [c for c in columns if c not in excluded_metrics(columns, exclude)]
    if not used:
        raise MergelibError("no metric is left after --exclude-category: exclude fewer categories")

    order = {task: k for k, task in enumerate(dict.fromkeys(metrics[KEYS].to_numpy().ravel()))}
    keyed = metrics.assign(key=_keys(metrics, order, "metrics table"))
    if keyed["key"].duplicated().any():
        a, b = keyed.loc[keyed["key"].duplicated(), KEYS].iloc[0]
        raise MergelibError(f"metrics table: the pair {a}, {b} occurs twice: keep one row a pair")
    keyed = keyed.set_index("key")[columns].astype(np.float64)
    keyed = keyed.replace([np.inf, -np.inf], np.nan)

    needed = list(dict.fromkeys(methods))
    if not keep_incomplete:
        needed += [m for m in FINAL_METHODS if m in known and m not in needed]
    values = _oriented(merges[merges["method"].isin(needed)], order)
    here = keyed[used if keep_incomplete else columns].notna().all(axis=1)
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
    pick = lambda names: np.stack([b[names].to_numpy(np.float64) for b in blocks], axis=1)  # noqa: E731
    return Pairs(
        tasks=tuple(order),
        ends=np.array(rows, dtype=np.intp),
        metrics=tuple(used),
        X=keyed.loc[rows, used].to_numpy(np.float64),
        methods=tuple(methods),
        accuracy=pick(["acc_a", "acc_b"]),
        single=pick(["single_a", "single_b"]),
        n_dropped=len(keyed) - len(rows),
    )


def excluded_metrics(columns: Sequence[str], categories: Sequence[str]) -> list[str]:
    """The columns whose category (as `mergelib.metrics` registers it) is among `categories`."""
    if not categories:
        return []
    from mergelib.metrics import METRICS

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


def _need(frame: pd.DataFrame, names: Sequence[str], what: str) -> None:
    missing = [n for n in names if n not in frame.columns]
    if missing:
        found = ", ".join(map(str, frame.columns))
        raise MergelibError(f"{what}: no column {', '.join(missing)}; it has {found}")


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
