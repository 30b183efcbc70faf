"""Forecasts of pairs whose tasks no coefficient has seen, at a level of evidence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mergelib.forecasting.bank import Bank
from mergelib.forecasting.intervals import Errors, errors_of
from mergelib.forecasting.moments import Moments, ridge

# of `ridge`: chosen by the left-out errors on the glyph bank, which are flat about them
STRENGTH, SHARING = 0.03, 3.0
MOST = 1.05  # of its expert's accuracy, that a merge is forecast to keep
KINDS = ("side", "mean", "worse")


@dataclass(frozen=True)
class Calibration:
    """What left-out forecasts were off by, at a level of evidence.

    Errors of a side before its paired answers are taken in; gamma (C,): what these owe to each
    control variate; errors of the mean of a pair's sides and of the worse one, with the paired
    answers; correlation (M, M) of the errors of methods.
    """

    side: Errors
    gamma: np.ndarray
    mean: Errors
    worse: Errors
    correlation: np.ndarray

    def shifted(self, shifts: Mapping[str, float]) -> "Calibration":
        """With the errors of each of KINDS as much wider, in variance, as another world asks."""
        errors = {kind: replace(getattr(self, kind), shift=shifts[kind]) for kind in KINDS}
        return replace(self, **errors)


def held_out(
    bank: Bank,
    of_folds: Moments,
    fold: np.ndarray,
    pair: np.ndarray,
    names: Sequence[str],
    strength: float = STRENGTH,
    sharing: float = SHARING,
    methods: Sequence[int] | None = None,
) -> np.ndarray:
    """Forecasts of `pair` (Q,) by the coefficients of `fold` (Q,): (2, Q, M, 2, R, S).

    First with the coefficients of each method, then with those that all methods share. `of_folds`
    holds the sums of F folds, see `moments.summed`; sides are forecast for their own n. `methods`:
    where the bank's stand in the folds; None: there are no others.
    """
    columns = bank.X[..., [bank.names.index(name) for name in names]]
    moments = of_folds.of(names)
    _, m, _, r, s, _ = bank.X.shape
    out = np.empty((2, len(pair), m, 2, r, s))
    for n in np.unique(bank.images[pair]):
        coef, intercept = ridge(moments.at(n), strength, sharing)
        each = range(m) if methods is None else methods
        for side, size in np.ndindex(2, s):
            rows = np.flatnonzero(bank.images[pair, side, size] == n)
            x = columns[pair[rows], :, side, :, size]
            for k, which in enumerate(([*each], [-1])):
                b, c = coef[fold[rows]][:, which], intercept[fold[rows]][:, which]
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
    variance: np.ndarray,
    gamma: np.ndarray,
    paired: Sequence[str],
) -> np.ndarray:
    """Forecasts (Q, M, 2, R, S) of `pair` (Q,) combined with the paired answers of the same images.

    variance (Q, M, 2, S) of the forecasts, see `variance_of`; gamma of a `Calibration`; `paired`:
    columns of the estimate, its variance and the control variates u, or none: the forecasts as
    they are. The estimate is paired + gamma'u.
    """
    if not paired:
        return sides
    estimate, of_estimate, *controls = _columns(bank, pair, paired)
    estimate = estimate + sum(g * u for g, u in zip(gamma, controls, strict=True))
    return combined(sides, variance[:, :, :, None], estimate, of_estimate)


def control_coefficients(
    bank: Bank, pair: np.ndarray, sides: np.ndarray, variance: np.ndarray, paired: Sequence[str]
) -> np.ndarray:
    """gamma (C,): least squares of what `combined` is off by on its weight times the controls.

    All methods, sizes and draws of left-out forecasts together; sizes as in `with_paired`.
    Source: regression-estimated control variates (Owen 2013, section 8.9).
    """
    if len(paired) <= 2:
        return np.zeros(0)
    estimate, of_estimate, *controls = _columns(bank, pair, paired)
    total = variance[:, :, :, None]
    off = bank.kept[pair][..., None, None] - combined(sides, total, estimate, of_estimate)
    weight = total / (total + of_estimate)
    x = np.stack([(weight * u).ravel() for u in controls], axis=1)
    return np.linalg.solve(x.T @ x, x.T @ off.ravel())


def _columns(bank: Bank, pair: np.ndarray, names: Sequence[str]) -> list[np.ndarray]:
    held = bank.X[pair]
    return [held[..., bank.names.index(name)] for name in names]


def variance_of(bank: Bank, pair: np.ndarray, errors: Errors, methods: list[int]) -> np.ndarray:
    """Error variance (Q, M, 2, S) of the sides of `pair`, each at its own number of images."""
    images = bank.images[pair]
    held = {n: [errors.spread(m, 1 / n) ** 2 for m in methods] for n in np.unique(images)}
    return np.moveaxis(np.array([held[n] for n in images.ravel()]).reshape(*images.shape, -1), 3, 1)


def calibrate(
    bank: Bank, pair: np.ndarray, forecasts: np.ndarray, paired: Sequence[str] = ()
) -> Calibration:
    """What left-out forecasts (2, Q, M, 2, R, S) of `pair` (Q,), from `held_out`, were off by.

    `paired` as in `with_paired`.
    """
    by_side = (len(pair) * 2, *forecasts.shape[2:3], *forecasts.shape[4:])  # every side a row
    off = (bank.kept[pair][..., None, None] - forecasts).swapaxes(2, 3).reshape(2, *by_side)
    of_side, _ = errors_of(off[0], off[1], bank.sizes)
    m = len(bank.methods)
    own, shared = (variance_of(bank, pair, of_side, which) for which in (list(range(m)), [m] * m))
    gamma = control_coefficients(bank, pair, forecasts[0], own, paired)
    sides = [
        with_paired(bank, pair, x, variance, gamma, paired)
        for x, variance in zip(forecasts, (own, shared), strict=True)
    ]
    found = []
    for outcome, of_sides in ((bank.mean, np.mean), (bank.worse, np.min)):
        errors = [outcome[pair][:, :, None, None] - of_sides(x, axis=2) for x in sides]
        found.append(errors_of(errors[0], errors[1], bank.sizes))
    (mean, correlation), (worse, _) = found
    return Calibration(of_side, gamma, mean, worse, correlation)
