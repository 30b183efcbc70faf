"""The metrics' registry: what is known of each beside its formula."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mergelib.core.errors import MergelibError
from mergelib.core.registry import Registry, unknown
from mergelib.metrics.inputs import Inputs

EDITIONS = ("corrected", "paper")
PAPER = "Demystifying Mergeability (arXiv 2601.22285)"
SOURCES = {  # where a category's notion comes from; the formulas are the paper's
    "task_vector": "Ilharco et al. 2023, Editing models with task arithmetic",
    "effective_rank": "Roy and Vetterli 2007, The effective rank",
    "subspace": "Björck and Golub 1973, angles between linear subspaces",
}

Function = Callable[..., np.ndarray]


@dataclass(frozen=True)
class Metric:
    """One pairwise metric.

    `published` tells the paper's 28 from the extra ones. `range` holds in the corrected edition.
    `duplicates` names the metrics that determine this one exactly (jointly, where there are
    several), so that it adds no information to them.
    """

    name: str
    category: str
    published: bool
    symmetric: bool
    range: tuple[float, float]
    duplicates: tuple[str, ...]
    reference: str
    function: Function

    def __call__(self, x: Inputs, edition: str = "corrected") -> np.ndarray:
        """The metric for all ordered pairs: (T, T) float64."""
        if "edition" in inspect.signature(self.function).parameters:
            return self.function(x, edition)
        return self.function(x)


METRICS: Registry[Metric] = Registry("metric", group="mergelib.metrics")


def published_metrics() -> list[str]:
    """Names of the paper's 28 metrics, in the order of its tables."""
    return [row.name for row in METRICS.rows() if row.published]


def check_edition(edition: str) -> None:
    """Raise MergelibError for an unknown edition."""
    if edition not in EDITIONS:
        raise MergelibError(unknown("edition", edition, EDITIONS))


def metric(
    name: str,
    category: str = "other",
    range: tuple[float, float] = (-math.inf, math.inf),
    reference: str = "",
    duplicates: tuple[str, ...] = (),
    symmetric: bool = True,
) -> Callable[[Function], Function]:
    """Register a function f(x: Inputs) -> (T, T) array under a name, as an extra metric.

    A function that takes `edition` as well is told whether "corrected" or "paper" is asked for.
    Raises MergelibError if another module has registered the name.
    """

    def register(function: Function) -> Function:
        METRICS.add(
            Metric(name, category, False, symmetric, range, duplicates, reference, function)
        )
        return function

    return register


def published_metric(
    name: str,
    category: str,
    range: tuple[float, float],
    duplicates: tuple[str, ...] = (),
) -> Callable[[Function], Function]:
    """Register one of the paper's 28 metrics; its reference is the paper and its category's."""
    reference = "; ".join(filter(None, (PAPER, SOURCES.get(category))))

    def register(function: Function) -> Function:
        METRICS.add(Metric(name, category, True, True, range, duplicates, reference, function))
        return function

    return register


def categories(names: Sequence[str]) -> dict[str, str]:
    """Category of each metric as it is registered; "other" for what is not."""
    known = {row.name: row.category for row in METRICS.rows()}
    return {name: known.get(name, "other") for name in names}
