"""What a category of metrics adds: fits without it, fits with it alone, paired by fold."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from mergelib.metrics.registry import categories
from mergelib.pairs.correlation import pearson, pooled, score
from mergelib.pairs.covariates import with_task_covariates
from mergelib.pairs.inference import bootstrap_r, interval
from mergelib.pairs.tables import Pairs
from mergelib.pairs.targets import target as target_of
from mergelib.predict.crossval import fold_seeds, held_out
from mergelib.predict.splits import SPLITS, fold_masks, splitter
from studies.known import has_values
from studies.quick_qap import batched_qap
from studies.spread import fold_interval, fold_sd


def restrict(pairs: Pairs, names: list[str]) -> Pairs:
    """The same pairs with some of the metrics, in the table's order."""
    keep = [k for k, name in enumerate(pairs.metrics) if name in set(names)]
    return replace(pairs, metrics=tuple(pairs.metrics[k] for k in keep), X=pairs.X[:, keep])


def category_sets(pairs: Pairs) -> list[tuple[str, str, list[str]]]:
    """(change, category, metrics): all of them, then without and only each category."""
    of = categories(pairs.metrics)
    found = list(dict.fromkeys(of.values()))
    without = [("without", c, [m for m in of if of[m] != c]) for c in found]
    only = [("only", c, [m for m in of if of[m] == c]) for c in found]
    return [("all", "", list(of)), *(s for s in (*without, *only) if s[2])]


def ablation(
    pairs: Pairs,
    target: str = "normalized",
    split: str = "loto",
    predictor: str = "ridge",
    relabel: int = 0,
    starts: int = 1,
    seed: int = 0,
    draws: int = 2000,
    changes: Sequence[str] = ("without", "only"),
) -> pd.DataFrame:
    """Every method without, and with only, each category of metrics, on the same folds.

    One row per method, change ("all", "without", "only") and category: n_metrics, r (the split's
    headline statistic), r_all, difference = r - r_all with its 95 % interval low, high (fold
    differences of all metrics and some, paired, folds drawn with replacement; for leave-two-out
    the tasks drawn, both predictions on the same draw), fold_sd (of the paired differences),
    worse (share of folds that lose), n_folds. With `relabel` QAP draws null_mean, null_95 and p
    of r: the null depends on the number of metrics. With several `starts` of a random predictor r
    is their mean and start_sd the standard deviation of the difference over them. `changes`
    chooses between "without" and "only"; "all" comes first in any case.
    """
    sets = [
        ({"change": change, "category": category}, restrict(pairs, names))
        for change, category, names in category_sets(pairs)
        if change in ("all", *changes)
    ]
    table = _against_first(sets, target, split, predictor, relabel, starts, seed, draws)
    return table.rename(columns={"r_first": "r_all"})


def beside_known(
    pairs: Pairs,
    tasks: pd.DataFrame,
    target: str = "normalized",
    split: str = "l2to",
    predictor: str = "ridge",
    relabel: int = 0,
    seed: int = 0,
    draws: int = 2000,
) -> pd.DataFrame:
    """What the metrics add to what the tasks table knows before any merge.

    As `ablation`, with `features` "known" (the ten columns of `with_task_covariates`), "metrics"
    and "both"; difference = r - r_known, paired. Where `tasks` lacks a value of some task, only
    the metrics' r is a number, the rest NaN.
    """
    if not has_values(pairs, tasks):
        labels = [{"features": name} for name in ("known", "metrics", "both")]
        alone = _against_first([(labels[1], pairs)], target, split, predictor, 0, 1, seed, draws)
        alone = alone[["method", "features", "n_metrics", "r"]]
        rows = pd.DataFrame([{"method": m, **f} for f in labels for m in pairs.methods])
        columns = ["r_known", "difference", "low", "high"]
        table = rows.merge(alone, how="left").assign(**dict.fromkeys(columns, np.nan))
        return table.astype({"n_metrics": "Int64"})
    both = with_task_covariates(pairs, tasks)
    new = [name for name in both.metrics if name not in set(pairs.metrics)]
    sets = [
        ({"features": "known"}, restrict(both, new)),
        ({"features": "metrics"}, pairs),
        ({"features": "both"}, both),
    ]
    table = _against_first(sets, target, split, predictor, relabel, 1, seed, draws)
    return table.rename(columns={"r_first": "r_known"})


def _against_first(sets, target, split, predictor, relabel, starts, seed, draws) -> pd.DataFrame:
    """Fit each of the labelled feature sets; pair its scores with those of the first."""
    pairs = sets[0][1]
    y = target_of(pairs, target)
    _, train, test = fold_masks(splitter(split, seed), pairs.ends, pairs.tasks)
    m, statistic = y.shape[1], SPLITS[split].headline
    every = np.tile(y, (1, starts))
    each = [fold_seeds(seed + k, pairs.methods, len(train)) for k in range(starts)]
    seeds = np.concatenate(each, axis=1)
    frames, first = [], None
    for label, part in sets:
        fit = held_out(predictor, part.X, every, pairs.ends, train, test, None, seeds)
        scores = score(fit.prediction, every, test)
        r = getattr(scores, statistic).reshape(starts, m)
        folds = scores.r_folds.reshape(len(train), starts, m).mean(axis=1)
        once = pooled(fit.prediction, test)[:, :m]
        first = first or (r, folds, once)
        table = pd.DataFrame(
            {
                "method": pairs.methods,
                **label,
                "n_metrics": len(part.metrics),
                "r": r.mean(axis=0),
                "r_first": first[0].mean(axis=0),
                "difference": (r - first[0]).mean(axis=0),
                "start_sd": (r - first[0]).std(axis=0, ddof=1) if starts > 1 else 0.0,
            }
        )
        if SPLITS[split].spread == "folds":
            paired = folds - first[1]
            table["low"], table["high"] = fold_interval(paired, draws, seed)
            table["fold_sd"] = fold_sd(paired)
            table["worse"] = (paired < 0).mean(axis=0)
        else:
            spread = [_paired_bootstrap(once, first[2], y, pairs, k, draws, seed) for k in range(m)]
            table["low"], table["high"] = np.array(spread).T
        table["n_folds"] = len(train)
        if relabel:
            null = batched_qap(
                predictor, part.X, y, pairs.ends, train, test, relabel, None, seed, pairs.methods
            )
            table["null_mean"] = null.mean(statistic)
            table["null_95"] = null.point95(statistic)
            table["p"] = null.p(statistic)
        frames.append(table)
    return pd.concat(frames, ignore_index=True)


def _paired_bootstrap(once, whole, y, pairs: Pairs, k: int, draws: int, seed: int):
    """95 % interval of the difference of pooled r of two predictions on the same task draws."""
    held = ~np.isnan(once[:, k])
    with np.errstate(invalid="ignore"):  # a draw of one task alone has no pair
        some, every = (
            bootstrap_r(p[held, k], y[held, k], pairs.ends[held], draws, seed)
            for p in (once, whole)
        )
    return interval(some - every)


def redundancy(pairs: Pairs) -> pd.DataFrame:
    """How far the other categories already hold each metric.

    metric, category, r2_others (adjusted R^2 of least squares of the metric on all metrics of the
    other categories), nearest (the metric of another category with the largest |r|), r_nearest,
    and r_single (r with the mean accuracy of the pair's fine-tuned models).
    A metric with r2_others near 1 can be taken away without taking away what it says.
    """
    of = categories(pairs.metrics)
    X = (pairs.X - pairs.X.mean(axis=0)) / np.where(pairs.X.std(axis=0) > 0, pairs.X.std(axis=0), 1)
    n = len(X)
    single = pairs.single.mean(axis=(1, 2))
    r_single = pearson(pairs.X, np.tile(single[:, None], X.shape[1]), np.ones((1, 1), bool), axis=0)
    rows = []
    for k, name in enumerate(pairs.metrics):
        others = [j for j, other in enumerate(pairs.metrics) if of[other] != of[name]]
        if not others or not X[:, k].any():
            rows.append((name, of[name], np.nan, "", np.nan, r_single[k]))
            continue
        fit, _, rank, _ = np.linalg.lstsq(X[:, others], X[:, k], rcond=1e-6)
        left = ((X[:, k] - X[:, others] @ fit) ** 2).sum() / (X[:, k] ** 2).sum()
        r = X[:, others].T @ X[:, k] / n
        best = int(np.abs(r).argmax())
        adjusted = 1 - left * (n - 1) / (n - 1 - rank) if n - 1 > rank else np.nan
        rows.append((name, of[name], adjusted, pairs.metrics[others[best]], r[best], r_single[k]))
    columns = ["metric", "category", "r2_others", "nearest", "r_nearest", "r_single"]
    return pd.DataFrame(rows, columns=columns)
