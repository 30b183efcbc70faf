"""QAP nulls in little time: all permutations in one fit where the table of pairs is complete."""

import numpy as np
from threadpoolctl import threadpool_limits

from mergelib.pairs.correlation import mean_defined, pearson
from mergelib.pairs.inference import permuted_targets
from mergelib.predict.crossval import fit_folds, fold_seeds, held_out
from mergelib.predict.predictors import PREDICTORS
from mergelib.predict.qap import STATISTICS, Qap, qap

AT_ONCE = 25  # permutations that one batch of problems holds


@threadpool_limits.wrap(limits=1)
def batched_qap(
    name: str,
    X: np.ndarray,
    Y: np.ndarray,
    ends: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    n: int = 1000,
    alpha=None,
    seed: int = 0,
    methods: tuple[str, ...] | None = None,
) -> Qap:
    """What `qap` returns, in a small part of the time.

    Where no pair is missing and a held-out prediction is a fixed matrix times the targets (ridge,
    least squares), all permutations cost one matrix product; where they can be further problems
    of one batch (the Adam recipes), they are. Where pairs are missing, each permutation trains on
    other pairs, and only predictors whose fits on the same metrics share something are hastened.
    Otherwise, or if a strength is chosen by nesting, this is `qap`.
    """
    tasks, way = len(np.unique(ends)), PREDICTORS[name].qap
    complete = len(ends) == tasks * (tasks - 1) // 2 and not np.isnan(Y).any()
    shared = None if complete else PREDICTORS[name].prepare(X)
    if shared is not None and not isinstance(alpha, str):
        return _incomplete(name, shared, X, Y, ends, train, test, n, alpha, seed)
    if not complete or isinstance(alpha, str) or not way:
        return qap(name, X, Y, ends, train, test, n, alpha, seed, methods)
    fold, pair = np.nonzero(test)
    seeds = fold_seeds(seed, methods or tuple(map(str, range(Y.shape[1]))), len(train))
    hat = held_out_map(name, X, train, test, alpha) if way == "map" else None

    def run(targets: np.ndarray) -> dict[str, np.ndarray]:
        stacked = targets.transpose(1, 0, 2).reshape(len(ends), -1)
        if hat is not None:
            prediction = hat @ stacked
        else:
            again = np.tile(seeds, (1, len(targets)))
            fit = held_out(name, X, stacked, ends, train, test, alpha, again)
            prediction = fit.prediction[fold, pair]
        found = _scores(prediction, stacked, fold, pair)
        return {s: found[s].reshape(len(targets), -1) for s in STATISTICS}

    observed = run(Y[None])
    moved = permuted_targets(Y, ends, n, seed)
    size = max(n, 1) if hat is not None else AT_ONCE
    parts = [run(moved[k : k + size]) for k in range(0, n, size)]
    empty = np.empty((0, Y.shape[1]))
    null = {s: np.concatenate([empty, *(part[s] for part in parts)]) for s in STATISTICS}
    return Qap({s: observed[s][0] for s in STATISTICS}, null)


def _incomplete(name, shared, X, Y, ends, train, test, n: int, alpha, seed: int) -> Qap:
    """`qap` of a linear predictor, which forms the forecasts of the held-out pairs alone."""

    def run(targets: np.ndarray) -> dict[str, np.ndarray]:
        valid = ~np.isnan(targets).any(axis=1)
        inside, outside = train & valid, test & valid
        folds = (inside.sum(axis=1) >= 2) & outside.any(axis=1)
        fold, pair = np.nonzero(outside[folds])
        model = fit_folds(name, X, targets, inside[folds], outside[folds], alpha, shared=shared)
        forecast = model.predict(X)[fold, pair]
        return _scores(forecast, targets, fold, pair)

    null = [run(targets) for targets in permuted_targets(Y, ends, n, seed)]
    return Qap(run(Y), {s: np.array([d[s] for d in null]).reshape(n, -1) for s in STATISTICS})


def held_out_map(
    name: str, X: np.ndarray, train: np.ndarray, test: np.ndarray, alpha=None
) -> np.ndarray:
    """The matrix (R, n) from the targets of all n pairs to the R held-out predictions.

    One row per fold and test pair, in the order of np.nonzero(test). Found by predicting each
    unit vector of targets; a fold's columns of pairs that it does not train on are zero.
    """
    unit = np.eye(len(X))
    shared = PREDICTORS[name].prepare(X)
    rows = []
    for start in range(0, len(train), 20):
        part = slice(start, start + 20)
        # targets outside a fold's training pairs are not looked at
        model = fit_folds(name, X, unit, train[part], test[part], alpha, shared=shared)
        rows.append(model.predict(X)[test[part]])
    return np.concatenate(rows)


def _scores(
    prediction: np.ndarray, y: np.ndarray, fold: np.ndarray, pair: np.ndarray
) -> dict[str, np.ndarray]:
    """The three r's of predictions (R, K) for targets y (n, K); R test pairs of all folds."""
    every = np.ones((1, 1), dtype=bool)
    long = np.flatnonzero(np.bincount(fold) >= 3)  # fewer have no correlation
    each = [pearson(prediction[fold == k], y[pair[fold == k]], every, axis=0) for k in long]
    r = np.array(each).reshape(len(each), prediction.shape[1])
    held = np.unique(pair)
    mean = (held[:, None] == pair) / np.bincount(pair)[held][:, None]
    return {
        "r_fold_mean": mean_defined(r),
        "r_concatenated": pearson(prediction, y[pair], every, axis=0),
        "r_pooled": pearson(mean @ prediction, y[held], every, axis=0),
    }
