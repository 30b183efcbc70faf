"""The second world, real20, beside the glyph benchmark: its source, single metrics, its noise."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from mergelib.pairs.correlation import pearson
from mergelib.pairs.inference import permutation_p, permuted_targets
from mergelib.pairs.tables import BENCHMARK, Pairs
from mergelib.pairs.targets import target as target_of
from studies.description import sampling_sd
from studies.inputs import pairs_of, read_source
from studies.two_sources import Source


def second_world(folder: str) -> Source:
    """The tables of the folder `real` as a source named real20, with all its methods."""
    held = read_source(BENCHMARK, folder)
    return Source("In real20", "real20", held, pairs_of(held))


def without_weak(source: Source, least: float = 0.5) -> Source:
    """The source without the tasks whose fine-tuned model is right less often than `least`."""
    tasks = source.tables.tasks
    kept = set(tasks.loc[tasks["fine_tuned"] >= least, "task"])
    metrics, merges = (
        t[t["task_a"].isin(kept) & t["task_b"].isin(kept)]
        for t in (source.tables.metrics, source.tables.merges)
    )
    strong = tasks[tasks["task"].isin(kept)]
    held = replace(source.tables, metrics=metrics, merges=merges, tasks=strong)
    return replace(source, tables=held, pairs=pairs_of(held))


def left_and_noise(source: Source) -> pd.DataFrame:
    """By method: sd over pairs of the residual target, and the sd that test splits alone cause.

    noise is `sampling_sd`, an upper estimate; NaN where no numbers of test images are known.
    """
    left = target_of(source.pairs, "residual").std(axis=0, ddof=1)
    frame = pd.DataFrame({"left": left}, index=pd.Index(source.methods, name="method"))
    tasks = source.tables.tasks
    if "n_test" not in tasks or tasks["n_test"].isna().any():
        return frame.assign(noise=np.nan)
    return frame.assign(noise=sampling_sd(source.tables.merges, tasks))


def metric_r(
    pairs: Pairs, target: str, metrics: Sequence[str], draws: int = 0, seed: int = 0
) -> np.ndarray:
    """r of each metric alone with the target, mean over the methods: (1 + draws, n metrics).

    The first row is the true order, the others are QAP permutations of the tasks. Over all pairs.
    """
    y = target_of(pairs, target)
    every = np.concatenate([y[None], permuted_targets(y, pairs.ends, draws, seed)])
    X = pairs.X[:, [pairs.metrics.index(name) for name in metrics]]
    out = np.empty((len(every), X.shape[1]))
    for k, moved in enumerate(every):
        b = np.broadcast_to(moved[:, None, :], (*X.shape, moved.shape[1]))
        a = np.broadcast_to(X[:, :, None], b.shape)
        out[k] = pearson(a, b, ~np.isnan(b), axis=0).mean(axis=-1)
    return out


def largest(r: np.ndarray) -> tuple[float, float]:
    """Of `metric_r`: the 95 % point of the largest |r| on permuted tasks, and the observed one's p.

    The largest of each permutation, so the choice of the metric is allowed for.
    """
    most = np.nanmax(np.abs(r), axis=1)
    return float(np.quantile(most[1:], 0.95)), float(permutation_p(most[0], most[1:]))


def profiles_alike(one: np.ndarray, two: np.ndarray) -> tuple[float, float]:
    """r over the metrics of two worlds' `metric_r`, and its p: the tasks of the second permuted."""
    first = np.broadcast_to(one[0], two.shape)
    r = pearson(first, two, ~np.isnan(first * two), axis=1)
    return float(r[0]), float(permutation_p(r[0], r[1:]))


def foremost_metrics(table: pd.DataFrame, n: int = 3) -> list[str]:
    """The rows among the `n` of largest size, as printed, in some column: in the table's order."""
    sizes = table.abs().round(2)
    ranked = [sizes[c].sort_values(ascending=False, kind="stable").index[:n] for c in table]
    return [m for m in table.index if any(m in first for first in ranked)]


def beside_chance(table: pd.DataFrame, models: Sequence[str], model: str = "ridge") -> pd.Series:
    """Mean r over the methods of some forecasts, the mean 95 % point of `model`'s null after it."""
    mean = table.groupby("model", sort=False)["r"].mean()
    null = table.loc[table["model"] == model, "null_95"].mean()
    rows = {name: mean[name] for name in models}
    at = list(rows).index(model) + 1
    pairs = [*rows.items()]
    return pd.Series(dict([*pairs[:at], ("null_95", null), *pairs[at:]])).rename_axis("model")
