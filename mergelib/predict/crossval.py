"""A predictor fitted and tested on every fold, for all methods together."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mergelib.core.errors import MergelibError
from mergelib.pairs.correlation import pearson
from mergelib.predict.folds import Linear, Problem
from mergelib.predict.predictors import PREDICTORS, strength
from mergelib.predict.splits import inner_task_folds


@dataclass(frozen=True)
class Held:
    """prediction (F, n, m): every fold's forecast of every pair (read it on the test rows);
    coef (F, m, p) on the metrics scaled to [-1, 1], None where a predictor has none; alpha: the
    strength, (F, m) if chosen."""

    prediction: np.ndarray
    coef: np.ndarray | None
    alpha: float | np.ndarray | None


def fold_seeds(seed: int, methods: Sequence[str], folds: int) -> np.ndarray:
    """A seed for every fold and method, (F, m), that depends on the method's name alone."""
    columns = [
        np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(folds)
        for name in methods
    ]
    return np.stack(columns, axis=1)


def fit_folds(
    name: str,
    X: np.ndarray,
    Y: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    alpha=None,
    seeds: np.ndarray | None = None,
    shared: Any = None,
) -> Linear:
    """Fit a linear predictor on X (n, p), Y (n, m) in all folds; masks train, test are (F, n).

    A predictor's `folds` agree with fitting `estimator(name)` fold by fold, which is what is done
    for the others (the published squared-error recipe apart: it scales on all pairs and stops on
    the test pairs, as released). `alpha`: a number, or (F, m). `shared`: what its `prepare` made
    of X. Raises MergelibError for a predictor without coefficients.
    """
    made = _fit(name, X, Y, train, test, alpha, seeds, shared)
    if not isinstance(made, Linear):
        raise MergelibError(f"{name} has no coefficients: cross-validate it within one setting")
    return made


def _fit(name, X, Y, train, test, alpha, seeds, shared) -> Linear | np.ndarray:
    """A linear predictor of every fold, or the predictions (F, n, m) of another."""
    row = PREDICTORS[name]
    if np.ndim(alpha) == 0:
        alpha = strength(name, alpha)
    if seeds is None:
        seeds = fold_seeds(0, [str(k) for k in range(Y.shape[1])], len(train))
    return row.folds(Problem(X, Y, train, test, seeds, shared), alpha)


def choose_alpha(
    name: str,
    X: np.ndarray,
    Y: np.ndarray,
    ends: np.ndarray,
    train: np.ndarray,
    seeds: np.ndarray | None = None,
    shared: Any = None,
) -> np.ndarray:
    """The strength of each fold and method, (F, m), chosen inside the fold's training pairs.

    Leave-one-task-out over the training tasks; of the grid the strength with the least sum of
    squared inner errors, or, where the forecast's scale means nothing (the Pearson recipes), the
    highest mean inner r. No test pair is looked at.
    """
    row = PREDICTORS[name]
    if not row.grid:
        raise MergelibError(f"predictor {name!r} has no strength to choose: leave --alpha out")
    f, m = len(train), Y.shape[1]
    inner_train, inner_test = inner_task_folds(ends, train)
    t = inner_train.shape[1]
    usable = (inner_train.sum(-1) >= 2) & (inner_test.sum(-1) >= 1)
    inner_train, inner_test = inner_train[usable], inner_test[usable]
    owner = np.repeat(np.arange(f), t).reshape(f, t)[usable]
    error = np.zeros((len(row.grid), f, m))
    inner_seeds = None if seeds is None else seeds[owner]
    for g, alpha in enumerate(row.grid):
        made = _fit(name, X, Y, inner_train, inner_test, alpha, inner_seeds, shared)
        forecast = made.predict(X) if isinstance(made, Linear) else made
        inside = inner_test[..., None]
        if row.by_r:
            r = pearson(forecast, Y, np.broadcast_to(inside, forecast.shape), axis=1)
            np.add.at(error[g], owner, -np.nan_to_num(r))
        else:
            miss = np.where(inside, forecast - Y, 0.0)
            np.add.at(error[g], owner, (miss**2).sum(axis=1))
    return np.asarray(row.grid)[error.argmin(axis=0)]


def held_out(
    name: str,
    X: np.ndarray,
    Y: np.ndarray,
    ends: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    alpha=None,
    seeds: np.ndarray | None = None,
    shared: Any = None,
) -> Held:
    """Predictions and coefficients of all folds; `alpha="auto"` chooses the strength by nesting."""
    if isinstance(alpha, str):
        if alpha != "auto":
            raise MergelibError(f"--alpha {alpha!r}: give a number or auto")
        alpha = choose_alpha(name, X, Y, ends, train, seeds, shared)
    elif np.ndim(alpha) == 0:
        alpha = strength(name, alpha)
    made = _fit(name, X, Y, train, test, alpha, seeds, shared)
    if isinstance(made, Linear):
        return Held(made.predict(X), made.coef, alpha)
    return Held(made, None, alpha)
