"""The metrics' registry: what is known of each beside its formula."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mergelib.core.errors import MergelibError
from mergelib.core.registry import Registry, unknown
from mergelib.metrics.inputs import Ingredients

MODES = ("corrected", "paper")
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

    `range` holds in the corrected edition. `duplicates` names the metrics that determine this one
    exactly (jointly, where there are several), so that it adds no information to them.
    """

    name: str
    category: str
    symmetric: bool
    range: tuple[float, float]
    duplicates: tuple[str, ...]
    reference: str
    function: Function

    def __call__(self, x: Ingredients, mode: str = "corrected") -> np.ndarray:
        """The metric for all ordered pairs: (T, T) float64."""
        return self.function(x, mode)


METRICS: Registry[Metric] = Registry("metric")  # the published 28
EXTRA: Registry[Metric] = Registry("metric")  # what else the literature holds to matter


def check_mode(mode: str) -> None:
    """Raise MergelibError for an unknown edition."""
    if mode not in MODES:
        raise MergelibError(unknown("mode", mode, MODES))


def find(name: str) -> Metric:
    """The metric of that name, published or extra. Raises MergelibError for an unknown name."""
    if name in METRICS:
        return METRICS[name]
    if name in EXTRA:
        return EXTRA[name]
    raise MergelibError(unknown("metric", name, [*METRICS, *EXTRA]))


def metric(
    name: str,
    category: str,
    range: tuple[float, float],
    reference: str = "",
    duplicates: tuple[str, ...] = (),
    symmetric: bool = True,
    registry: Registry[Metric] = METRICS,
) -> Callable[[Function], Function]:
    """Register a function f(x: Ingredients, mode) -> (T, T) array under a name.

    Without a `reference` the metric is the paper's, after its category's source. Those in `EXTRA`
    have one edition, the same in either mode.
    """
    reference = reference or "; ".join(filter(None, (PAPER, SOURCES.get(category))))

    def register(function: Function) -> Function:
        registry.add(Metric(name, category, symmetric, range, duplicates, reference, function))
        return function

    return register


# ---- Coefficients -----------------------------------------------------------------------------


def categories(names: Sequence[str]) -> dict[str, str]:
    """Category of each metric as `mergelib.metrics` registers it; "other" for what it does not."""
    from mergelib.metrics.registry import METRICS

    known = {row.name: row.category for row in METRICS.rows()}
    return {name: known.get(name, "other") for name in names}
