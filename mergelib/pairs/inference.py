"""How sure: QAP nulls, task bootstrap, correction for several methods."""

import numpy as np
import pandas as pd


def relabel(Y: np.ndarray, ends: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Targets after renaming task k to order[k]: row (i, j) gets y of (order[i], order[j]).

    Y (n, m); a pair that has no target under its new name gets NaN. Source: Hubert and Schultz
    (1976), Krackhardt (1988).
    """
    n_tasks = len(order)
    table = np.full((n_tasks, n_tasks, Y.shape[1]), np.nan)
    table[ends[:, 0], ends[:, 1]] = Y
    table[ends[:, 1], ends[:, 0]] = Y
    return table[order[ends[:, 0]], order[ends[:, 1]]]


def relabellings(Y: np.ndarray, ends: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """Targets Y (n_pairs, m) under `n` random renamings of the tasks: (N, n_pairs, m).

    NaN where a pair has no target under its new name.
    """
    rng = np.random.default_rng([seed, 1])
    present = np.unique(ends)
    order = np.arange(int(ends.max()) + 1)
    out = np.empty((n, *Y.shape))
    for k in range(n):
        order[present] = rng.permutation(present)
        out[k] = relabel(Y, ends, order)
    return out


def task_weights(ends: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """Weights of the pairs in `n` bootstrap samples of tasks, (N, n_pairs).

    Tasks are drawn with replacement; a pair counts (draws of one task) x (draws of the other).
    Pairs of a task with its own copy have no accuracy and are left out.
    """
    rng = np.random.default_rng([seed, 2])
    tasks = np.unique(ends)
    out = np.empty((n, len(ends)))
    position = np.searchsorted(tasks, ends)
    for k in range(n):
        times = np.bincount(rng.integers(len(tasks), size=len(tasks)), minlength=len(tasks))
        out[k] = times[position[:, 0]] * times[position[:, 1]]
    return out


def bootstrap_r(
    prediction: np.ndarray, y: np.ndarray, ends: np.ndarray, n: int = 2000, seed: int = 0
) -> np.ndarray:
    """Weighted Pearson r of held-out predictions (pairs,) with y in each task bootstrap, (N,)."""
    w = task_weights(ends, n, seed)
    # NaN for a sample that is one task alone, or whose values do not vary
    with np.errstate(invalid="ignore", divide="ignore"):
        w = w / w.sum(axis=1, keepdims=True)
        mean_a, mean_b = w @ prediction, w @ y
        a, b = prediction - mean_a[:, None], y - mean_b[:, None]
        return (w * a * b).sum(1) / np.sqrt((w * a**2).sum(1) * (w * b**2).sum(1))


def interval(draws: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of bootstrap draws along the first axis."""
    tail = (1 - level) / 2
    return np.nanquantile(draws, tail, axis=0), np.nanquantile(draws, 1 - tail, axis=0)


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down adjusted p-values (family-wise error over the methods)."""
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    out = np.empty_like(p)
    out[order] = np.minimum(stepped, 1.0)
    return out


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Benjamini and Hochberg's adjusted p-values (false discovery rate over the methods)."""
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p, kind="stable")[::-1]
    stepped = np.minimum.accumulate(p[order] * len(p) / np.arange(len(p), 0, -1))
    out = np.empty_like(p)
    out[order] = np.minimum(stepped, 1.0)
    return out


def permutations(n_tasks: int, n: int, seed: int = 0) -> np.ndarray:
    """`n` random renamings of the tasks, (N, T)."""
    rng = np.random.default_rng([seed, 1])
    return (
        np.stack([rng.permutation(n_tasks) for _ in range(n)]) if n else np.empty((0, n_tasks), int)
    )


def relabelled(cube: np.ndarray, ends: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """What each pair's target is once task k is called orders[k]: (N, n_pairs, m)."""
    return cube[orders[:, ends[:, 0]], orders[:, ends[:, 1]]]


def fold_sd(values: np.ndarray) -> np.ndarray:
    """Standard deviation (n - 1) over the folds (F, m) that are defined; NaN below two, (m,)."""
    kept = [column[~np.isnan(column)] for column in values.T]
    return np.array([c.std(ddof=1) if len(c) > 1 else np.nan for c in kept])


def fold_interval(
    values: np.ndarray, draws: int = 2000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile interval of the mean over folds drawn with replacement: (m,) and (m,).

    values (F, m), one fold per task; NaN folds are left out. Folds share pairs and training data,
    so the interval is rather too narrow than too wide.
    """
    rng = np.random.default_rng([seed, 4])
    low, high = np.full((2, values.shape[1]), np.nan)
    for k, column in enumerate(values.T):
        kept = column[~np.isnan(column)]
        if len(kept) > 1:
            means = kept[rng.integers(len(kept), size=(draws, len(kept)))].mean(axis=1)
            low[k], high[k] = interval(means)
    return low, high


def beyond(observed: np.ndarray, null: np.ndarray) -> pd.DataFrame:
    """p = (1 + #{null >= observed}) / (1 + N), null_mean, null_95 for (m,) and (N, m)."""
    if not len(null):
        return pd.DataFrame({k: np.full(len(observed), np.nan) for k in NULL})
    p = (1 + (null >= observed - 1e-12).sum(axis=0)) / (1 + len(null))
    values = (p, null.mean(axis=0), np.quantile(null, 0.95, axis=0))
    return pd.DataFrame(dict(zip(NULL, values, strict=True)))


NULL = ("p", "null_mean", "null_95")


def with_mean(values: np.ndarray) -> np.ndarray:
    """Values by method (..., m) with their mean appended: (..., m + 1)."""
    return np.concatenate([values, values.mean(axis=-1, keepdims=True)], axis=-1)
