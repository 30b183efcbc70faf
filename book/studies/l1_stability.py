"""Which metrics an L1 penalty selects again when the tasks change, and with which sign."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mergelib.metrics.registry import categories
from mergelib.pairs.inference import permuted_targets
from mergelib.pairs.tables import Pairs
from mergelib.pairs.targets import target as target_of
from mergelib.predict.splits import fold_masks, splitter
from mergelib.published.released import METHODS, metric_names
from studies.lasso import lasso_folds
from studies.released_fits import fit_folder, read_fits

KINDS = ("folds", "halves", "chance")
MOST = 0.8  # of the fits: what counts as selected again and again
BEYOND = 0.3  # how much more often than with the tasks relabelled


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
        for k, moved in enumerate(permuted_targets(y[:, which], pairs.ends, repeats, seed)):
            two = slice(2 * k, 2 * k + 2)
            inside = train[two] & ~np.isnan(moved).any(axis=1)
            out[two, which] = lasso_folds(pairs.X, moved, inside, [value]).coef[:, :, 0]
    return out


def again(
    pairs: Pairs,
    coef: np.ndarray,
    ratio: Sequence[float],
    target: str = "normalized",
    repeats: int = 25,
    seed: int = 0,
) -> pd.DataFrame:
    """`selection` in the folds (coef (F, m, p)), in random halves of the tasks, and by chance.

    One row per method and metric: frequency_K, stability_K and positive_K of each K of KINDS.
    """
    halves = halves_coefficients(pairs, ratio, target, repeats, seed)
    chance = halves_coefficients(pairs, ratio, target, repeats, seed, relabelled=True)
    keys, table = ["method", "metric"], None
    for kind, weights in zip(KINDS, (coef, halves, chance), strict=True):
        part = selection(pairs, weights).set_index(keys)[["frequency", "positive", "stability"]]
        part = part.add_suffix(f"_{kind}")
        table = part if table is None else table.join(part)
    return table.reset_index()


def sign_constancy(table: pd.DataFrame, least: float = 0.2) -> dict[str, float]:
    """By kind of fit: the mean share of the commoner sign, over `again`'s metrics in the halves.

    Weighted by how often a metric is selected; only those selected in `least` of the halves.
    """
    some = table[table["frequency_halves"] >= least]
    means = {}
    for kind in KINDS:
        weight = some[f"frequency_{kind}"]
        told = some[f"stability_{kind}"].fillna(0)
        means[kind] = float(np.average(told, weights=weight)) if weight.any() else np.nan
    return means


def counted(back: pd.DataFrame) -> pd.DataFrame:
    """Per method, of `released_return`: how many metrics MOST released folds keep, and again.

    kept; back: of these, those that MOST of the halves select; beyond: those that the halves select
    more often than relabelled tasks do, by BEYOND.
    """
    often = back[back["released"] >= MOST]
    marks = pd.DataFrame(
        {
            "method": often["method"],
            "kept": 1,
            "back": (often["halves"] >= MOST).astype(int),
            "beyond": ((often["halves"] - often["chance"]).round(6) >= BEYOND).astype(int),
        }
    )
    return marks.groupby("method", sort=False)[["kept", "back", "beyond"]].sum()


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
