"""What an L1 penalty selects: the published objective's weights, and the exact lasso path."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from mergelib.metrics.registry import categories
from mergelib.pairs.correlation import mean_defined, pearson, score
from mergelib.pairs.inference import fold_sd, relabellings
from mergelib.pairs.tables import Pairs
from mergelib.pairs.targets import target as target_of
from mergelib.predict.crossval import fold_seeds
from mergelib.predict.folds import scaled
from mergelib.predict.lasso import RATIOS, lasso_folds
from mergelib.predict.splits import HEADLINE, fold_masks, splitter
from mergelib.published.fits import fit_folder, read_fits
from mergelib.published.predictors import adam
from mergelib.published.released import METHODS, metric_names
from studies.exact import lasso_pearson_within, max_pearson

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
    QAP draws null_mean, null_95 of r at the same ratio. Pairs without a target under a relabelling
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
    moved = relabellings(y, pairs.ends, relabel, seed)
    if relabel:
        complete = not np.isnan(moved).any()  # then all relabellings are targets of one batch
        batches = [moved.transpose(1, 0, 2).reshape(len(pairs), -1)] if complete else moved
        drawn = [getattr(scores(targets)[1], HEADLINE[split]) for targets in batches]
        null = np.concatenate(drawn).reshape(relabel, m * k)
        table["null_mean"] = mean_defined(null)
        kept = [column[~np.isnan(column)] for column in null.T]
        table["null_95"] = [np.quantile(c, 0.95) if len(c) else np.nan for c in kept]
    return table


def selection(pairs: Pairs, coef: np.ndarray) -> pd.DataFrame:
    """How often, and with which sign, each metric is in the fits coef (F, m, p).

    One row per method and metric: category, frequency (share of fits with a weight that is not
    0), positive (share of those fits where it is above 0), stability (share of those fits with
    the commoner sign), mean (over all fits). NaN where the metric is never selected.
    """
    return _selected(pairs.methods, pairs.metrics, coef)


def _selected(methods: Sequence[str], metrics: Sequence[str], coef: np.ndarray) -> pd.DataFrame:
    category = categories(metrics)
    chosen, above = (coef != 0).sum(axis=0), (coef > 0).sum(axis=0)
    positive = np.where(chosen > 0, above / np.maximum(chosen, 1), np.nan)
    rows = []
    for j, method in enumerate(methods):
        for k, metric in enumerate(metrics):
            rows.append(
                {
                    "method": method,
                    "metric": metric,
                    "category": category[metric],
                    "frequency": chosen[j, k] / len(coef),
                    "positive": positive[j, k],
                    "stability": max(positive[j, k], 1 - positive[j, k]),
                    "mean": coef[:, j, k].mean(),
                }
            )
    return pd.DataFrame(rows)


def halves_coefficients(
    pairs: Pairs,
    ratio: Sequence[float],
    target: str = "normalized",
    repeats: int = 25,
    seed: int = 0,
    relabelled: bool = False,
) -> np.ndarray:
    """Lasso weights (2 repeats, m, p) on the pairs inside random halves of the tasks.

    `ratio` (m,) is each method's penalty. Unlike leave-one-task-out folds, which share nine tenths
    of their pairs, two halves of a repeat share none. `relabelled`: the tasks of the targets are
    renamed anew in each repeat, so that what is selected then is selected by chance.
    """
    y = target_of(pairs, target)
    _, train, _ = fold_masks(splitter("halves", seed, repeats), pairs.ends, pairs.tasks)
    out = np.empty((len(train), y.shape[1], pairs.X.shape[1]))
    for value in np.unique(ratio):
        which = np.flatnonzero(np.asarray(ratio) == value)
        if not relabelled:
            out[:, which] = lasso_folds(pairs.X, y[:, which], train, [value]).coef[:, :, 0]
            continue
        for k, moved in enumerate(relabellings(y[:, which], pairs.ends, repeats, seed)):
            two = slice(2 * k, 2 * k + 2)
            inside = train[two] & ~np.isnan(moved).any(axis=1)
            out[two, which] = lasso_folds(pairs.X, moved, inside, [value]).coef[:, :, 0]
    return out


# ---- The released fits ------------------------------------------------------------------------

RELEASED_RUN = "loto_cv_l1_lambda1.0"  # the published headline's, unseeded


FITS = "l1_fits.csv"


def checked_out_fits(setting: str, checkout: str | Path, run: str = RELEASED_RUN) -> pd.DataFrame:
    """The released fits of a setting as one table: method, held_out, r, a column a metric.

    r is the stored correlation on the held-out task's pairs; the weights are those of the metrics
    scaled to [-1, 1]. Methods and metrics in published order. Raises MergelibError as `read_fits`.
    """
    fits = read_fits(fit_folder(Path(checkout), setting, run))
    metrics = metric_names()
    parts = []
    for name in [name for name in METHODS if name in fits]:
        fit = fits[name]
        coef = pd.DataFrame(fit.coef[:, [fit.metrics.index(m) for m in metrics]], columns=metrics)
        keys = pd.DataFrame({"method": name, "held_out": fit.tasks, "r": fit.r})
        parts.append(pd.concat([keys, coef], axis=1))
    return pd.concat(parts, ignore_index=True)


def released_fits(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What the released fits keep (`checked_out_fits`): sizes, and `selection` of their folds.

    Sizes per method: folds, n_metrics (mean over folds), fewest, most, l1_norm (mean sum of |w|),
    r_fold_mean (stored).
    """
    metrics = [name for name in table.columns if name not in ("method", "held_out", "r")]
    rows, held = [], {}
    for name, fit in table.groupby("method", sort=False):
        coef = held[name] = fit[metrics].to_numpy()
        kept = (coef != 0).sum(axis=1)
        norm = np.abs(coef).sum(axis=1).mean()
        rows.append(
            (name, len(fit), kept.mean(), kept.min(), kept.max(), norm, float(fit["r"].mean()))
        )
    columns = ["method", "folds", "n_metrics", "fewest", "most", "l1_norm", "r_fold_mean"]
    coef = np.stack(list(held.values()), axis=1)
    return pd.DataFrame(rows, columns=columns), _selected(list(held), metrics, coef)


def released_return(
    kept: pd.DataFrame, pairs: Pairs, ratio: Sequence[float], repeats: int = 25, seed: int = 0
) -> pd.DataFrame:
    """Do the metrics that the released fits keep come back in the lasso when the tasks change?

    `kept` is the selection of `released_fits`. Per method and metric: released (share of the
    released folds that keep it) and released_sign; halves, halves_sign (`halves_coefficients` with
    their target, raw accuracy, at each method's `ratio`) and chance, the share with the tasks
    relabelled.
    """
    table = kept.rename(columns={"frequency": "released", "stability": "released_sign"})
    for name, relabelled in (("halves", False), ("chance", True)):
        coef = halves_coefficients(pairs, ratio, "raw", repeats, seed, relabelled)
        found = selection(pairs, coef).rename(
            columns={"frequency": name, "stability": f"{name}_sign"}
        )
        table = table.merge(
            found[["method", "metric", name, f"{name}_sign"]], on=["method", "metric"]
        )
    signs = ["released", "released_sign", "halves", "halves_sign", "chance"]
    return table[["method", "metric", *signs]]
