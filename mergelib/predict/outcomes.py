"""The targets of all pairs of tasks as a cube, whether or not their metrics are known.

Relabelling tasks asks for the target of every pair, so it draws from here: a pair that lacks a
metric may well have been merged.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mergelib.describe import by_method
from mergelib.errors import MergelibError
from mergelib.predict.targets import TARGETS, additive_design
from mergelib.registry import unknown


def outcome_cube(
    merges: pd.DataFrame,
    tasks: Sequence[str],
    methods: Sequence[str],
    target: str = "normalized",
    fill: bool = False,
) -> np.ndarray:
    """(T, T, m), symmetric: a target of every pair, NaN on the diagonal and where not merged.

    Targets as in `predict.targets`, the residual (of normalized accuracy) from effects fitted to
    all merged pairs of a method. With `fill`, for null draws only, a pair that was never merged
    takes its additive task effects. Raises MergelibError for an unknown target, method or task.
    """
    if target not in TARGETS:
        raise MergelibError(unknown("target", target, TARGETS))
    wide = by_method(merges, "raw" if target == "raw" else "normalized")
    for method in methods:
        if method not in wide:
            raise MergelibError(unknown("method", method, wide.columns))
    place = {task: k for k, task in enumerate(tasks)}
    ends = np.array([(place.get(a, -1), place.get(b, -1)) for a, b in wide.index])
    known = (ends >= 0).all(axis=1)
    cube = np.full((len(tasks), len(tasks), len(methods)), np.nan)
    every = np.stack(np.triu_indices(len(tasks), k=1), axis=1)
    for k, method in enumerate(methods):
        y = wide[method].to_numpy(np.float64)
        kept = known & ~np.isnan(y)
        pairs, y = ends[kept], y[kept]
        design = additive_design(pairs, len(tasks))
        effects = np.linalg.lstsq(design, y, rcond=None)[0]
        if target == "residual":
            y, effects = y - design @ effects, np.zeros(len(tasks))
        if fill:
            _put(cube[..., k], every, effects[every].sum(axis=1))
        _put(cube[..., k], pairs, y)
    return cube


def _put(square: np.ndarray, ends: np.ndarray, values: np.ndarray) -> None:
    square[ends[:, 0], ends[:, 1]] = square[ends[:, 1], ends[:, 0]] = values


def permutations(n_tasks: int, n: int, seed: int = 0) -> np.ndarray:
    """`n` random renamings of the tasks, (N, T)."""
    rng = np.random.default_rng([seed, 1])
    return (
        np.stack([rng.permutation(n_tasks) for _ in range(n)]) if n else np.empty((0, n_tasks), int)
    )


def relabelled(cube: np.ndarray, ends: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """What each pair's target is once task k is called orders[k]: (N, n_pairs, m)."""
    return cube[orders[:, ends[:, 0]], orders[:, ends[:, 1]]]
