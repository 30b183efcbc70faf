"""How far forecasts of left-out pairs were off, as a function of the images they had seen."""

from dataclasses import dataclass

import numpy as np
from scipy.integrate import trapezoid
from scipy.optimize import nnls

GRID = np.linspace(0.0, 1.0, 201)


@dataclass(frozen=True)
class Errors:
    """The distribution of outcome minus forecast, at a level of evidence.

    variance (M + 1, 2): v_inf and v_1 of each method, the last of a method that the bank does not
    hold, with error variance v_inf + v_1 / n; quantiles (G,): of error / standard deviation at the
    probabilities GRID, all methods together.
    """

    variance: np.ndarray
    quantiles: np.ndarray

    def spread(self, method: int, inverse_n: float | np.ndarray) -> np.ndarray:
        """Standard deviation of the error, sqrt(v_inf + v_1 / n)."""
        v_inf, v_1 = self.variance[method]
        return np.sqrt(v_inf + v_1 * np.asarray(inverse_n))

    @property
    def middle(self) -> float:
        """The mean error, in standard deviations."""
        return float(trapezoid(self.quantiles, GRID))

    def interval(self, forecast, spread, level: float) -> tuple[np.ndarray, np.ndarray]:
        """forecast + spread q: q the quantiles that leave (1 - level) / 2 on either side.

        Left-out errors stand in for those of the next pair, as in the jackknife.
        Source: Barber et al. 2021 (jackknife+), with scores normalized (Lei et al. 2018).
        """
        tail = (1 - level) / 2
        low, high = (np.interp(p, GRID, self.quantiles) for p in (tail, 1 - tail))
        return forecast + spread * low, forecast + spread * high

    def reaches(self, threshold: float, forecast, spread) -> np.ndarray:
        """P(outcome >= threshold): the share of left-out errors that would take it there.

        Source: conformal predictive distributions (Vovk et al. 2019).
        """
        needed = (threshold - np.asarray(forecast)) / spread
        return 1 - np.interp(needed, self.quantiles, GRID)


def errors_of(
    error: np.ndarray, of_other: np.ndarray, inverse_n: np.ndarray
) -> tuple[Errors, np.ndarray]:
    """`Errors` from left-out errors, and the correlation (M, M) of the errors of two methods.

    error (P, M, R, S) with coefficients of each method; of_other, the same shape, with those that
    all methods share, as for a method that the bank does not hold; inverse_n (P, S), 1 / n.
    Variances by least squares of squared errors on 1 / n, neither part negative.
    """
    methods = [_variance(error[:, m], inverse_n) for m in range(error.shape[1])]
    other = _variance(of_other.swapaxes(0, 1).reshape(-1, *error.shape[2:]),
                      np.tile(inverse_n, (error.shape[1], 1)))  # fmt: skip
    variance = np.array([*methods, other])
    spread = np.sqrt(
        variance[:-1, 0][:, None] + variance[:-1, 1][:, None] * inverse_n[:, None]
    )  # (P, M, S)
    scaled = error / spread[:, :, None]
    quantiles = np.quantile(scaled, GRID)
    by_method = scaled.swapaxes(0, 1).reshape(error.shape[1], -1)
    together = by_method @ by_method.T
    size = np.sqrt(np.diagonal(together))
    return Errors(variance, quantiles), together / size[:, None] / size


def _variance(error: np.ndarray, inverse_n: np.ndarray) -> np.ndarray:
    """v_inf and v_1 of errors (P, R, S)."""
    squared = (error**2).mean(axis=1).ravel()
    x = np.stack([np.ones_like(squared), inverse_n.ravel()], axis=1)
    return nnls(x, squared)[0]
