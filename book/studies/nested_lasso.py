"""The lasso over all folds of a split, its penalty chosen inside each fold's training pairs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mergelib.pairs.correlation import score
from mergelib.pairs.tables import Pairs
from mergelib.pairs.targets import target as target_of
from mergelib.predict.splits import fold_masks, inner_task_folds, splitter
from studies.lasso import RATIOS, lasso_folds
from studies.spread import fold_interval, fold_sd


def choose_ratio(
    X: np.ndarray,
    Y: np.ndarray,
    ends: np.ndarray,
    train: np.ndarray,
    ratios: Sequence[float] = RATIOS,
) -> np.ndarray:
    """Place in `ratios` of each fold's and target's penalty, (F, m), chosen without its test pairs.

    Leave-one-task-out over the tasks of the fold's training pairs; least sum of squared inner
    errors. Folds that train on the same pairs are fitted once.
    """
    inner_train, inner_test = inner_task_folds(ends, train)
    usable = (inner_train.sum(-1) >= 2) & (inner_test.sum(-1) >= 1)
    outer = np.nonzero(usable)[0]
    distinct, which = np.unique(inner_train[usable], axis=0, return_inverse=True)
    # a choice among a few penalties needs no more digits than this
    prediction = lasso_folds(X, Y, distinct, ratios, tolerance=1e-3, sweeps=200).predict(X)
    error = np.zeros((len(train), Y.shape[1], len(ratios)))
    for k, place, rows in zip(outer, which.ravel(), inner_test[usable], strict=True):
        error[k] += ((prediction[place, rows] - Y[rows][..., None]) ** 2).sum(axis=0)
    return error.argmin(axis=-1)


@dataclass(frozen=True)
class NestedLasso:
    """The lasso with its penalty chosen inside each fold.

    prediction (F, n, m), coef (F, m, p) on the scaled metrics, ratio (F, m), test (F, n).
    """

    prediction: np.ndarray
    coef: np.ndarray
    ratio: np.ndarray
    test: np.ndarray


def nested_lasso(
    pairs: Pairs,
    target: str = "normalized",
    split: str = "loto",
    ratios: Sequence[float] = RATIOS,
    seed: int = 0,
) -> NestedLasso:
    """Fit every fold at the penalty that `choose_ratio` finds in its training pairs."""
    y = target_of(pairs, target)
    _, train, test = fold_masks(splitter(split, seed), pairs.ends, pairs.tasks)
    place = choose_ratio(pairs.X, y, pairs.ends, train, ratios)
    model = lasso_folds(pairs.X, y, train, ratios)
    prediction = np.take_along_axis(model.predict(pairs.X), place[:, None, :, None], axis=-1)
    coef = np.take_along_axis(model.coef, place[..., None, None], axis=2)
    return NestedLasso(prediction[..., 0], coef[:, :, 0], np.asarray(ratios)[place], test)


def nested_table(pairs: Pairs, fit: NestedLasso, target: str = "normalized") -> pd.DataFrame:
    """Per method: r_fold_mean, r_fold_sd, r_concatenated, r_pooled, ratio and n_metrics (medians
    over the folds), fewest, most."""
    scores = score(fit.prediction, target_of(pairs, target), fit.test)
    count = (fit.coef != 0).sum(-1)
    return pd.DataFrame(
        {
            "method": pairs.methods,
            "r_fold_mean": scores.r_fold_mean,
            "r_fold_sd": fold_sd(scores.r_folds),
            "r_concatenated": scores.r_concatenated,
            "r_pooled": scores.r_pooled,
            "ratio": np.median(fit.ratio, axis=0),
            "n_metrics": np.median(count, axis=0),
            "fewest": count.min(axis=0),
            "most": count.max(axis=0),
        }
    )


def nested_interval(
    pairs: Pairs, fit: NestedLasso, target: str = "normalized", draws: int = 2000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """`fold_interval` of r_fold_mean, by method: (m,) and (m,)."""
    scores = score(fit.prediction, target_of(pairs, target), fit.test)
    return fold_interval(scores.r_folds, draws, seed)
