"""Another world than the bank's: what forecasts are off by there, and how wide that makes them.

A world is a set of tasks with its base and its way of fine-tuning. Left-out pairs of the bank do
not say what another world moves all its forecasts by; worlds whose outcomes are known do. A pair
with a known accuracy outside the bank's range is `beyond` it: the farther, the less is known.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace

import numpy as np

from mergelib.forecasting.bank import Bank
from mergelib.forecasting.calibration import (
    KINDS,
    Calibration,
    held_out,
    variance_of,
    with_paired,
)
from mergelib.forecasting.evidence import Known
from mergelib.forecasting.forecaster import Forecaster, Level, columns, paired
from mergelib.forecasting.intervals import Errors

Wrong = Mapping[str, np.ndarray]  # of side (P, M, 2, R, S), mean and worse (P, M, R, S)


def holds(world: Bank, level: Level) -> bool:
    """Whether a world's tables have what a level of evidence asks for."""
    return {*columns(level), *paired(level)} <= set(world.names)


def beyond(fitted: Forecaster, world: Bank, level: Level) -> np.ndarray:
    """Which pairs (P,) have a known accuracy outside the bank's range; none where none is known."""
    if not level[1]:
        return np.zeros(len(world.ends), dtype=bool)
    at = [world.names.index(name) for name in ("zero_shot", "fine_tuned")]
    known = world.X[:, 0, :, 0, 0][..., at]
    return np.array([any(fitted.beyond(Known(*each)) for each in pair) for pair in known])


def asked(
    fitted: Forecaster, world: Bank, level: Level, calibration: Calibration | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Forecasts (P, M, 2, R, S) of a world's sides by a forecaster that has not seen it.

    First without the paired answers on labelled images, then with them: what `Forecaster.predict`
    says, or would by another `calibration`.
    """
    names, methods = columns(level), _places(fitted, world)
    low, high = fitted.range_[[fitted.moments_.names.index(name) for name in names]].T
    every, at = np.arange(len(world.ends)), [world.names.index(name) for name in names]
    X = world.X.copy()
    X[..., at] = np.clip(X[..., at], low, high)
    before, _ = held_out(
        replace(world, X=X),
        fitted.moments_,
        np.zeros_like(every),
        every,
        names,
        fitted.strength,
        fitted.sharing,
        methods,
    )
    far, after = beyond(fitted, world, level), np.empty_like(before)
    for mask, usual in ((~far, fitted.calibration_), (far, fitted.beyond_)):
        if mask.any():
            rows, known = every[mask], calibration or usual[level]
            variance, given = variance_of(world, rows, known.side, methods), paired(level)
            after[rows] = with_paired(world, rows, before[rows], variance, known.gamma, given)
    return before, after


def _places(fitted: Forecaster, world: Bank) -> list[int]:
    """Where a forecaster has a world's methods, the last place for those that it does not."""
    held = list(fitted.methods_)
    return [held.index(m) if m in held else len(held) for m in world.methods]


def wrong(world: Bank, before: np.ndarray, sides: np.ndarray) -> Wrong:
    """Outcome minus forecast: of every side before its paired answers, of mean and worse side."""
    return {
        "side": world.kept[..., None, None] - before,
        "mean": world.mean[:, :, None, None] - sides.mean(axis=2),
        "worse": world.worse[:, :, None, None] - sides.min(axis=2),
    }


def excess(world: Bank, methods: Sequence[int], errors: Errors, off: np.ndarray) -> float:
    """How far the mean square of `off` (an entry of `Wrong`) is above the errors' own variance.

    `methods`: where the errors have the world's.
    """
    inverse = (1 / world.images)[:, None]  # (P, 1, 2, S)
    if off.ndim == 4:
        inverse = inverse.mean(axis=2)
    values, counts = np.unique(inverse, return_counts=True)
    expected = [[errors.spread(m, i) ** 2 for i in values] for m in methods]
    return float((off**2).mean() - np.average(np.mean(expected, axis=0), weights=counts))


def excesses(fitted: Forecaster, world: Bank, level: Level, side: float = 0.0) -> dict[str, float]:
    """The `excess` of each of KINDS, where paired answers are weighed as if a side had `side`."""
    plain = fitted.calibration_[level]
    known = replace(plain, side=replace(plain.side, shift=side))
    off = wrong(world, *asked(fitted, world, level, known))
    at = _places(fitted, world)
    return {kind: excess(world, at, getattr(plain, kind), off[kind]) for kind in KINDS}


def widened(fitted: Forecaster, worlds: Sequence[Bank]) -> Forecaster:
    """The forecaster with the errors of every level as wide as other worlds ask for.

    The variance that is added is the largest of the worlds' `excesses`, or 0: of worlds that come
    by chance a new one asks for more in at most one of W + 1 cases. Pairs within the bank's range
    and those `beyond` it are counted apart; the latter get at least what the former do. A level
    whose columns no world holds stays as it is.
    Source: the largest of exchangeable scores (Vovk et al. 2005, section 2.2).
    """
    out = copy(fitted)
    out.calibration_, out.beyond_ = dict(fitted.calibration_), dict(fitted.beyond_)
    for level, plain in fitted.calibration_.items():
        held = [(world, beyond(fitted, world, level)) for world in worlds if holds(world, level)]
        near, far = (
            [world.of(rows) for world, mask in held if (rows := mask == where).any()]
            for where in (False, True)
        )
        added = _largest(fitted, near, level, dict.fromkeys(KINDS, 0.0))
        out.calibration_[level] = plain.shifted(added)
        out.beyond_[level] = plain.shifted(_largest(fitted, far, level, added))
    return out


def _largest(
    fitted: Forecaster, worlds: Sequence[Bank], level: Level, least: Mapping[str, float]
) -> dict[str, float]:
    """The largest `excesses` of worlds, at least `least`: first that of sides, by which paired
    answers are weighed, then, so weighed, those of mean and worse side."""
    found = [excesses(fitted, world, level) for world in worlds]
    side = max([least["side"], *(each["side"] for each in found)])
    if paired(level):
        found = [excesses(fitted, world, level, side) for world in worlds]
    return {"side": side} | {k: max([least[k], *(x[k] for x in found)]) for k in KINDS[1:]}
