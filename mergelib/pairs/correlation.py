"""Correlations of held-out predictions: by fold, end to end, each pair once."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata


def pearson(a: np.ndarray, b: np.ndarray, inside: np.ndarray, axis: int) -> np.ndarray:
    """Pearson r along `axis` over the entries where `inside`; NaN if undefined.

    Undefined: fewer than 3 entries, or one side constant up to rounding.
    """
    inside = np.broadcast_to(inside, a.shape)
    n = inside.sum(axis=axis)
    a, b = np.where(inside, a, 0.0), np.where(inside, b, 0.0)

    def centered(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean = x.sum(axis=axis, keepdims=True) / np.maximum(np.expand_dims(n, axis), 1)
        x = np.where(inside, x - mean, 0.0)
        total = (x**2).sum(axis=axis)
        flat = total <= n * (1e-12 * np.abs(mean.squeeze(axis))) ** 2
        return x, np.where(flat, np.nan, total)

    (a, aa), (b, bb) = centered(a), centered(b)
    with np.errstate(invalid="ignore"):
        r = (a * b).sum(axis=axis) / np.sqrt(aa * bb)
    return np.where(n >= 3, np.clip(r, -1.0, 1.0), np.nan)


def constant(x: np.ndarray) -> np.ndarray:
    """Whether x varies by rounding alone (1e-12 of its size) along the last axis.

    The ranks of such values would be those of rounding errors.
    """
    return np.ptp(x, axis=-1) <= 1e-12 * np.abs(x).max(axis=-1)


def pooled(prediction: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Each pair's held-out predictions averaged, (n, m) from (F, n, m); NaN if never held out."""
    count = test.sum(axis=0)[:, None]
    total = np.where(test[..., None], prediction, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


@dataclass(frozen=True)
class Scores:
    """Correlations per method: r_folds (F, m); the rest (m,). Undefined ones are NaN."""

    r_folds: np.ndarray
    r_fold_mean: np.ndarray
    r_concatenated: np.ndarray
    r_pooled: np.ndarray

    @property
    def n_undefined(self) -> np.ndarray:
        """Folds without a correlation, left out of r_fold_mean, (m,)."""
        return np.isnan(self.r_folds).sum(axis=0)


def mean_defined(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """The mean of the entries that are not NaN; NaN if there is none."""
    count = (~np.isnan(values)).sum(axis=axis)
    total = np.nansum(values, axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def score(prediction: np.ndarray, y: np.ndarray, test: np.ndarray) -> Scores:
    """Score predictions (F, n, m) against y (n, m) on the test rows (F, n) of each fold.

    r_fold_mean: mean of the folds' r. r_concatenated: one r over all folds' predictions end to
    end (the published aggregate; a pair may occur several times). r_pooled: one r with each pair
    once, its held-out predictions averaged.
    """
    f, n, m = prediction.shape
    inside = np.broadcast_to(test[..., None], prediction.shape)
    every = np.broadcast_to(y, prediction.shape)
    r_folds = pearson(prediction, every, inside, axis=1)
    flat = (f * n, m)
    concatenated = pearson(
        prediction.reshape(flat), every.reshape(flat), inside.reshape(flat), axis=0
    )
    once = pooled(prediction, test)
    held = ~np.isnan(once)
    r_pooled = pearson(once, y, held, axis=0)
    return Scores(r_folds, mean_defined(r_folds), concatenated, r_pooled)


def spearman_folds(prediction: np.ndarray, y: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Spearman's rho of every fold and method, (F, m); NaN where undefined."""
    f, _, m = prediction.shape
    rho = np.full((f, m), np.nan)
    for k in range(f):
        rows = test[k]
        if rows.sum() >= 3:
            a = rankdata(prediction[k, rows], axis=0)
            b = rankdata(y[rows], axis=0)
            rho[k] = pearson(a, b, np.ones_like(a, dtype=bool), axis=0)
            rho[k, constant(prediction[k, rows].T) | constant(y[rows].T)] = np.nan
    return rho


def headline(prediction: np.ndarray, y: np.ndarray, test: np.ndarray) -> np.ndarray:
    """The mean of the folds' r, or one r over all pairs where a fold tests one pair: (K,).

    prediction (R, K) in the order of np.nonzero(test) for targets y (n, K); test (F, n).
    """
    fold, pair = np.nonzero(test)
    every = np.ones((1, 1), dtype=bool)
    if len(np.unique(fold)) == len(fold):
        return pearson(prediction, y[pair], every, axis=0)
    rows = [np.flatnonzero(fold == k) for k in range(len(test))]
    return mean_defined(np.array([pearson(prediction[r], y[pair[r]], every, axis=0) for r in rows]))
