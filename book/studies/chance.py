"""Targets and scores of several methods beside what permuted tasks give by chance."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from mergelib.pairs.inference import permutation_p, permutations, permuted
from mergelib.pairs.tables import Pairs, Tables
from mergelib.pairs.targets import TARGETS, outcome_cube

NULL = ("p", "null_mean", "null_95")


def targets_of(
    tables: Tables,
    pairs: Pairs,
    targets: Iterable[str] = TARGETS,
    relabel: int = 0,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Targets (n, T m) side by side, and their `relabel` QAP permutations (N, n, T m).

    All targets (by default every registered one) and methods see the same permutations. In them
    alone a pair that a method never merged takes its additive task effects, so that no pair is
    without a target.
    """
    names = list(targets)
    cubes = [
        np.concatenate(
            [outcome_cube(tables.merges, pairs.tasks, pairs.methods, t, fill) for t in names], -1
        )
        for fill in (False, True)
    ]
    y = cubes[0][pairs.ends[:, 0], pairs.ends[:, 1]]
    return y, permuted(cubes[1], pairs.ends, permutations(len(pairs.tasks), relabel, seed))


def beyond(observed: np.ndarray, null: np.ndarray) -> pd.DataFrame:
    """`permutation_p`, mean and 95 % point of the null: p, null_mean, null_95 for (m,), (N, m)."""
    if not len(null):
        return pd.DataFrame({k: np.full(len(observed), np.nan) for k in NULL})
    values = (permutation_p(observed, null), null.mean(axis=0), np.quantile(null, 0.95, axis=0))
    return pd.DataFrame(dict(zip(NULL, values, strict=True)))


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down adjusted p-values (family-wise error over the methods)."""
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    out = np.empty_like(p)
    out[order] = np.minimum(stepped, 1.0)
    return out


def with_mean(values: np.ndarray) -> np.ndarray:
    """Values by method (..., m) with their mean appended: (..., m + 1)."""
    return np.concatenate([values, values.mean(axis=-1, keepdims=True)], axis=-1)
