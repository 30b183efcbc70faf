"""EMR: elect one vector, mask and rescale it for each task."""

import torch
from torch import Tensor

from mergelib.merging.layer import Layer, elementwise
from mergelib.merging.registry import COUNT_OR_NONE, method


def unified(layer: Layer) -> Tensor:
    """τ_uni: the sign of Σ τt, and the largest magnitude among the τt that have this sign."""
    sign = layer.sum().sign()
    size = torch.zeros_like(sign)
    for vector in layer:
        torch.maximum(size, vector * sign, out=size)
    return sign * size


def magnitudes(layer: Layer, task: int | None) -> Tensor:
    """Σ |τt| and Σ |mt τ_uni| of one tensor: (2,); their sums over all tensors give EMR's scale."""
    if task is None:
        return torch.zeros(2, dtype=torch.float64)
    own, elected = layer.chosen(task), unified(layer)
    return torch.stack([own.abs().sum(), elected[own * elected > 0].abs().sum()])


@method(
    "emr",
    parameters={"task": COUNT_OR_NONE},
    corrected={"task": None},
    survey=magnitudes,
    reference="Huang et al. 2024, EMR-Merging, arXiv 2405.17461, Algorithm 1",
)
@elementwise
def emr(layer: Layer, task: int | None, surveyed: Tensor) -> Tensor:
    """Δ = τ_uni, shared by all tasks; with `task` = t (from 0), Δ = λt mt τ_uni for that task.

    τ_uni has the sign of Σ τt and the largest magnitude among the τt of that sign; mt = [τt τ_uni >
    0]; λt = Σ|τt| / Σ|mt τ_uni| over the whole model, 1 for a model that did not move. Elementwise.
    """
    elected = unified(layer)
    if task is None:
        return elected
    own, kept = surveyed.tolist()
    return elected * (layer.chosen(task) * elected > 0) * (own / kept if kept else 1.0)
