"""TALL masks: where a task can be told in the sum of all; consensus merging."""

import torch
from torch import Tensor

from mergelib.merging.layer import Layer, elementwise
from mergelib.merging.registry import COUNT_OR_NONE, NUMBER, method


@method(
    "tall_masks",
    parameters={
        "threshold": NUMBER,
        "agree": COUNT_OR_NONE,
        "task": COUNT_OR_NONE,
        "alpha": NUMBER,
    },
    corrected={"threshold": 0.4, "agree": None, "task": None, "alpha": 1.0},
    # Its authors tune λ (0.2 to 0.6) and α on validation data; two tasks must agree at any T.
    original={"agree": 2},
    reference="Wang et al. 2024, Localizing task information, arXiv 2405.07813 (Consensus TA)",
)
@elementwise
def tall_masks(
    layer: Layer, threshold: float, agree: int | None, task: int | None, alpha: float
) -> Tensor:
    """Δ = α Στt where at least `agree` of the masks mt = [|τt| > λ |Στ − τt|] hold, 0 elsewhere.

    λ = threshold; `agree` none: 1 for up to two models, 2 for more. With `task` = t (from 0), the
    mask of that one model: Δ = α mt Στ, its own model reconstructed. Elementwise.
    """
    total = layer.sum()
    if task is not None:
        own = layer.chosen(task)
        return alpha * total * mask(own, total, threshold)
    votes = torch.zeros_like(total)
    for vector in layer:
        votes += mask(vector, total, threshold)
    least = (1 if len(layer) <= 2 else 2) if agree is None else agree
    return alpha * total * (votes >= least)


def mask(vector: Tensor, total: Tensor, threshold: float) -> Tensor:
    """[|τt| > λ |Στ − τt|], boolean."""
    return vector.abs() > threshold * (total - vector).abs()
