"""The metrics' registry: what is known of each beside its formula."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mergelib.metrics.ingredients import Ingredients
from mergelib.registry import Registry

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


METRICS: Registry[Metric] = Registry("metric")


def metric(
    name: str,
    category: str,
    range: tuple[float, float],
    reference: str = "",
    duplicates: tuple[str, ...] = (),
    symmetric: bool = True,
) -> Callable[[Function], Function]:
    """Register a function f(x: Ingredients, mode) -> (T, T) array under a name.

    Without a `reference` the metric is the paper's, after its category's source.
    """
    reference = reference or "; ".join(filter(None, (PAPER, SOURCES.get(category))))

    def register(function: Function) -> Function:
        METRICS.add(Metric(name, category, symmetric, range, duplicates, reference, function))
        return function

    return register
