"""Forecasts of pairs whose tasks no coefficient has seen, at a level of evidence."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mergelib.forecast.bank import Bank
from mergelib.forecast.intervals import Errors, errors_of
from mergelib.forecast.moments import Moments, ridge

STRENGTH, SHARING = 0.03, 3.0  # of `ridge`: a hundredth to a tenth, and 0.3 to 3, do as well
MOST = 1.05  # of its expert's accuracy, that a merge is forecast to keep


@dataclass(frozen=True)
class Calibration:
    """What left-out forecasts were off by, at a level of evidence.

    side (M + 1, 2): error variance v_inf + v_1 / n of a side, before its paired answers are taken
    in; gamma (C,): what these owe to each control variate; errors of the mean of a pair's sides
    and of the worse one, with the paired answers; correlation (M, M) of the errors of methods.
    """

    side: np.ndarray
    gamma: np.ndarray
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
        coef, intercept = ridge(moments.at(n), strength, sharing)
        for side, size in np.ndindex(2, s):
            rows = np.flatnonzero(bank.images[pair, side, size] == n)
            x = columns[pair[rows], :, side, :, size]
            for k, which in enumerate((slice(m), slice(m, m + 1))):
                b, c = coef[fold[rows], which], intercept[fold[rows], which]
                out[k, rows, :, side, :, size] = (x @ b[..., None])[..., 0] + c[..., None]
    return np.clip(out, 0.0, MOST)


def combined(forecast, variance, paired, paired_variance):
    """Forecast and paired estimate, each by its precision: (f / s^2 + p / v) / (1 / s^2 + 1 / v).

    The posterior mean of a normal law (Gelman et al. 2013, section 2.5).
    """
    weight = variance / (variance + paired_variance)
    return np.clip(forecast + weight * (paired - forecast), 0.0, MOST)


def with_paired(
    bank: Bank,
    pair: np.ndarray,
    sides: np.ndarray,
    of_side: np.ndarray,
    gamma: np.ndarray,
    paired: Sequence[str],
) -> np.ndarray:
    """Forecasts (Q, M, 2, R, S) of `pair` (Q,) combined with the paired answers of the same images.

    of_side (M, 2), gamma: of a `Calibration`; `paired`: columns of the estimate, its variance and
    the control variates u, or none: the forecasts as they are. The estimate is paired + gamma'u.
    """
    if not paired:
        return sides
    estimate, variance, *controls = _columns(bank, pair, paired)
    estimate = estimate + sum(g * u for g, u in zip(gamma, controls, strict=True))
    return combined(sides, _by_n(bank, pair, of_side), estimate, variance)


def control_coefficients(
    bank: Bank, pair: np.ndarray, sides: np.ndarray, of_side: np.ndarray, paired: Sequence[str]
) -> np.ndarray:
    """gamma (C,): least squares of what `combined` is off by on its weight times the controls.

    All methods, sizes and draws of left-out forecasts together; sizes as in `with_paired`.
    Source: regression-estimated control variates (Owen 2013, section 8.9).
    """
    if len(paired) <= 2:
        return np.zeros(0)
    estimate, variance, *controls = _columns(bank, pair, paired)
    total = _by_n(bank, pair, of_side)
    off = bank.kept[pair][..., None, None] - combined(sides, total, estimate, variance)
    weight = total / (total + variance)
    x = np.stack([(weight * u).ravel() for u in controls], axis=1)
    return np.linalg.solve(x.T @ x, x.T @ off.ravel())


def _columns(bank: Bank, pair: np.ndarray, names: Sequence[str]) -> list[np.ndarray]:
    held = bank.X[pair]
    return [held[..., bank.names.index(name)] for name in names]


def _by_n(bank: Bank, pair: np.ndarray, of_side: np.ndarray) -> np.ndarray:
    """v_inf + v_1 / n of every side, (Q, M, 2, 1, S)."""
    v_inf, v_1 = (of_side[:, k, None, None, None] for k in (0, 1))
    return v_inf + v_1 / bank.images[pair][:, None, :, None]


def calibrate(
    bank: Bank, pair: np.ndarray, forecasts: np.ndarray, paired: Sequence[str] = ()
) -> Calibration:
    """What left-out forecasts (2, Q, M, 2, R, S) of `pair` (Q,), from `held_out`, were off by.

    `paired` as in `with_paired`.
    """
    inverse_n = 1 / bank.images[pair]
    by_side = (len(pair) * 2, *forecasts.shape[2:3], *forecasts.shape[4:])  # every side a row
    off = (bank.kept[pair][..., None, None] - forecasts).swapaxes(2, 3).reshape(2, *by_side)
    of_side, _ = errors_of(off[0], off[1], inverse_n.reshape(len(pair) * 2, -1))
    shared = np.tile(of_side.variance[-1], (len(bank.methods), 1))
    of_method = of_side.variance[:-1]
    gamma = control_coefficients(bank, pair, forecasts[0], of_method, paired)
    sides = [
        with_paired(bank, pair, x, variance, gamma, paired)
        for x, variance in zip(forecasts, (of_method, shared), strict=True)
    ]
    found = []
    for outcome, of_sides in ((bank.mean, np.mean), (bank.worse, np.min)):
        own, other = (outcome[pair][:, :, None, None] - of_sides(x, axis=2) for x in sides)
        found.append(errors_of(own, other, inverse_n.mean(axis=1)))
    (mean, correlation), (worse, _) = found
    return Calibration(of_side.variance, gamma, mean, worse, correlation)
