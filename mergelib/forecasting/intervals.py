"""How far forecasts of left-out pairs were off, as a function of the images they had seen."""

from dataclasses import dataclass

import numpy as np
from scipy.integrate import trapezoid

GRID = np.linspace(0.0, 1.0, 201)


@dataclass(frozen=True)
class Errors:
    """The distribution of outcome minus forecast, at a level of evidence.

    sizes (S,), rising; variance (M + 1, S) of each method's errors with as many images, the last of
    a method that the bank does not hold; quantiles (S, G): of error / standard deviation at the
    probabilities GRID, all methods together. Between sizes all are linear in 1 / n, beyond them
    those of the nearest. `shift`: the variance that another world adds (`transfer`), whatever n.
    """

    sizes: np.ndarray
    variance: np.ndarray
    quantiles: np.ndarray
    shift: float = 0.0

    def spread(self, method: int, inverse_n: float) -> float:
        """Standard deviation of a method's error at n images."""
        return float(np.sqrt(self._within(method, inverse_n) + self.shift))

    def _within(self, method: int, inverse_n: float) -> float:
        low, high, share = between(self.sizes, 1 / inverse_n)
        of = self.variance[method]
        return (1 - share) * of[low] + share * of[high]

    def shape(self, inverse_n: float) -> np.ndarray:
        """Quantiles (G,) of error / standard deviation at n images."""
        low, high, share = between(self.sizes, 1 / inverse_n)
        return (1 - share) * self.quantiles[low] + share * self.quantiles[high]

    def middle(self, method: int, inverse_n: float) -> float:
        """A method's mean error at n images, which another world is not known to move."""
        mean = trapezoid(self.shape(inverse_n), GRID)
        return float(mean * np.sqrt(self._within(method, inverse_n)))


def between(sizes: np.ndarray, n: float) -> tuple[int, int, float]:
    """Which rising sizes n lies between, and how far from the first to the second, in 1 / n.

    Below or above all: at the nearest.
    """
    every = np.arange(len(sizes))
    place = float(np.interp(1 / n, 1 / sizes[::-1], every[::-1]))
    low = min(int(place), max(len(sizes) - 2, 0))
    return low, min(low + 1, len(sizes) - 1), place - low


def interval(forecast, spread: float, shape: np.ndarray, level: float) -> tuple:
    """forecast + spread q: q the quantiles `shape` that leave (1 - level) / 2 on either side.

    Left-out errors stand in for those of the next pair, as in the jackknife.
    Source: Barber et al. 2021 (jackknife+), with scores normalized (Lei et al. 2018).
    """
    tail = (1 - level) / 2
    low, high = (np.interp(p, GRID, shape) for p in (tail, 1 - tail))
    return forecast + spread * low, forecast + spread * high


def reaches(threshold: float, forecast, spread: float, shape: np.ndarray):
    """P(outcome >= threshold): the share of left-out errors that would take the forecast there.

    Source: conformal predictive distributions (Vovk et al. 2019).
    """
    return 1 - np.interp((threshold - np.asarray(forecast)) / spread, shape, GRID)


def errors_of(
    error: np.ndarray, of_other: np.ndarray, sizes: np.ndarray
) -> tuple[Errors, np.ndarray]:
    """`Errors` from left-out errors, and the correlation (M, M) of the errors of two methods.

    error (P, M, R, S) with coefficients of each method; of_other, the same shape, with those that
    all methods share, as for a method that the bank does not hold.
    """
    own = (error**2).mean(axis=(0, 2))
    variance = np.concatenate([own, (of_other**2).mean(axis=(0, 1, 2))[None]])
    scaled = error / np.sqrt(own)[None, :, None]
    quantiles = np.quantile(scaled, GRID, axis=(0, 1, 2)).T
    by_method = scaled.swapaxes(0, 1).reshape(error.shape[1], -1)
    return Errors(sizes, variance, quantiles), by_method @ by_method.T / by_method.shape[1]
