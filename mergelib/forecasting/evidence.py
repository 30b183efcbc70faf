"""What is known of a pair before its merges are judged, and what is forecast from it."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Known:
    """What is known of a task: accuracies of base and expert on a large set, fractions."""

    zero_shot: float
    fine_tuned: float


@dataclass(frozen=True)
class Probe:
    """One side of a merge, seen on `n` images of its task.

    unlabelled: the statistics of `mergelib.forecasting.statistics` by name, means over the images;
    those of class scores are absent where there is no head. With labels, counts of images:
    expert_right, expert_only (that only the expert gets right), merged_only; base_right, where the
    base has class scores.
    """

    n: int
    unlabelled: Mapping[str, float]
    expert_right: int | None = None
    expert_only: int | None = None
    merged_only: int | None = None
    base_right: int | None = None


@dataclass(frozen=True)
class Evidence:
    """All that is known of a pair; the level of evidence follows from what is there.

    metrics: the pair's weight metrics by name (level 0, where there is nothing else); known: of
    both tasks (level 1); probes: both sides by method (level 2, with labels 3).
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    known: tuple[Known, Known] | None = None
    probes: Mapping[str, tuple[Probe, Probe]] = field(default_factory=dict)


@dataclass(frozen=True)
class Forecast:
    """Normalized accuracy (merged / fine-tuned) of a pair's merge by one method.

    mean of both sides and the worse side, with intervals (low, high) of the mean; probabilities
    that the worse side keeps at least 0.90 and 0.95; a verdict in words; what moved the forecast
    away from the method's mean in the bank, by name, in the same units.
    """

    mean: float
    worse: float
    sides: tuple[float, float]
    interval80: tuple[float, float]
    interval95: tuple[float, float]
    p_worse_090: float
    p_worse_095: float
    verdict: str
    drivers: Mapping[str, float]
