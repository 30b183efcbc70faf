"""How sure: permutation p-values, QAP permutations, bootstrap of tasks."""

import numpy as np


def permutation_p(observed: np.ndarray, null: np.ndarray) -> np.ndarray:
    """p = (1 + #{null >= observed}) / (1 + N) for observed (...) and null (N, ...): (...).

    A draw that is NaN does not count in N; NaN where observed, or every draw, is. A draw equal to
    observed up to rounding has reached it: two sums over the same pairs in another order differ by
    up to eps per term, so the comparison allows TERMS eps of the largest value. For a two-sided
    test give absolute values. Source: Phipson and Smyth (2010).
    """
    observed, null = np.asarray(observed, dtype=np.float64), np.asarray(null, dtype=np.float64)
    known = ~np.isnan(null)
    size = np.abs(np.concatenate([observed[None], np.where(known, null, 0.0)])).max(axis=0)
    margin = TERMS * np.finfo(np.float64).eps * size
    n = known.sum(axis=0)
    p = (1 + (null >= observed - margin).sum(axis=0)) / (1 + n)
    return np.where(np.isnan(observed) | (n == 0), np.nan, p)


TERMS = 4096  # more than any table here has pairs


# ---- QAP permutations: tasks renamed jointly in rows and columns of the outcomes ----------------


def permutations(tasks: int | np.ndarray, n: int, seed: int = 0, stream: int = 1) -> np.ndarray:
    """`n` random permutations of T tasks, or of the tasks numbered in an array: (N, T).

    Row k says which task stands in the place of each; numbers that no task has stay as they are.
    """
    tasks = np.arange(tasks) if isinstance(tasks, int) else np.unique(tasks)
    rng = np.random.default_rng([seed, stream])
    orders = np.tile(np.arange(int(tasks.max()) + 1), (n, 1))
    for order in orders:
        order[tasks] = rng.permutation(tasks)
    return orders


def square(Y: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Y (n_pairs, m) as a symmetric cube (T, T, m), NaN on the diagonal and for absent pairs."""
    size = int(ends.max()) + 1
    cube = np.full((size, size, Y.shape[1]), np.nan)
    cube[ends[:, 0], ends[:, 1]] = Y
    cube[ends[:, 1], ends[:, 0]] = Y
    return cube


def permuted(cube: np.ndarray, ends: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """QAP permutation: row (i, j) gets the entry (order[i], order[j]), (N, n_pairs, m).

    cube (T, T, m), ends (n_pairs, 2), orders (N, T). Source: Hubert and Schultz (1976),
    Krackhardt (1988).
    """
    return cube[orders[:, ends[:, 0]], orders[:, ends[:, 1]]]


def permuted_targets(
    Y: np.ndarray, ends: np.ndarray, n: int, seed: int = 0, stream: int = 1
) -> np.ndarray:
    """Targets Y (n_pairs, m) under `n` QAP permutations of their tasks: (N, n_pairs, m).

    NaN where a pair has no target in the other's place.
    """
    return permuted(square(Y, ends), ends, permutations(ends, n, seed, stream))


# ---- Bootstrap of tasks -------------------------------------------------------------------------


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
