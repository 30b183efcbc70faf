"""A predictor fitted and tested on every fold, for all methods together."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mergelib.core.errors import MergelibError
from mergelib.pairs.correlation import pearson
from mergelib.predict.folds import Linear, RidgeFolds, ols_folds
from mergelib.predict.predictors import GRIDS, check_predictor, estimator, strength
from mergelib.predict.splits import inner_task_folds
from mergelib.published.predictors import adam
from mergelib.published.predictors.greedy import greedy_folds
from mergelib.published.predictors.mlp import mlp_folds

RECIPES = {"paper-l1": adam.L1, "paper-dense": adam.DENSE, "paper-mse": adam.MSE}


@dataclass(frozen=True)
class Held:
    """prediction (F, n, m): every fold's forecast of every pair (read it on the test rows);
    coef (F, m, p) on the metrics scaled to [-1, 1], None for the network; alpha: the strength,
    (F, m) if chosen."""

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
    ridge: RidgeFolds | None = None,
) -> Linear:
    """Fit a linear predictor on X (n, p), Y (n, m) in all folds; masks train, test are (F, n).

    Ridge, least squares and the Adam recipes run batched and agree with fitting
    `estimator(name)` fold by fold, which is what the others do (the published squared-error
    recipe apart: it scales on all pairs and stops on the test pairs, as released).
    `alpha`: a number, or (F, m).
    """
    if name == "paper-mlp":
        raise MergelibError("paper-mlp has no coefficients: cross-validate it within one setting")
    if np.ndim(alpha) == 0:
        alpha = strength(name, alpha)
    if name == "ridge":
        return (ridge or RidgeFolds(X)).fit(Y, train, alpha)
    if name == "ols":
        return ols_folds(X, Y, train)
    if seeds is None:
        seeds = fold_seeds(0, [str(k) for k in range(Y.shape[1])], len(train))
    if name in ("paper-forward", "paper-backward"):
        return greedy_folds(name.removeprefix("paper-"), X, Y, train, seeds)
    if name in RECIPES:
        return adam.fit_folds(
            RECIPES[name], X, Y, train, test, seeds, 0.0 if alpha is None else alpha
        )
    return _one_by_one(check_predictor(name), X, Y, train, alpha)


def _one_by_one(name, X, Y, train, alpha) -> Linear:
    f, m, p = len(train), Y.shape[1], X.shape[1]
    low, span = np.empty((f, p)), np.empty((f, p))
    coef, intercept = np.empty((f, m, p)), np.empty((f, m))
    strengths = np.broadcast_to(alpha, (f, m))
    for k, rows in enumerate(train):
        for j in range(m):
            value = strengths[k, j]
            if name == "pls":
                value = max(1, min(value, rows.sum() - 1, p))
            scale, last = estimator(name, value).fit(X[rows], Y[rows, j])[:]
            low[k], span[k] = scale.data_min_, 2.0 / scale.scale_
            coef[k, j] = np.ravel(last.coef_)
            at_zero = np.ravel(last.predict(np.zeros((1, p))))[0]
            intercept[k, j] = at_zero
    return Linear(low, span, coef, intercept)


def choose_alpha(
    name: str,
    X: np.ndarray,
    Y: np.ndarray,
    ends: np.ndarray,
    train: np.ndarray,
    seeds: np.ndarray | None = None,
    ridge: RidgeFolds | None = None,
) -> np.ndarray:
    """The strength of each fold and method, (F, m), chosen inside the fold's training pairs.

    Leave-one-task-out over the training tasks; of the grid the strength with the least sum of
    squared inner errors, or, for the Pearson recipes, whose scale means nothing, the highest mean
    inner r. No test pair is looked at.
    """
    if name not in GRIDS:
        raise MergelibError(f"predictor {name!r} has no strength to choose: leave --alpha out")
    f, m = len(train), Y.shape[1]
    inner_train, inner_test = inner_task_folds(ends, train)
    t = inner_train.shape[1]
    usable = (inner_train.sum(-1) >= 2) & (inner_test.sum(-1) >= 1)
    inner_train, inner_test = inner_train[usable], inner_test[usable]
    owner = np.repeat(np.arange(f), t).reshape(f, t)[usable]
    grid = GRIDS[name]
    error = np.zeros((len(grid), f, m))
    inner_seeds = None if seeds is None else seeds[owner]
    for g, alpha in enumerate(grid):
        model = fit_folds(name, X, Y, inner_train, inner_test, alpha, inner_seeds, ridge)
        forecast, inside = model.predict(X), inner_test[..., None]
        if name in RECIPES:
            r = pearson(forecast, Y, np.broadcast_to(inside, forecast.shape), axis=1)
            np.add.at(error[g], owner, -np.nan_to_num(r))
        else:
            miss = np.where(inside, forecast - Y, 0.0)
            np.add.at(error[g], owner, (miss**2).sum(axis=1))
    return np.asarray(grid)[error.argmin(axis=0)]


def held_out(
    name: str,
    X: np.ndarray,
    Y: np.ndarray,
    ends: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    alpha=None,
    seeds: np.ndarray | None = None,
    ridge: RidgeFolds | None = None,
) -> Held:
    """Predictions and coefficients of all folds; `alpha="auto"` chooses the strength by nesting."""
    check_predictor(name)
    if isinstance(alpha, str):
        if alpha != "auto":
            raise MergelibError(f"--alpha {alpha!r}: give a number or auto")
        alpha = choose_alpha(name, X, Y, ends, train, seeds, ridge)
    elif alpha is None:
        alpha = strength(name, None)
    if name == "paper-mlp":
        if seeds is None:
            seeds = fold_seeds(0, [str(k) for k in range(Y.shape[1])], len(train))
        return Held(mlp_folds(X, Y, train, test, seeds), None, None)
    model = fit_folds(name, X, Y, train, test, alpha, seeds, ridge)
    return Held(model.predict(X), model.coef, alpha)
