"""What is predicted about a pair: raw accuracy, normalized accuracy, or its residual."""

import numpy as np

from mergelib.errors import MergelibError
from mergelib.predict.data import Pairs
from mergelib.registry import unknown

TARGETS = ("raw", "normalized", "residual")


def raw(accuracy: np.ndarray) -> np.ndarray:
    """Mean accuracy of the merged model on the pair's two tasks, (n, m) from (n, m, 2).

    The target of the released fits.
    """
    return accuracy.mean(axis=-1)


def normalized(accuracy: np.ndarray, single: np.ndarray) -> np.ndarray:
    """Mean of accuracy / single-task accuracy over the two tasks, (n, m).

    The target that the paper's text names. A single-task accuracy of 0 gives inf.
    """
    return (accuracy / single).mean(axis=-1)


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
