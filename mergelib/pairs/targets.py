"""The targets of all pairs of tasks as a cube, whether or not their metrics are known.

Relabelling tasks asks for the target of every pair, so it draws from here: a pair that lacks a
metric may well have been merged.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mergelib.core.errors import MergelibError
from mergelib.core.registry import unknown
from mergelib.pairs.inference import permutations, relabelled
from mergelib.pairs.tables import Pairs, Tables, by_method, normalized, raw


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


TARGETS = ("raw", "normalized", "residual")


def additive_design(ends: np.ndarray, n_tasks: int) -> np.ndarray:
    """The 0/1 matrix (n, T) with ones at a pair's two tasks."""
    design = np.zeros((len(ends), n_tasks))
    rows = np.arange(len(ends))
    design[rows, ends[:, 0]] = 1.0
    design[rows, ends[:, 1]] = 1.0
    return design


def residual(y: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """What additive task effects leave of y: y_ij - (e_i + e_j), e by least squares, (n, m).

    The effects are fitted once, on all pairs of the table: this residual describes the pair's
    interaction and is the same in every split. It is a target, never a predictor. The additive
    *baseline* is fitted on the training pairs alone; against this target its r is near -1 by
    construction, since a task's residuals sum to 0: what training holds of them, the test lacks.
    """
    design = additive_design(ends, int(ends.max()) + 1)
    effects = np.linalg.lstsq(design, y, rcond=None)[0]
    return y - design @ effects


def target(pairs: Pairs, name: str, base: str = "normalized") -> np.ndarray:
    """The target of every pair and method, (n, m); `base` is what the residual is taken of.

    Raises MergelibError for an unknown target and for a single-task accuracy that is not positive.
    """
    if name not in TARGETS:
        raise MergelibError(unknown("target", name, TARGETS))
    if name == "raw":
        return raw(pairs.accuracy)
    if name == "residual" and base == "raw":
        return residual(raw(pairs.accuracy), pairs.ends)
    if not (pairs.single > 0).all():
        raise MergelibError("merges table: single_a and single_b must be above 0 to normalize by")
    y = normalized(pairs.accuracy, pairs.single)
    return residual(y, pairs.ends) if name == "residual" else y


# ---- Scores beside their nulls ------------------------------------------------------------------


def targets_of(
    tables: Tables, pairs: Pairs, targets: Sequence[str] = TARGETS, relabel: int = 0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Targets (n, T m) side by side, and those of `relabel` renamings of the tasks (N, n, T m).

    All targets and methods see the same renamings. In the renamings alone a pair that a method
    never merged takes its additive task effects, so that no pair is without a target.
    """
    cubes = [
        np.concatenate(
            [outcome_cube(tables.merges, pairs.tasks, pairs.methods, t, fill) for t in targets], -1
        )
        for fill in (False, True)
    ]
    y = cubes[0][pairs.ends[:, 0], pairs.ends[:, 1]]
    return y, relabelled(cubes[1], pairs.ends, permutations(len(pairs.tasks), relabel, seed))
