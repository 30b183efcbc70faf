"""Forecasts of pairs whose tasks no coefficient has seen, at a level of evidence."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mergelib.forecast.bank import Bank
from mergelib.forecast.intervals import Errors, errors_of
from mergelib.forecast.moments import Moments, ridge

STRENGTH, SHARING = 0.03, 0.3  # see `studies.forecasting.choices`
MOST = 1.05  # of its expert's accuracy, that a merge is forecast to keep


@dataclass(frozen=True)
class Calibration:
    """Errors of the mean of a pair's sides and of the worse one; correlation (M, M) of methods."""

    mean: Errors
    worse: Errors
    correlation: np.ndarray


def held_out(
    bank: Bank,
    of_folds: Moments,
    fold: np.ndarray,
    pair: np.ndarray,
    names: Sequence[str],
    strength: float = STRENGTH,
    sharing: float = SHARING,
) -> np.ndarray:
    """Forecasts of `pair` (Q,) by the coefficients of `fold` (Q,): (2, Q, M, 2, R, S).

    First with the coefficients of each method, then with those that all methods share. `of_folds`
    holds the sums of F folds, see `moments.summed`; sides are forecast for their own n.
    """
    columns = bank.X[..., [bank.names.index(name) for name in names]]
    moments = of_folds.of(names)
    _, m, _, r, s, _ = bank.X.shape
    out = np.empty((2, len(pair), m, 2, r, s))
    for n in np.unique(bank.images[pair]):
        coef, intercept = ridge(moments.at(1 / n), strength, sharing)
        for side, size in np.ndindex(2, s):
            rows = np.flatnonzero(bank.images[pair, side, size] == n)
            x = columns[pair[rows], :, side, :, size]
            for k, which in enumerate((slice(m), slice(m, m + 1))):
                b, c = coef[fold[rows], which], intercept[fold[rows], which]
                out[k, rows, :, side, :, size] = (x @ b[..., None])[..., 0] + c[..., None]
    return np.clip(out, 0.0, MOST)


def means_and_worse(sides: np.ndarray) -> np.ndarray:
    """Forecasts of a pair's mean and of its worse side, (2, ..., R, S), from (..., 2, R, S)."""
    return np.stack([sides.mean(axis=-3), sides.min(axis=-3)])


def calibrate(bank: Bank, pair: np.ndarray, forecasts: np.ndarray) -> Calibration:
    """What left-out forecasts of `pair` (Q,) were off by.

    forecasts (2, 2, Q, M, R, S), `means_and_worse` of `held_out`: of mean and worse side, each
    with the coefficients of the method and with those shared.
    """
    inverse_n = (1 / bank.images[pair]).mean(axis=1)
    found = []
    for outcome, of in zip((bank.mean, bank.worse), forecasts, strict=True):
        own, other = outcome[pair][:, :, None, None] - of
        found.append(errors_of(own, other, inverse_n))
    (mean, correlation), (worse, _) = found
    return Calibration(mean, worse, correlation)
