"""How far a mean may lie from what other tasks or other folds would have given."""

import numpy as np

from mergelib.pairs.inference import interval, task_weights


def drawn_means(weights: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Weighted mean of y (n,) in each bootstrap sample of weights (N, n): (at most N,).

    A sample without any of the units (of pairs: one task alone) is left out.
    """
    total = weights.sum(axis=1)
    kept = total > 0
    return weights[kept] @ y / total[kept]


def bootstrap_mean(y: np.ndarray, ends: np.ndarray, draws: int = 2000, seed: int = 0) -> np.ndarray:
    """Mean of y (n_pairs,) over the pairs of each bootstrap sample of tasks, (draws,).

    Tasks, not pairs, are what could have been others: pairs that share a task are dependent.
    """
    return drawn_means(task_weights(ends, draws, seed), y)


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
