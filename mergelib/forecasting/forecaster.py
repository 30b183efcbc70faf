"""The forecast: ridge regression on whatever is known of a pair, calibrated on the bank.

Every side of a merge is forecast from a choice of columns (`features`): weight metrics, known
accuracies, statistics on unlabelled images, counts on labelled ones. One table of the bank's
products serves every choice and every number of images (`moments`); what left-out pairs were off
by gives intervals and probabilities (`intervals`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import norm
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from mergelib.core.errors import MergelibError
from mergelib.forecasting import features
from mergelib.forecasting.bank import Bank, weight_metrics
from mergelib.forecasting.calibration import (
    MOST,
    SHARING,
    STRENGTH,
    Calibration,
    calibrate,
    combined,
    held_out,
)
from mergelib.forecasting.evidence import Evidence, Forecast, Known, Probe
from mergelib.forecasting.intervals import interval, reaches
from mergelib.forecasting.moments import moments_of_pairs, ridge, summed
from mergelib.forecasting.statistics import COUNTS, OF_SCORES
from mergelib.forecasting.verdict import images_to_label, verdict

DRAWS = 10_000  # a mean within a hundredth of its standard deviation
EDGE = 1e-9  # within which a value is at the end of a range: files hold twelve digits
PROBES = ("", "features", "scores", "labels")
Level = tuple[bool, bool, str]  # weight metrics, known accuracies, one of PROBES


def levels() -> list[Level]:
    """Every level of evidence that there can be."""
    both = (False, True)
    return [(weights, known, probe) for weights in both for known in both for probe in PROBES]


def columns(level: Level) -> list[str]:
    """The columns that a level of evidence regresses on."""
    weights, known, probe = level
    found = weight_metrics() if weights else []
    found += features.KNOWN if known else ()
    if probe == "features":
        found += features.OF_FEATURES
    elif probe:
        found += features.UNLABELLED
    if probe == "labels":
        found += features.CONTROLS if known else features.CONTROLS_ALONE
    return found


def paired(level: Level) -> tuple[str, ...]:
    """Columns of the paired estimate, its variance and its controls; none without labels."""
    _, known, probe = level
    if probe != "labels":
        return ()
    return features.PAIRED if known else features.PAIRED_ALONE


class Forecaster(BaseEstimator):
    """The forecast as an estimator: `fit` on a bank, `predict` from evidence.

    y_t = b(n)'x_t + c of side t, b(n) from `moments.ridge` on the products expected of n images;
    with labels, that and the paired answers each by its precision. The pair's forecast is the mean
    over sides, its errors those of the bank's pairs when both their tasks are left out. Values
    outside the bank's range are taken to its end; where it is a known accuracy, the forecast lies
    `beyond` what the bank tells of, and its errors are those of `beyond_` (see `transfer`).
    """

    def __init__(self, strength: float = STRENGTH, sharing: float = SHARING) -> None:
        self.strength = strength
        self.sharing = sharing

    def fit(self, bank: Bank, y: None = None) -> "Forecaster":
        """Products of the whole bank; errors at every level, each pair's two tasks left out."""
        of_pairs = moments_of_pairs(bank)
        every = np.arange(len(bank.ends))
        folds = summed(of_pairs, np.array([bank.without(ends) for ends in bank.ends]))
        self.moments_ = summed(of_pairs, np.ones((1, len(every)), dtype=bool))
        self.methods_ = bank.methods
        flat = bank.X.reshape(-1, len(bank.names))
        self.range_ = np.stack([flat.min(axis=0), flat.max(axis=0)], axis=1)
        self.calibration_ = {}
        for level in levels():
            found = held_out(bank, folds, every, every, columns(level), self.strength, self.sharing)
            self.calibration_[level] = calibrate(bank, every, found, paired(level))
        self.beyond_ = dict(self.calibration_)
        return self

    def range_of(self, name: str) -> tuple[float, float]:
        """The least and the largest value that a column has in the bank."""
        low, high = self.range_[self.moments_.names.index(name)].tolist()
        return low, high

    def beyond(self, known: Known) -> dict[str, float]:
        """Which of a task's `features.own` lie outside the bank's: their values by name."""
        found = {}
        for name, value in features.own(known.zero_shot, known.fine_tuned).items():
            low, high = self.range_of(name)
            if not low - EDGE <= value <= high + EDGE:
                found[name] = value
        return found

    def predict(self, evidence: Evidence, methods: Sequence[str]) -> dict[str, Forecast]:
        """The forecast of a pair's merge by each method. Raises MergelibError as `columns_of`."""
        check_is_fitted(self)
        return {method: self._one(evidence, method) for method in methods}

    def recommend(self, forecasts: Mapping[str, Forecast]) -> tuple[str, float]:
        """The method of the highest forecast, and what it is expected to lose against the best one.

        E[max_m y_m - y_highest], y normal about the forecasts: their standard deviations from the
        80 % intervals, errors of two methods correlated as in the bank (others as its methods are
        on average). DRAWS draws. Raises MergelibError for no forecast.
        """
        if not forecasts:
            raise MergelibError("there is no forecast to choose from: name at least one method")
        names = list(forecasts)
        best = max(names, key=lambda name: forecasts[name].mean)
        mean = np.array([forecasts[name].mean for name in names])
        width = np.array([np.diff(forecasts[name].interval80)[0] for name in names])
        held = self.calibration_[levels()[-1]].correlation
        apart = held[~np.eye(len(held), dtype=bool)].mean() if len(held) > 1 else 0.0
        at = [self.methods_.index(n) if n in self.methods_ else -1 for n in names]
        together = np.array([[held[i, j] if min(i, j) >= 0 else apart for j in at] for i in at])
        np.fill_diagonal(together, 1.0)
        spread = width / (2 * norm.ppf(0.9))
        rng = np.random.default_rng(0)
        y = rng.multivariate_normal(mean, together * spread * spread[:, None], DRAWS)
        return best, float((y.max(axis=1) - y[:, names.index(best)]).mean())

    def _one(self, evidence: Evidence, method: str) -> Forecast:
        level = level_of(evidence, method)
        at = len(self.methods_)
        if method in self.methods_:
            at = self.methods_.index(method)
        sides, drivers = self._sides(evidence, method, level, at)
        probes = evidence.probes.get(method)
        inverse_n = sum(0.5 / p.n for p in probes) if probes else 1 / self.moments_.sizes[-1]
        calibrations = self._calibrations(evidence)
        cal = calibrations[level]
        mean, worse, side = sides.mean(), sides.min(), int(sides.argmin())
        spread, shape = cal.mean.spread(at, inverse_n), cal.mean.shape(inverse_n)
        low80, high80 = map(float, interval(mean, spread, shape, 0.80))
        low95, high95 = map(float, interval(mean, spread, shape, 0.95))
        spread, shape = cal.worse.spread(at, inverse_n), cal.worse.shape(inverse_n)
        p_90, p_95 = (float(reaches(t, worse, spread, shape)) for t in (0.90, 0.95))
        labelled = probes[side].n if probes and level[2] == "labels" else 0
        with_labels = calibrations[(level[0], level[1], "labels")].worse
        more = images_to_label(with_labels, at, worse, labelled)
        return Forecast(
            float(mean),
            float(worse + cal.worse.middle(at, inverse_n)),
            (float(sides[0]), float(sides[1])),
            (low80, high80),
            (low95, high95),
            p_90,
            p_95,
            verdict(p_90, more, side),
            drivers,
        )

    def _calibrations(self, evidence: Evidence) -> dict[Level, Calibration]:
        far = any(self.beyond(known) for known in evidence.known or ())
        return self.beyond_ if far else self.calibration_

    def _sides(self, evidence: Evidence, method: str, level: Level, at: int) -> tuple:
        """Forecasts (2,) of the sides, and what each column moved their mean by."""
        names = columns(level)
        places = [self.moments_.names.index(name) for name in names]
        low, high = self.range_[places].T
        moments = self.moments_.of(names)
        probes = evidence.probes.get(method, (None, None))
        sides, moved, by_labels = np.empty(2), np.zeros(len(names)), 0.0
        for k, probe in enumerate(probes):
            products = moments.at(moments.sizes[-1] if probe is None else probe.n)[0]
            coef, intercept = ridge(products, self.strength, self.sharing)
            given = columns_of(evidence, k, probe)
            x = np.clip([given[name] for name in names], low, high)
            sides[k] = np.clip(x @ coef[at] + intercept[at], 0.0, MOST)
            middle = products[:, 0, 1:-1]
            middle = middle[at] if at < len(middle) else middle.mean(axis=0)
            moved += coef[at] * (x - middle) / 2
            if probe is not None and (pair := paired(level)):
                cal, before = self._calibrations(evidence)[level], sides[k]
                estimate, variance, *controls = (given[name] for name in pair)
                estimate += np.dot(cal.gamma, controls)
                sides[k] = combined(
                    before, cal.side.spread(at, 1 / probe.n) ** 2, estimate, variance
                )
                by_labels += float(sides[k] - before) / 2
        drivers = dict(zip(names, moved.tolist(), strict=True))
        return sides, drivers | ({"paired": by_labels} if paired(level) else {})


def level_of(evidence: Evidence, method: str) -> Level:
    """The level of evidence that a method's forecast has.

    Raises MergelibError for sides of different kinds, and for some of the weight metrics alone.
    """
    wanted = weight_metrics()
    missing = [name for name in wanted if name not in evidence.metrics]
    if missing and len(missing) < len(wanted):
        raise MergelibError(
            f"weight metrics are missing ({', '.join(missing)}): give all of them or none"
        )
    kinds = {_kind(probe) for probe in evidence.probes.get(method, ())} or {""}
    if len(kinds) > 1:
        raise MergelibError(
            f"{method}: one side was probed by {' and the other by '.join(sorted(kinds))}: give "
            "heads and labels for both tasks, or for neither"
        )
    return not missing, evidence.known is not None, kinds.pop()


def _kind(probe: Probe) -> str:
    if probe.expert_right is not None:
        return "labels"
    return "scores" if all(name in probe.unlabelled for name in OF_SCORES) else "features"


def columns_of(evidence: Evidence, side: int, probe: Probe | None) -> dict[str, Any]:
    """Every column that the evidence gives of a side (0 or 1)."""
    found: dict[str, Any] = dict(evidence.metrics)
    if evidence.known is not None:
        own, other = evidence.known[side], evidence.known[1 - side]
        found |= features.known(own.zero_shot, own.fine_tuned, other.zero_shot, other.fine_tuned)
    if probe is not None:
        found |= probe.unlabelled
        if probe.expert_right is not None:
            counts = {name: getattr(probe, name) for name in COUNTS}
            found |= features.labelled_alone(probe.n, counts)
            if evidence.known is not None:
                own = evidence.known[side]
                found |= features.labelled(probe.n, counts, own.zero_shot, own.fine_tuned)
    return found
