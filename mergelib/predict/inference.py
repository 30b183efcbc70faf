"""How sure: QAP nulls, task bootstrap, correction for several methods."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from mergelib.predict.crossval import fold_seeds, held_out
from mergelib.predict.folds import RidgeFolds
from mergelib.predict.scores import Scores, score

STATISTICS = ("r_fold_mean", "r_concatenated", "r_pooled")


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


@dataclass(frozen=True)
class Qap:
    """The null distribution of each statistic: null[name] (N, m), observed[name] (m,)."""

    observed: dict[str, np.ndarray]
    null: dict[str, np.ndarray]

    def p(self, name: str) -> np.ndarray:
        """(1 + #{null >= observed}) / (1 + N) over defined draws, (m,); NaN if not defined."""
        null, seen = self.null[name], self.observed[name]
        defined = ~np.isnan(null)
        reached = (defined & (null >= seen - 1e-12)).sum(axis=0)
        p = (1 + reached) / (1 + defined.sum(axis=0))
        return np.where(np.isnan(seen) | ~defined.any(axis=0), np.nan, p)

    def mean(self, name: str) -> np.ndarray:
        """Mean of the null, (m,)."""
        return _column(np.mean, self.null[name])

    def point95(self, name: str) -> np.ndarray:
        """95 % point of the null, (m,)."""
        return _column(lambda x: np.quantile(x, 0.95), self.null[name])


def _column(function: Callable, values: np.ndarray) -> np.ndarray:
    kept = [column[~np.isnan(column)] for column in values.T]
    return np.array([function(c) if len(c) else np.nan for c in kept])


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


@threadpool_limits.wrap(limits=1)  # thousands of small solves: threads would only wait
def qap(
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
    """QAP null of a cross-validated predictor: tasks relabelled jointly in rows and columns.

    Each of `n` draws permutes the tasks of the accuracy matrix against the metrics, keeps the
    folds, and repeats the whole fit and test (the choice of strength too). Pairs that have no
    target under a relabelling are left out of that draw, not filled. Y (n, m): all methods see
    the same relabellings. Under leave-one-task-out the null is far above zero.
    """
    methods = methods or tuple(str(k) for k in range(Y.shape[1]))
    seeds = fold_seeds(seed, methods, len(train))
    shared = RidgeFolds(X) if name == "ridge" else None

    def run(targets: np.ndarray) -> Scores:
        valid = ~np.isnan(targets).any(axis=1)
        inside, outside = train & valid, test & valid
        folds = (inside.sum(axis=1) >= 2) & outside.any(axis=1)
        inside, outside = inside[folds], outside[folds]
        fit = held_out(name, X, targets, ends, inside, outside, alpha, seeds[folds], shared)
        filled = np.where(valid[:, None], targets, 0.0)
        return score(fit.prediction, filled, outside)

    observed = run(Y)
    null: dict[str, list[np.ndarray]] = {s: [] for s in STATISTICS}
    for targets in relabellings(Y, ends, n, seed):
        scores = run(targets)
        for s in STATISTICS:
            null[s].append(getattr(scores, s))
    return Qap(
        {s: getattr(observed, s) for s in STATISTICS},
        {s: np.array(v).reshape(n, Y.shape[1]) for s, v in null.items()},
    )


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


def bootstrap_coefficients(
    X: np.ndarray, y: np.ndarray, ends: np.ndarray, alpha: float = 1.0, n: int = 1000, seed: int = 0
) -> np.ndarray:
    """Ridge coefficients on metrics scaled to [-1, 1] over all pairs, in each task bootstrap.

    (N, p) for one target y (n_pairs,), with the pairs' bootstrap weights in the sum of squares.
    """
    from mergelib.predict.folds import scaled, scaling

    every = np.ones((1, len(y)), dtype=bool)
    Z = scaled(X, *scaling(X, every))[0]
    w = task_weights(ends, n, seed)
    total = w.sum(axis=1)
    mean_z, mean_y = w @ Z / total[:, None], w @ y / total
    p = X.shape[1]
    gram = (w @ (Z[:, :, None] * Z[:, None, :]).reshape(len(Z), -1)).reshape(n, p, p)
    gram -= total[:, None, None] * mean_z[:, :, None] * mean_z[:, None, :]
    cross = w @ (Z * y[:, None]) - total[:, None] * mean_z * mean_y[:, None]
    return np.linalg.solve(gram + alpha * np.eye(p), cross[..., None])[..., 0]


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
