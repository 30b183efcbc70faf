"""The lasso path of all folds and targets at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from mergelib.predict.folds import scaled, scaling

# penalties as a share of the least one that leaves no metric
RATIOS = tuple(float(x) for x in np.logspace(-0.2, -2.2, 9))


@dataclass(frozen=True)
class LassoFolds:
    """Lasso fits of F folds, m targets and K penalties on metrics scaled per fold to [-1, 1].

    low, span (F, p); coef (F, m, K, p) on the scaled metrics; intercept (F, m, K);
    alpha (F, m, K) in scikit-learn's objective.
    """

    low: np.ndarray
    span: np.ndarray
    coef: np.ndarray
    intercept: np.ndarray
    alpha: np.ndarray

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Predictions for raw metrics X (n, p): (F, n, m, K)."""
        Z = scaled(X, self.low, self.span)
        return np.einsum("fnp,fmkp->fnmk", Z, self.coef, optimize=True) + self.intercept[:, None]


@threadpool_limits.wrap(limits=1)
def lasso_folds(
    X: np.ndarray,
    Y: np.ndarray,
    train: np.ndarray,
    ratios: Sequence[float] = RATIOS,
    tolerance: float = 1e-4,
    sweeps: int = 400,
) -> LassoFolds:
    """The lasso path of every fold and target: metrics X (n, p), Y (n, m), masks train (F, n).

    min_w,c  1/(2n) sum_k (y_k - c - x_k'w)^2 + alpha ||w||_1 at alpha = ratio * alpha_max, where
    alpha_max = max_j |x_j'y| / n (centered) is the least penalty that leaves no metric. At unit
    prediction variance it is also the maximum of r - penalty ||w||_1.
    Coordinate descent on the Gram matrices of all folds and targets together, each ratio from the
    one before (`ratios` from large to small), until the duality gap is at most `tolerance` of the
    target's sum of squares or `sweeps` are done. Of a metric and its mirror the first is taken.
    """
    (f, p), m, k = (len(train), X.shape[1]), Y.shape[1], len(ratios)
    low, span = scaling(X, train)
    Z = scaled(X, low, span)
    n = train.sum(axis=1)
    Y = np.where(np.any(train, axis=0)[:, None], Y, 0.0)
    mean_x = np.where(train[..., None], Z, 0.0).sum(axis=1) / n[:, None]
    mean_y = train.astype(np.float64) @ Y / n[:, None]
    Zc = np.where(train[..., None], Z - mean_x[:, None], 0.0)
    Yc = np.where(train[..., None], Y - mean_y[:, None], 0.0)
    size = np.sqrt((Yc**2).sum(axis=1))
    varies = size > 1e-12 * n[:, None] * np.abs(mean_y)  # a constant target needs no metric
    cross = (Yc.transpose(0, 2, 1) @ Zc) / np.where(varies, size, 1.0)[..., None]
    cross = np.where(varies[..., None], cross, 0.0).reshape(f * m, p)
    gram = np.repeat(Zc.transpose(0, 2, 1) @ Zc, m, axis=0)
    top = np.abs(cross).max(axis=1)
    w, path = np.zeros((f * m, p)), np.empty((f * m, k, p))
    for place, ratio in enumerate(ratios):
        w = _descend(gram, cross, ratio * top, w, tolerance, sweeps)
        path[:, place] = w
    coef = path.reshape(f, m, k, p) * size[..., None, None]
    alpha = (top[:, None] * np.asarray(ratios)).reshape(f, m, k) * (size / n[:, None])[..., None]
    intercept = mean_y[..., None] - (coef * mean_x[:, None, None]).sum(-1)
    return LassoFolds(low, span, coef, intercept, alpha)


def _descend(gram, cross, penalty, start, tolerance: float, sweeps: int) -> np.ndarray:
    """min_w 1/2 w'Gw - b'w + penalty ||w||_1 for B problems: gram (B, p, p), cross (B, p).

    The target has norm 1, so that the duality gap is a share of its sum of squares. Problems
    leave the batch when they are done.
    """
    result, going = start.copy(), np.flatnonzero(np.abs(cross).max(axis=1) > 0)
    # problems last: a coordinate of all of them lies together
    G = gram[going].transpose(1, 2, 0).copy()
    b, lam, w = cross[going].T.copy(), penalty[going], start[going].T.copy()
    slope = b - np.einsum("jkb,kb->jb", G, w, optimize=True)
    curve = np.einsum("jjb->jb", G).copy()
    inverse = np.divide(1.0, curve, out=np.zeros_like(curve), where=curve > 1e-12)
    for sweep in range(1, sweeps + 1):
        for j in range(len(G)):
            pull = slope[j] + curve[j] * w[j]
            beyond = pull - np.clip(pull, -lam, lam)
            beyond[np.abs(beyond) < 1e-6 * lam] = 0.0  # rounding: the mirror of one already taken
            moved = beyond * inverse[j]
            step = moved - w[j]
            if step.any():
                slope -= G[j] * step
                w[j] = moved
        if sweep % 10 and sweep < sweeps:
            continue
        explained = (w * b).sum(axis=0)
        rest = 1.0 - explained - (w * slope).sum(axis=0)  # squared residual
        shrink = np.minimum(1.0, lam / np.maximum(np.abs(slope).max(axis=0), 1e-300))
        gap = (1 + shrink**2) / 2 * rest + lam * np.abs(w).sum(axis=0) - shrink * (1 - explained)
        result[going] = w.T
        left = gap > tolerance
        if not left.any():
            break
        if left.mean() < 0.8:
            going, lam = going[left], lam[left]
            G, b, w, slope = G[..., left], b[:, left], w[:, left], slope[:, left]
            curve, inverse = curve[:, left], inverse[:, left]
    return result
