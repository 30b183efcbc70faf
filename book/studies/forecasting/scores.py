"""How good left-out forecasts are: error and r, coverage, probabilities, regret of the choice."""

from collections.abc import Callable, Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from mergelib.forecasting.bank import Bank
from mergelib.forecasting.intervals import interval, reaches
from mergelib.pairs.correlation import pearson
from mergelib.pairs.inference import interval as bootstrap_interval
from mergelib.pairs.inference import task_weights
from studies.forecasting.protocol import Outcome

BOOTSTRAP = 1000
THRESHOLDS = (0.90, 0.95)
LEVELS = (0.80, 0.95)
Score = Callable[[int, int, np.ndarray, float, np.ndarray], object]


def errors(bank: Bank, forecasts: Mapping[str, np.ndarray], sizes: Sequence[int]) -> pd.DataFrame:
    """One row per forecast, n and method: r and mae, means over draws, and their spread.

    forecasts (P, M) or (P, M, R, S) of `bank.mean`; n 0 where no image is looked at. Columns
    forecast, n, method, r, r_sd, mae, mae_sd (standard deviations over draws, 0 for one).
    """
    rows = []
    for name, given in forecasts.items():
        made = given if given.ndim == 4 else given[:, :, None, None]
        y = np.broadcast_to(bank.mean[:, :, None, None], made.shape)
        r = pearson(made, y, np.ones_like(made, dtype=bool), axis=0)
        mae = np.abs(made - y).mean(axis=0)
        for s, m in np.ndindex(made.shape[3], made.shape[1]):
            n = sizes[s] if given.ndim == 4 else 0
            values = [f(x[m, :, s]) for x in (r, mae) for f in (np.mean, np.std)]
            rows.append((name, n, bank.methods[m], *values))
    names = ["forecast", "n", "method", "r", "r_sd", "mae", "mae_sd"]
    return pd.DataFrame(rows, columns=names)


def by_pair(
    bank: Bank,
    found: Outcome,
    which: str,
    size: int,
    scored: Score,
    methods: Sequence[int] | None = None,
) -> list:
    """What `scored` makes of a pair's forecasts (R,), a method's spread and shape: P by M of it.

    `which`: "mean" or "worse"; spread and shape are those of the pair's fold at its own images.
    `methods`: where the calibrations have the bank's; None: at the same places.
    """
    places = range(len(bank.methods)) if methods is None else methods
    inverse_n = (1 / bank.images[:, :, size]).mean(axis=1)
    made = getattr(found, which)[..., size]
    rows = []
    for k, calibration in enumerate(found.calibration):
        errors = getattr(calibration, which)
        shape = errors.shape(inverse_n[k])
        spreads = [errors.spread(m, inverse_n[k]) for m in places]
        rows.append([scored(k, m, made[k, m], s, shape) for m, s in enumerate(spreads)])
    return rows


def inside(
    bank: Bank, found: Outcome, size: int, level: float, methods: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(P, M) each: the share of draws whose interval holds the outcome, and its width.

    `methods` as in `by_pair`.
    """

    def held(k, m, made, spread, shape):
        low, high = interval(made, spread, shape, level)
        return ((low <= bank.mean[k, m]) & (bank.mean[k, m] <= high)).mean(), high[0] - low[0]

    share, width = np.moveaxis(np.array(by_pair(bank, found, "mean", size, held, methods)), 2, 0)
    return share, width


def coverage(
    bank: Bank, outcomes: Mapping[str, Outcome], sizes: Sequence[int], seed: int = 0
) -> pd.DataFrame:
    """One row per forecast, n and level: the share of pairs inside, its interval, the width.

    Columns forecast, n, level, covered, low, high (95 %, tasks drawn again), width (mean).
    """
    weights = task_weights(bank.ends, BOOTSTRAP, seed)
    rows = []
    for (name, found), (s, n), level in product(outcomes.items(), enumerate(sizes), LEVELS):
        share, width = inside(bank, found, s, level)
        drawn = bootstrap_interval(weights @ share.mean(axis=1) / weights.sum(axis=1))
        rows.append((name, n, level, share.mean(), *drawn, width.mean()))
    names = ["forecast", "n", "level", "covered", "low", "high", "width"]
    return pd.DataFrame(rows, columns=names)


def probabilities(
    bank: Bank, outcomes: Mapping[str, Outcome], sizes: Sequence[int]
) -> pd.DataFrame:
    """One row per forecast, n and threshold: Brier score and area under the curve.

    Of P(worse side >= threshold), all methods and draws together. Columns forecast, n, threshold,
    share (of merges that reach it), brier, brier_share (of always telling that share), auc.
    """
    rows = []
    for (name, found), (s, n), threshold in product(outcomes.items(), enumerate(sizes), THRESHOLDS):

        def told(k, m, made, spread, shape, threshold=threshold):
            return reaches(threshold, made, spread, shape)

        p = np.array(by_pair(bank, found, "worse", s, told))
        true = np.broadcast_to((bank.worse >= threshold)[:, :, None], p.shape)
        share = true.mean()
        brier = ((p - true) ** 2).mean()
        auc = roc_auc_score(true.ravel(), p.ravel()) if 0 < share < 1 else np.nan
        rows.append((name, n, threshold, share, brier, share * (1 - share), auc))
    names = ["forecast", "n", "threshold", "share", "brier", "brier_share", "auc"]
    return pd.DataFrame(rows, columns=names)


def regrets(
    bank: Bank, forecasts: Mapping[str, np.ndarray], sizes: Sequence[int], seed: int = 0
) -> pd.DataFrame:
    """One row per forecast and n: normalized accuracy lost against each pair's best method.

    By the method of the highest forecast; "always the best fixed method" takes the one that is best
    on average among the pairs without the two tasks. Columns forecast, n, regret, of_fixed (its
    ratio to the fixed method's), low, high (95 % of that ratio, tasks drawn again).
    """
    best = bank.mean.max(axis=1)
    kept = np.array([bank.without(e) for e in bank.ends]).astype(float)
    fixed_method = (kept @ bank.mean).argmax(axis=1)
    fixed = best - bank.mean[np.arange(len(best)), fixed_method]
    weights = task_weights(bank.ends, BOOTSTRAP, seed)
    rows = [("always the best fixed method", 0, fixed.mean(), 1.0, 1.0, 1.0)]
    for name, given in forecasts.items():
        made = given if given.ndim == 4 else given[:, :, None, None]
        chosen = made.argmax(axis=1)  # (P, R, S)
        lost = best[:, None, None] - np.take_along_axis(
            bank.mean[:, :, None], chosen.reshape(len(best), 1, -1), axis=1
        ).reshape(chosen.shape)
        for s in range(made.shape[3]):
            each = lost[:, :, s].mean(axis=1)
            below = weights @ fixed  # 0: one task alone has no pair, or the fixed method is best
            ratio = (weights @ each)[below > 0] / below[below > 0]
            n = sizes[s] if given.ndim == 4 else 0
            rows.append(
                (name, n, each.mean(), each.mean() / fixed.mean(), *bootstrap_interval(ratio))
            )
    return pd.DataFrame(rows, columns=["forecast", "n", "regret", "of_fixed", "low", "high"])
