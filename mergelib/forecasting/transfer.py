"""Another world than the bank's: what forecasts are off by there, and how wide that makes them.

A world is a set of tasks with its base and its way of fine-tuning. Left-out pairs of the bank do
not say what another world moves all its forecasts by; worlds whose outcomes are known do.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace

import numpy as np

from mergelib.forecasting.bank import Bank
from mergelib.forecasting.calibration import Calibration, held_out, variance_of, with_paired
from mergelib.forecasting.forecaster import Forecaster, Level, columns, paired
from mergelib.forecasting.intervals import Errors

Wrong = Mapping[str, np.ndarray]  # of side (P, M, 2, R, S), mean and worse (P, M, R, S)
KINDS = ("side", "mean", "worse")


def holds(world: Bank, level: Level) -> bool:
    """Whether a world's tables have what a level of evidence asks for."""
    return {*columns(level), *paired(level)} <= set(world.names)


def asked(
    fitted: Forecaster, world: Bank, level: Level, calibration: Calibration | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Forecasts (P, M, 2, R, S) of a world's sides by a forecaster that has not seen it.

    First without the paired answers on labelled images, then with them: what `Forecaster.predict`
    says, or would by another `calibration`.
    """
    names, calibration = columns(level), calibration or fitted.calibration_[level]
    methods = _places(fitted, world)
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
    variance = variance_of(world, every, calibration.side, methods)
    return before, with_paired(world, every, before, variance, calibration.gamma, paired(level))


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

    The variance that is added is the mean of the worlds' `excesses`, or 0: first that of sides, by
    which paired answers are weighed, then those of mean and worse side. A level whose columns no
    world holds stays as it is.
    Source: variance between groups by moments (DerSimonian and Laird 1986).
    """
    out = copy(fitted)
    out.calibration_ = dict(fitted.calibration_)
    for level, plain in fitted.calibration_.items():
        held = [world for world in worlds if holds(world, level)]
        if held:
            side = _mean([excesses(fitted, world, level)["side"] for world in held])
            found = [excesses(fitted, world, level, side) for world in held]
            shifts = {kind: _mean([each[kind] for each in found]) for kind in KINDS[1:]}
            out.calibration_[level] = shifted(plain, {"side": side} | shifts)
    return out


def _mean(values: Sequence[float]) -> float:
    return max(float(np.mean(values)), 0.0)


def shifted(calibration: Calibration, shifts: Mapping[str, float]) -> Calibration:
    """A calibration with the errors of each of KINDS as much wider, in variance."""
    errors = {kind: replace(getattr(calibration, kind), shift=shifts[kind]) for kind in KINDS}
    return replace(calibration, **errors)
