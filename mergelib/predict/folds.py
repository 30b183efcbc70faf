"""Closed-form fits of all folds and methods at once: scaling, ridge, least squares."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Problem:
    """What is fitted: metrics X (n, p), targets Y (n, m), train and test rows (F, n) of F folds.

    seeds (F, m) of random starts; `shared`: what a predictor's `prepare` made of X, or None.
    """

    X: np.ndarray
    Y: np.ndarray
    train: np.ndarray
    test: np.ndarray
    seeds: np.ndarray
    shared: Any = None


@dataclass(frozen=True)
class Linear:
    """Linear predictors of F folds and m methods on metrics scaled per fold to [-1, 1].

    low, span (F, p): training minimum and range (a zero range counts as 1, so the column is -1
    in training); coef (F, m, p) on the scaled metrics; intercept (F, m).
    """

    low: np.ndarray
    span: np.ndarray
    coef: np.ndarray
    intercept: np.ndarray

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Predictions of every fold for raw metrics X (n, p): (F, n, m)."""
        # slope on the raw metrics, so that no scaled copy of X per fold is made
        slope = self.coef * (2.0 / self.span)[:, None]
        shift = self.intercept - self.coef.sum(-1) - (slope * self.low[:, None]).sum(-1)
        return X @ slope.transpose(0, 2, 1) + shift[:, None]


def scaling(X: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Minimum and range (F, p) of X (n, p) over the training rows (F, n) of each fold.

    A range of at most 10 float64 epsilon counts as zero and becomes 1, as in scikit-learn's
    MinMaxScaler.
    """
    low = np.where(train[..., None], X, np.inf).min(axis=1)
    span = np.where(train[..., None], X, -np.inf).max(axis=1) - low
    return low, np.where(span <= 10 * np.finfo(np.float64).eps, 1.0, span)


def scaled(X: np.ndarray, low: np.ndarray, span: np.ndarray) -> np.ndarray:
    """2 (x - low) / span - 1 for every fold: (F, n, p)."""
    return 2.0 * (X - low[:, None]) / span[:, None] - 1.0


class RidgeFolds:
    """Ridge fits of the same metrics for many targets and folds.

    min_w,c  sum_k (y_k - c - x_k'w)^2 + alpha ||w||^2 over a fold's training pairs, x scaled
    min-max to [-1, 1] on them, intercept c unpenalized. The products x x' are formed once, so
    that a fold costs one (p, p) solve whatever the target: what a QAP null needs.
    """

    def __init__(self, X: np.ndarray) -> None:
        # one common scaling first keeps the products well conditioned
        self.X = np.asarray(X, dtype=np.float64)
        every = np.ones((1, len(self.X)), dtype=bool)
        self.low, self.span = scaling(self.X, every)
        self.Z = scaled(self.X, self.low, self.span)[0]
        self.products = (self.Z[:, :, None] * self.Z[:, None, :]).reshape(len(self.Z), -1)

    def fit(self, Y: np.ndarray, train: np.ndarray, alpha) -> Linear:
        """Fit Y (n, m) on the rows train (F, n); alpha is a number or an array (F, m).

        Rows of Y outside `train` are not looked at (they may be NaN).
        """
        f, p, m = len(train), self.Z.shape[1], Y.shape[1]
        rows = train.astype(np.float64)
        n = rows.sum(axis=1)[:, None]
        Y = np.where(np.any(train, axis=0)[:, None], Y, 0.0)
        center = Y.mean(axis=0)
        Y = Y - center
        low, span = scaling(self.Z, train)
        mean_z, mean_y = rows @ self.Z / n, rows @ Y / n
        gram = (rows @ self.products).reshape(f, p, p)
        gram -= n[..., None] * mean_z[:, :, None] * mean_z[:, None, :]
        cross = (rows @ (self.Z[:, :, None] * Y[:, None, :]).reshape(len(Y), -1)).reshape(f, p, m)
        cross -= n[..., None] * mean_z[:, :, None] * mean_y[:, None, :]
        factor = 2.0 / span
        gram *= factor[:, :, None] * factor[:, None, :]
        cross *= factor[:, :, None]
        eye = np.eye(p)
        if np.ndim(alpha) == 0:
            coef = np.linalg.solve(gram + alpha * eye, cross).transpose(0, 2, 1)
        else:
            system = gram[:, None] + np.asarray(alpha)[..., None, None] * eye
            coef = np.linalg.solve(system, cross.transpose(0, 2, 1)[..., None])[..., 0]
        mean_x = factor * (mean_z - low) - 1.0
        intercept = mean_y + center - (coef * mean_x[:, None]).sum(-1)
        # back from the common scaling to that of the raw metrics
        return Linear(
            self.low + (low + 1.0) * self.span / 2.0, span * self.span / 2.0, coef, intercept
        )


def ols_folds(X: np.ndarray, Y: np.ndarray, train: np.ndarray) -> Linear:
    """Least squares with intercept; of collinear metrics the solution of least norm.

    Through the singular value decomposition of each fold's scaled, centered metrics, values
    below max(n, p) epsilon times the largest counting as zero (scikit-learn's rule).
    """
    low, span = scaling(X, train)
    Z = scaled(X, low, span)
    n = train.sum(axis=1)
    inside = train[..., None]
    Y = np.where(np.any(train, axis=0)[:, None], Y, 0.0)
    mean_x = np.where(inside, Z, 0.0).sum(axis=1) / n[:, None]
    mean_y = np.where(inside, Y, 0.0).sum(axis=1) / n[:, None]
    Zc = np.where(inside, Z - mean_x[:, None], 0.0)
    Yc = np.where(inside, Y - mean_y[:, None], 0.0)
    u, s, vt = np.linalg.svd(Zc, full_matrices=False)
    cut = np.maximum(n, X.shape[1])[:, None] * np.finfo(np.float64).eps * s[:, :1]
    inverse = np.where(s > cut, 1.0 / np.where(s > cut, s, 1.0), 0.0)
    coef = (vt.transpose(0, 2, 1) @ (inverse[..., None] * (u.transpose(0, 2, 1) @ Yc))).transpose(
        0, 2, 1
    )
    return Linear(low, span, coef, mean_y - (coef * mean_x[:, None]).sum(-1))
