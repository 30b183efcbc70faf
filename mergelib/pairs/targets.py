"""The targets that a forecast may be of, and additive task effects.

QAP permutations of the tasks ask for the target of every pair, so they draw from a cube of all
merged pairs: a pair that lacks a metric may well have been merged.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mergelib.core.errors import MergelibError
from mergelib.core.registry import Registry, unknown
from mergelib.pairs.tables import KEYS, Pairs, check_once, normalized, outcomes, raw

Function = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Target:
    """One target: a function of accuracy (n, m, 2), single (n, m, 2) and ends (n, 2) -> (n, m).

    `effects`: whether additive task effects are part of it, so that they stand in for a pair that
    was never merged; without them 0 does.
    """

    name: str
    effects: bool
    reference: str
    function: Function


TARGETS: Registry[Target] = Registry("target", group="mergelib.targets")


def new_target(
    name: str, effects: bool = True, reference: str = ""
) -> Callable[[Function], Function]:
    """Register a target under a name; see `Target`."""

    def register(function: Function) -> Function:
        TARGETS.add(Target(name, effects, reference, function))
        return function

    return register


# ---- Additive task effects ----------------------------------------------------------------------


def additive_design(ends: np.ndarray, n_tasks: int) -> np.ndarray:
    """The 0/1 matrix (n, T) with ones at a pair's two tasks."""
    design = np.zeros((len(ends), n_tasks))
    rows = np.arange(len(ends))
    design[rows, ends[:, 0]] = 1.0
    design[rows, ends[:, 1]] = 1.0
    return design


def additive_fit(y: np.ndarray, ends: np.ndarray, n_tasks: int) -> tuple[np.ndarray, np.ndarray]:
    """Task effects e (T, ...) of y (n, ...) and what they leave, y_ij - (e_i + e_j), (n, ...).

    By least squares, of least norm where the pairs do not determine e.
    """
    design = additive_design(ends, n_tasks)
    effects = np.linalg.lstsq(design, y, rcond=None)[0]
    return effects, y - design @ effects


def residual(y: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """What additive task effects leave of y: y_ij - (e_i + e_j), e by least squares, (n, m).

    The effects are fitted once, on all pairs of the table: this residual describes the pair's
    interaction and is the same in every split. It is a target, never a predictor. The additive
    *baseline* is fitted on the training pairs alone; against this target its r is near -1 by
    construction, since a task's residuals sum to 0: what training holds of them, the test lacks.
    """
    return additive_fit(y, ends, int(ends.max()) + 1)[1]


# ---- The targets --------------------------------------------------------------------------------


@new_target("raw", reference="the released fits")
def _raw(accuracy: np.ndarray, single: np.ndarray, ends: np.ndarray) -> np.ndarray:
    return raw(accuracy)


@new_target("normalized", reference="arXiv 2601.22285, section 4")
def _normalized(accuracy: np.ndarray, single: np.ndarray, ends: np.ndarray) -> np.ndarray:
    if not (single > 0).all():
        raise MergelibError("merges table: single_a and single_b must be above 0 to normalize by")
    return normalized(accuracy, single)


@new_target("residual", effects=False, reference="this library")
def _residual(accuracy: np.ndarray, single: np.ndarray, ends: np.ndarray) -> np.ndarray:
    return residual(_normalized(accuracy, single, ends), ends)


def target(pairs: Pairs, name: str, base: str = "normalized") -> np.ndarray:
    """The target of every pair and method, (n, m); `base` is what the residual is taken of.

    Raises MergelibError for an unknown target and for a single-task accuracy that is not positive.
    """
    row = TARGETS[name]
    of = TARGETS[base] if name == "residual" else row
    y = of.function(pairs.accuracy, pairs.single, pairs.ends)
    return residual(y, pairs.ends) if of is not row else y


def outcome_cube(
    merges: pd.DataFrame,
    tasks: Sequence[str],
    methods: Sequence[str],
    target: str = "normalized",
    fill: bool = False,
) -> np.ndarray:
    """(T, T, m), symmetric: a target of every pair, NaN on the diagonal and where not merged.

    Of the residual the effects are fitted to all merged pairs of a method. With `fill`, for null
    draws only, a pair that was never merged takes its additive task effects. Raises MergelibError
    for an unknown target, method or task, and if a pair and method come twice.
    """
    row = TARGETS[target]
    check_once(outcomes(merges))
    known = list(dict.fromkeys(merges["method"]))
    place = {task: k for k, task in enumerate(tasks)}
    index = pd.MultiIndex.from_frame(merges[KEYS].drop_duplicates())
    ends = np.array([(place.get(a, -1), place.get(b, -1)) for a, b in index])
    cube = np.full((len(tasks), len(tasks), len(methods)), np.nan)
    every = np.stack(np.triu_indices(len(tasks), k=1), axis=1)
    for k, method in enumerate(methods):
        if method not in known:
            raise MergelibError(unknown("method", method, known))
        of = merges[merges["method"] == method].set_index(KEYS).reindex(index)
        accuracy, single = (
            of[[f"{stem}_a", f"{stem}_b"]].to_numpy(np.float64) for stem in ("acc", "single")
        )
        kept = (ends >= 0).all(axis=1) & ~np.isnan(accuracy).any(axis=1)
        pairs = ends[kept]
        y = row.function(accuracy[kept, None], single[kept, None], pairs)[:, 0]
        if fill:
            effects = np.zeros(len(tasks))
            if row.effects:
                effects = additive_fit(y, pairs, len(tasks))[0]
            _put(cube[..., k], every, effects[every].sum(axis=1))
        _put(cube[..., k], pairs, y)
    return cube


def _put(square: np.ndarray, ends: np.ndarray, values: np.ndarray) -> None:
    square[ends[:, 0], ends[:, 1]] = square[ends[:, 1], ends[:, 0]] = values
