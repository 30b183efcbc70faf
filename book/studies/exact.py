"""What the Pearson objectives optimize exactly: least squares, and the lasso path."""

import warnings

import numpy as np
from sklearn.linear_model import Lasso

from mergelib.core.errors import MergelibError


def max_pearson(X: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The weights w (p,) that maximize r(Xw, y), with Xw centered of norm 1.

    r(Xw, y) = cos(Xc w, yc), so the maximum is the direction whose Xc w is the projection of yc
    on the columns of Xc: least squares with intercept, up to scale. Of collinear columns the
    solution of least norm. Raises MergelibError for a constant y.
    """
    Xc, yc = _centered(X, y)
    w = np.linalg.lstsq(Xc, yc, rcond=None)[0]
    return w / np.linalg.norm(Xc @ w)


def lasso_pearson(X: np.ndarray, y: np.ndarray, penalty: float) -> np.ndarray:
    """The weights w (p,) that maximize r(Xw, y) - penalty * sum|w| subject to ||Xc w|| = 1.

    At unit prediction variance the penalty means something (without the bound the optimum is
    w -> 0). With b = s w, s >= 0, the lasso objective is
        1/2 ||yc - Xc b||^2 + lam ||b||_1 = 1/2 ||yc||^2 - s (r ||yc|| - lam ||w||_1) + s^2 / 2,
    least in s at s = r ||yc|| - lam ||w||_1 (or 0), where it is
        1/2 ||yc||^2 - 1/2 max(0, r ||yc|| - lam ||w||_1)^2:
    the best w is the lasso solution at lam = penalty * ||yc||, scaled to unit prediction variance,
    and running over penalty runs along the lasso path. Zeros if no w has a positive value.
    Raises MergelibError for a constant y or a negative penalty.
    """
    if penalty < 0:
        raise MergelibError(f"penalty {penalty} is negative: give 0 (least squares) or more")
    if penalty == 0:
        return max_pearson(X, y)
    Xc, yc = _centered(X, y)
    size = np.linalg.norm(yc)
    # scikit-learn divides the squared error by 2n; unit-norm y keeps its tolerance meaningful
    model = Lasso(alpha=penalty / len(yc), fit_intercept=False, tol=1e-10, max_iter=1_000_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # exactly collinear columns converge slowly, yet enough
        w = model.fit(Xc, yc / size).coef_
    norm = np.linalg.norm(Xc @ w)
    return w / norm if norm > 0 else w


def lasso_pearson_within(X: np.ndarray, y: np.ndarray, bound: float) -> np.ndarray:
    """The weights w (p,) that maximize r(Xw, y) subject to ||Xc w|| = 1 and sum|w| <= bound.

    The point of `lasso_pearson`'s path with sum|w| = bound (it grows as the penalty falls), found
    by bisection, or `max_pearson` where the bound does not bind. Raises MergelibError for a
    constant y and where no weights are so small.
    """
    free = max_pearson(X, y)
    if np.abs(free).sum() <= bound:
        return free
    Xc, yc = _centered(X, y)
    high = float(np.abs(Xc.T @ yc).max() / np.linalg.norm(yc))
    low, least = 1e-6 * high, lasso_pearson(X, y, 0.999 * high)
    if np.abs(least).sum() > bound:
        raise MergelibError(f"no weights of unit prediction variance have sum|w| <= {bound:g}")
    best = least
    for _ in range(40):
        middle = np.sqrt(low * high)
        w = lasso_pearson(X, y, middle)
        if 0 < np.abs(w).sum() <= bound:
            best, high = w, middle
            if np.abs(w).sum() > (1 - 1e-6) * bound:
                break
        elif not w.any():
            high = middle
        else:
            low = middle
    return best


def _centered(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    Xc, yc = X - X.mean(axis=0), y - y.mean()
    if not np.linalg.norm(yc) > 0:
        raise MergelibError("y is constant: no correlation with it is defined")
    return Xc, yc
