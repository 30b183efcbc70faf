"""How much of what pairs differ in comes from their tasks one by one."""

import numpy as np

from mergelib.pairs.targets import residual


def explained(y: np.ndarray, left: np.ndarray) -> float:
    """R²: the share of the variance of y (n,) that is not `left`; NaN if y is constant."""
    spread = np.sum((y - y.mean()) ** 2)
    return float(1 - np.sum(left**2) / spread) if spread else np.nan


def additive_share(y: np.ndarray, ends: np.ndarray) -> float:
    """Share of the variance of y (n,) that additive task effects explain, y_ij ≈ e_i + e_j: R².

    Noise alone would give (T − 1) / (n − 1) on average, with T tasks and n pairs.
    """
    return explained(y, residual(y[:, None], ends))
