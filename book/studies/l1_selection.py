"""What an L1 penalty selects: the published objective's weights, and the exact lasso path."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from mergelib.pairs.correlation import mean_defined, pearson, score
from mergelib.pairs.inference import permuted_targets
from mergelib.pairs.tables import Pairs
from mergelib.pairs.targets import target as target_of
from mergelib.predict.crossval import fold_seeds
from mergelib.predict.folds import scaled
from mergelib.predict.splits import HEADLINE, fold_masks, splitter
from mergelib.published.predictors import adam
from studies.exact import lasso_pearson_within, max_pearson
from studies.lasso import RATIOS, lasso_folds
from studies.spread import fold_sd

# ---- The published objective ------------------------------------------------------------------


def shrink(
    w: np.ndarray, X: np.ndarray, y: np.ndarray, strength: float, factors: Sequence[float]
) -> pd.DataFrame:
    """The objective -r(Xw, y) + strength * sum|w| at w multiplied by each factor.

    factor, l1_norm, r, objective. r does not change, the penalty does: the objective has no
    minimum but at w -> 0, where r is undefined. X (n, p) scaled metrics, w (p,), y (n,).
    """
    rows = []
    for factor in factors:
        prediction = X @ (factor * w)
        r = float(pearson(prediction, y, np.ones(len(y), dtype=bool), axis=0))
        norm = float(np.abs(factor * w).sum())
        rows.append((factor, norm, r, -r + strength * norm))
    return pd.DataFrame(rows, columns=["factor", "l1_norm", "r", "objective"])


def adam_weights(
    pairs: Pairs, method: str, target: str = "normalized", strength: float = 1.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The published L1 fit of one method on all pairs: w (p,), scaled metrics (n, p), y (n,)."""
    y = target_of(pairs, target)[:, [pairs.methods.index(method)]]
    every = np.ones((1, len(pairs)), dtype=bool)
    model = adam.fit_folds(
        adam.L1, pairs.X, y, every, ~every, fold_seeds(seed, (method,), 1), strength
    )
    return model.coef[0, 0], scaled(pairs.X, model.low, model.span)[0], y[:, 0]


def beside_exact(
    pairs: Pairs, target: str = "normalized", strength: float = 1.0, seed: int = 0
) -> pd.DataFrame:
    """The published optimizer beside the exact maximum, on all pairs: one row per method.

    r_adam at strength 0 and r_max, the greatest r of any weights (`exact.max_pearson`);
    r_adam_l1 at `strength`, with l1_norm, its sum of |w| at unit prediction variance, and
    n_adam metrics; r_lasso and n_lasso of the best weights of no larger l1_norm
    (`exact.lasso_pearson_within`).
    """
    rows = []
    for method in pairs.methods:
        free, X, y = adam_weights(pairs, method, target, 0.0, seed)
        w = adam_weights(pairs, method, target, strength, seed)[0]
        norm = np.abs(w).sum() / np.linalg.norm(X @ w - (X @ w).mean())
        best = lasso_pearson_within(X, y, norm)
        r_free, r_max, r_l1, r_lasso = (
            float(pearson(X @ v, y, np.ones(len(y), dtype=bool), axis=0))
            for v in (free, max_pearson(X, y), w, best)
        )
        counts = [int((v != 0).sum()) for v in (w, best)]
        rows.append((method, r_free, r_max, norm, r_l1, r_lasso, *counts))
    columns = ["method", "r_adam", "r_max", "l1_norm", "r_adam_l1", "r_lasso", "n_adam", "n_lasso"]
    return pd.DataFrame(rows, columns=columns)


def adam_strengths(
    pairs: Pairs,
    target: str = "normalized",
    split: str = "loto",
    strengths: Sequence[float] = (0.0, 0.1, 0.3, 1.0, 3.0),
    rates: Sequence[float] = (0.01,),
    seed: int = 0,
) -> pd.DataFrame:
    """The published L1 recipe at several strengths and learning rates: one row per method.

    strength, rate, l1_norm and n_metrics (weights of at least 1e-3; both means over the folds),
    r_train (mean over the folds) and r (the split's headline statistic). All strengths start from
    the same weights.
    """
    y = target_of(pairs, target)
    _, train, test = fold_masks(splitter(split, seed), pairs.ends, pairs.tasks)
    starts = fold_seeds(seed, pairs.methods, len(train))
    m, s = y.shape[1], len(strengths)
    frames = []
    for rate in rates:
        model = adam.fit_folds(
            replace(adam.L1, lr=rate), pairs.X, y, train, test,
            np.repeat(starts[..., None], s, axis=2), np.array(strengths),
        )  # fmt: skip
        flat = replace(
            model,
            coef=model.coef.reshape(len(train), m * s, -1),
            intercept=model.intercept.reshape(len(train), m * s),
        )
        prediction, every = flat.predict(pairs.X), np.repeat(y, s, axis=1)
        r = getattr(score(prediction, every, test), HEADLINE[split])
        r_train = mean_defined(
            pearson(prediction, np.broadcast_to(every, prediction.shape), train[..., None], axis=1)
        )
        frames.append(
            pd.DataFrame(
                {
                    "method": np.repeat(pairs.methods, s),
                    "strength": np.tile(strengths, m),
                    "rate": rate,
                    "l1_norm": np.abs(flat.coef).sum(-1).mean(axis=0),
                    "n_metrics": (flat.coef != 0).sum(-1).mean(axis=0),
                    "r_train": r_train,
                    "r": r,
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def adam_spread(
    pairs: Pairs,
    target: str = "normalized",
    split: str = "loto",
    strength: float = 1.0,
    repeats: int = 5,
    noise: float = 1e-14,
    seed: int = 0,
) -> pd.DataFrame:
    """How far the published fit's r moves with its random start, and with rounding alone.

    Per method: r (the split's headline statistic of one fit), start_sd over `repeats` starting
    weights, rounding_sd over as many fits from the same start to metrics multiplied by
    1 + noise * N(0, 1), and rounding_most, the largest change of r that this makes.
    """
    y = target_of(pairs, target)
    _, train, test = fold_masks(splitter(split, seed), pairs.ends, pairs.tasks)
    rng = np.random.default_rng([seed, 5])

    def headline(X: np.ndarray, start: int) -> np.ndarray:
        seeds = fold_seeds(start, pairs.methods, len(train))
        model = adam.fit_folds(adam.L1, X, y, train, test, seeds, strength)
        return getattr(score(model.predict(X), y, test), HEADLINE[split])

    started = np.array([headline(pairs.X, seed + k) for k in range(repeats)])
    moved = [
        headline(pairs.X * (1 + noise * rng.normal(size=pairs.X.shape)), seed)
        for _ in range(repeats)
    ]
    rounding = np.array([started[0], *moved])
    return pd.DataFrame(
        {
            "method": pairs.methods,
            "r": started[0],
            "start_sd": started.std(axis=0, ddof=1),
            "rounding_sd": rounding.std(axis=0, ddof=1),
            "rounding_most": np.abs(rounding - rounding[0]).max(axis=0),
        }
    )


def lasso_strengths(
    pairs: Pairs,
    target: str = "normalized",
    split: str = "loto",
    ratios: Sequence[float] = RATIOS,
    relabel: int = 0,
    seed: int = 0,
) -> pd.DataFrame:
    """Along the lasso path: how many metrics, and what they forecast. One row per method, ratio.

    n_metrics (mean over the folds), r (the split's headline statistic), r_fold_sd; with `relabel`
    QAP draws null_mean, null_95 of r at the same ratio. Pairs without a target under a permutation
    are left out of that draw.
    """
    y = target_of(pairs, target)
    _, train, test = fold_masks(splitter(split, seed), pairs.ends, pairs.tasks)
    m, k = y.shape[1], len(ratios)

    def scores(targets: np.ndarray):
        valid = ~np.isnan(targets).any(axis=1)
        # the same few digits for all: what is compared is the curves
        model = lasso_folds(pairs.X, targets, train & valid, ratios, tolerance=1e-3, sweeps=200)
        prediction = model.predict(pairs.X).reshape(len(train), len(pairs), -1)
        filled = np.where(valid[:, None], targets, 0.0)
        return model, score(prediction, np.repeat(filled, k, axis=1), test & valid)

    model, seen = scores(y)
    table = pd.DataFrame(
        {
            "method": np.repeat(pairs.methods, k),
            "ratio": np.tile(ratios, m),
            "n_metrics": (model.coef != 0).sum(-1).mean(axis=0).ravel(),
            "r": getattr(seen, HEADLINE[split]),
            "r_fold_sd": fold_sd(seen.r_folds),
        }
    )
    moved = permuted_targets(y, pairs.ends, relabel, seed)
    if relabel:
        complete = not np.isnan(moved).any()  # then all permutations are targets of one batch
        batches = [moved.transpose(1, 0, 2).reshape(len(pairs), -1)] if complete else moved
        drawn = [getattr(scores(targets)[1], HEADLINE[split]) for targets in batches]
        null = np.concatenate(drawn).reshape(relabel, m * k)
        table["null_mean"] = mean_defined(null)
        kept = [column[~np.isnan(column)] for column in null.T]
        table["null_95"] = [np.quantile(c, 0.95) if len(c) else np.nan for c in kept]
    return table
