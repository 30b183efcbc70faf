"""Chapters 4 and 9, method by method: targets, held-out pairs, coefficients, agreement."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from mergelib.core.errors import MergelibError
from mergelib.metrics.registry import categories
from mergelib.pairs.correlation import pooled, score
from mergelib.pairs.inference import interval, permuted_targets, task_weights
from mergelib.pairs.tables import Pairs
from mergelib.pairs.targets import TARGETS
from mergelib.pairs.targets import target as target_of
from mergelib.predict import baselines
from mergelib.predict.agreement import agreement
from mergelib.predict.collinear import collinear_groups
from mergelib.predict.crossval import fold_seeds, held_out
from mergelib.predict.folds import RidgeFolds, scaled, scaling
from mergelib.predict.splits import SPLITS, fold_masks, splitter
from studies.chance import beyond
from studies.quick_qap import batched_qap


def compare_targets(
    pairs: Pairs,
    targets: Iterable[str] = TARGETS,
    splits: Iterable[str] = ("loto", "l2to"),
    relabel: int = 0,
    seed: int = 0,
) -> pd.DataFrame:
    """Ridge and the task effects on several targets: one row per split, target and method.

    split, target, method, r (ridge; the split's headline statistic), null_95 and p of `relabel`
    QAP draws (NaN for none), additive (the same r of `additive_task_effects`). All targets share
    the fits of a draw.
    """
    y = np.hstack([target_of(pairs, name) for name in targets])
    labels = [(name, method) for name in targets for method in pairs.methods]
    frames = []
    for split in splits:
        _, train, test = fold_masks(splitter(split, seed), pairs.ends, pairs.tasks)
        null = batched_qap("ridge", pairs.X, y, pairs.ends, train, test, relabel, None, seed)
        additive = score(baselines.additive(y, pairs.ends, train), y, test)
        statistic = SPLITS[split].headline
        table = pd.DataFrame(labels, columns=["target", "method"])
        table.insert(0, "split", split)
        table["r"] = null.observed[statistic]
        table["null_95"] = null.point95(statistic)
        table["p"] = null.p(statistic)
        table["additive"] = getattr(additive, statistic)
        frames.append(table)
    return pd.concat(frames, ignore_index=True)


def held_out_table(
    pairs: Pairs,
    method: str,
    target: str = "normalized",
    split: str = "loto",
    predictor: str = "ridge",
    seed: int = 0,
) -> pd.DataFrame:
    """Each pair once: task_a, task_b, actual, predicted, additive (held-out, folds averaged)."""
    y = target_of(pairs, target)
    _, train, test = fold_masks(splitter(split, seed), pairs.ends, pairs.tasks)
    seeds = fold_seeds(seed, pairs.methods, len(train))
    fit = held_out(predictor, pairs.X, y, pairs.ends, train, test, None, seeds)
    k = pairs.methods.index(method)
    names = np.array(pairs.tasks)[pairs.ends]
    return pd.DataFrame(
        {
            "task_a": names[:, 0],
            "task_b": names[:, 1],
            "actual": y[:, k],
            "predicted": pooled(fit.prediction, test)[:, k],
            "additive": pooled(baselines.additive(y, pairs.ends, train), test)[:, k],
        }
    )


def bootstrap_coefficients(
    X: np.ndarray, y: np.ndarray, ends: np.ndarray, alpha: float = 1.0, n: int = 1000, seed: int = 0
) -> np.ndarray:
    """Ridge coefficients on metrics scaled to [-1, 1] over all pairs, in each task bootstrap.

    (N, p) for one target y (n_pairs,), with the pairs' bootstrap weights in the sum of squares.
    """
    every = np.ones((1, len(y)), dtype=bool)
    Z = scaled(X, *scaling(X, every))[0]
    w = task_weights(ends, n, seed)
    total = w.sum(axis=1)
    mean_z, mean_y = w @ Z / total[:, None], w @ y / total
    p = X.shape[1]
    gram = (w @ (Z[:, :, None] * Z[:, None, :]).reshape(len(Z), -1)).reshape(n, p, p)
    gram -= total[:, None, None] * mean_z[:, :, None] * mean_z[:, None, :]
    cross = w @ (Z * y[:, None]) - total[:, None] * mean_z * mean_y[:, None]
    return np.linalg.solve(gram + alpha * np.eye(p), cross[..., None])[..., 0]


def coefficient_table(
    pairs: Pairs, target: str = "normalized", alpha: float = 1.0, draws: int = 500, seed: int = 0
) -> pd.DataFrame:
    """Ridge coefficients on metrics scaled to [-1, 1], fitted to all pairs, with their spread.

    One row per method and metric: coefficient, low and high (95 % task bootstrap), `clear` where
    the interval leaves out 0, `tied` where the metric is exactly collinear with others (then only
    the group's joint effect is determined).
    """
    y = target_of(pairs, target)
    every = np.ones((1, len(pairs)), dtype=bool)
    coef = RidgeFolds(pairs.X).fit(y, every, alpha).coef[0]
    tied = {n for members in collinear_groups(pairs.X, pairs.metrics) for n in members}
    category = categories(pairs.metrics)
    frames = []
    for k, method in enumerate(pairs.methods):
        with np.errstate(invalid="ignore"):  # a draw of one task alone has no pair
            drawn = bootstrap_coefficients(pairs.X, y[:, k], pairs.ends, alpha, draws, seed)
        low, high = interval(drawn)
        frames.append(
            pd.DataFrame(
                {
                    "method": method,
                    "metric": pairs.metrics,
                    "category": [category[m] for m in pairs.metrics],
                    "coefficient": coef[k],
                    "low": low,
                    "high": high,
                    "clear": (low > 0) | (high < 0),
                    "tied": [m in tied for m in pairs.metrics],
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


# ---- Agreement between methods ------------------------------------------------------------------


def mean_coefficients(
    pairs: Pairs, y: np.ndarray, predictor: str, split: str = "loto", seed: int = 0
) -> np.ndarray:
    """Coefficients averaged over the folds, as the paper compares them: (m, p) for y (n, m)."""
    _, train, test = fold_masks(splitter(split, seed), pairs.ends, pairs.tasks)
    names = [pairs.methods[k % len(pairs.methods)] for k in range(y.shape[1])]
    seeds = fold_seeds(seed, names, len(train))
    coef = held_out(predictor, pairs.X, y, pairs.ends, train, test, None, seeds).coef
    if coef is None:
        raise MergelibError(f"{predictor} has no coefficients to compare")
    return coef.mean(axis=0)


def agreement_table(
    pairs: Pairs,
    target: str = "normalized",
    relabel: Mapping[str, int] | None = None,
    seed: int = 0,
    k: int = 5,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Top-k overlap and sign agreement between the methods' fits, beside permuted tasks.

    `relabel` maps a predictor to its number of QAP permutations (0: none). The first table has one
    row per predictor and statistic: value, null_mean, null_95, p. Each permutation moves the
    tasks of all methods' targets alike, so the null keeps how much the methods' targets resemble
    each other and breaks their tie to the metrics: agreement that it reaches says nothing about
    the metrics. The second table has one row per predictor and pair of methods: a, b,
    top5_overlap, sign_agreement, target_r (of the two targets). A pair without a permuted target
    (an incomplete table) is left out of that permutation's fits.
    """
    y = target_of(pairs, target)
    target_r = np.corrcoef(y.T)
    place = {method: j for j, method in enumerate(pairs.methods)}
    totals, details = [], []
    for predictor, n in (relabel or {"ridge": 0}).items():
        seen = _agree(mean_coefficients(pairs, y, predictor, seed=seed), pairs, k)
        details += [
            {"predictor": predictor, **row, "target_r": target_r[place[row["a"]], place[row["b"]]]}
            for row in seen["pairs"]
        ]
        drawn = [_agree(c, pairs, k) for c in _permuted_coefficients(pairs, y, predictor, n, seed)]
        for s in ("top5_overlap", "sign_agreement"):
            values = np.array([found[s] for found in drawn])
            null = beyond(np.array([seen[s]]), values[:, None]).iloc[0]
            row = {"predictor": predictor, "statistic": s, "value": seen[s]}
            totals.append(row | {name: null[name] for name in ("null_mean", "null_95", "p")})
    return pd.DataFrame(totals), pd.DataFrame(details)


def _permuted_coefficients(
    pairs: Pairs, y: np.ndarray, predictor: str, n: int, seed: int
) -> np.ndarray:
    """`mean_coefficients` (n, m, p) of n permutations: in one fit if no pair is missing."""
    moved = permuted_targets(y, pairs.ends, n, seed)
    if np.isnan(moved).any():
        known = ~np.isnan(moved).any(axis=2)
        return np.array(
            [
                mean_coefficients(
                    replace(pairs, X=pairs.X[rows], ends=pairs.ends[rows]),
                    targets[rows],
                    predictor,
                    seed=seed,
                )
                for rows, targets in zip(known, moved, strict=True)
            ]
        )
    stacked = moved.transpose(1, 0, 2).reshape(len(pairs), -1)
    if not n:
        return np.empty((0, y.shape[1], pairs.X.shape[1]))
    return mean_coefficients(pairs, stacked, predictor, seed=seed).reshape(n, y.shape[1], -1)


def _agree(coef: np.ndarray, pairs: Pairs, k: int) -> dict:
    fits = {
        method: dict(zip(pairs.metrics, row, strict=True))
        for method, row in zip(pairs.methods, coef.tolist(), strict=True)
    }
    return agreement(fits, k)
