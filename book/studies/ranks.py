"""Spearman's rho between two tables over the same pairs: bootstrap over tasks, QAP null."""

import numpy as np
from scipy.stats import rankdata

from mergelib.pairs.correlation import constant, pearson
from mergelib.pairs.inference import permuted_targets, task_weights


def rho(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's rho along the last axis; NaN for fewer than 3 entries or a constant."""
    undefined = constant(a) | constant(b)
    a, b = rankdata(a, axis=-1), rankdata(b, axis=-1)
    return np.where(undefined, np.nan, pearson(a, b, np.ones(1, dtype=bool), axis=-1))


def weighted_ranks(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Midranks of x (n,) in samples that hold entry k weights[b, k] times: (B, n).

    Equal to the ranks in the sample written out, ties averaged.
    """
    values, place = np.unique(x, return_inverse=True)
    count = weights @ (place[:, None] == np.arange(len(values)))
    return (np.cumsum(count, axis=1) - (count - 1) / 2)[:, place]


def bootstrap_rho(
    x: np.ndarray, y: np.ndarray, ends: np.ndarray, draws: int = 500, seed: int = 0
) -> np.ndarray:
    """Spearman's rho of x and y (n,) in bootstrap samples of the tasks, (draws,)."""
    w = task_weights(ends, draws, seed)
    total = w.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):  # a sample of one pair has no rho
        a, b = (r - (w * r).sum(axis=1, keepdims=True) / total
                for r in (weighted_ranks(x, w), weighted_ranks(y, w)))  # fmt: skip
        spread = np.sqrt((w * a**2).sum(axis=1) * (w * b**2).sum(axis=1))
        return (w * a * b).sum(axis=1) / spread


def qap_rho(
    x: np.ndarray, y: np.ndarray, ends: np.ndarray, draws: int = 500, seed: int = 0
) -> np.ndarray:
    """rho of x and y (n,) under QAP permutations of the tasks of y, (draws,).

    Pairs without y in the other's place are left out of a draw. Source: Krackhardt (1988).
    """
    moved = permuted_targets(y[:, None], ends, draws, seed)[..., 0]
    inside = ~np.isnan(moved)
    a, b = (rankdata(np.where(inside, v, np.inf), axis=1) for v in (x, moved))  # absent ones last
    return pearson(a, b, inside, axis=1)
