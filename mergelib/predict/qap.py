"""QAP nulls: what a cross-validated predictor scores where tasks are permuted."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from mergelib.pairs.correlation import Scores, score
from mergelib.pairs.inference import permutation_p, permuted_targets
from mergelib.predict.crossval import fold_seeds, held_out
from mergelib.predict.predictors import PREDICTORS

STATISTICS = ("r_fold_mean", "r_concatenated", "r_pooled")


@dataclass(frozen=True)
class Qap:
    """The null distribution of each statistic: null[name] (N, m), observed[name] (m,)."""

    observed: dict[str, np.ndarray]
    null: dict[str, np.ndarray]

    def p(self, name: str) -> np.ndarray:
        """`permutation_p` of each method, (m,)."""
        return permutation_p(self.observed[name], self.null[name])

    def mean(self, name: str) -> np.ndarray:
        """Mean of the null, (m,)."""
        return _column(np.mean, self.null[name])

    def point95(self, name: str) -> np.ndarray:
        """95 % point of the null, (m,)."""
        return _column(lambda x: np.quantile(x, 0.95), self.null[name])


def _column(function: Callable, values: np.ndarray) -> np.ndarray:
    kept = [column[~np.isnan(column)] for column in values.T]
    return np.array([function(c) if len(c) else np.nan for c in kept])


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
    """QAP null of a cross-validated predictor: tasks permuted jointly in rows and columns.

    Each of `n` draws permutes the tasks of the accuracy matrix against the metrics, keeps the
    folds, and repeats the whole fit and test (the choice of strength too). Pairs that have no
    target under a permutation are left out of that draw, not filled. Y (n, m): all methods see
    the same permutations. Under leave-one-task-out the null is far above zero.
    """
    methods = methods or tuple(str(k) for k in range(Y.shape[1]))
    seeds = fold_seeds(seed, methods, len(train))
    shared = PREDICTORS[name].prepare(X)

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
    for targets in permuted_targets(Y, ends, n, seed):
        scores = run(targets)
        for s in STATISTICS:
            null[s].append(getattr(scores, s))
    return Qap(
        {s: getattr(observed, s) for s in STATISTICS},
        {s: np.array(v).reshape(n, Y.shape[1]) for s, v in null.items()},
    )
