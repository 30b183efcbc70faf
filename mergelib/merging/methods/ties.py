"""TIES: trim, elect sign, disjoint mean."""

import math

import numpy as np
import torch
from torch import Tensor

from mergelib.merging.layer import Layer
from mergelib.merging.registry import FRACTION, NUMBER, method


def threshold(vector: Tensor, density: float) -> float:
    """The m-th largest magnitude, m = max(1, ⌊density·numel⌋): what reaches it is kept."""
    if vector.numel() == 0:
        return 0.0
    place = vector.numel() - max(1, math.floor(density * vector.numel()))
    size = vector.abs().flatten()
    if not size.is_cpu:
        return float(size.kthvalue(place + 1).values)
    return float(np.partition(size.numpy(), place)[place])  # seven times as fast


def trim(vector: Tensor, least: float) -> Tensor:
    """The vector without the entries whose magnitude is below `least`."""
    return vector.masked_fill(vector.abs() < least, 0.0)


@method(
    "ties",
    parameters={"density": FRACTION, "alpha": NUMBER},
    corrected={"density": 0.2, "alpha": 0.3},
    # Its authors trim over the whole model at once; here, as released, tensor by tensor.
    original={"alpha": 1.0},
    reference="Yadav et al. 2023, TIES-Merging, arXiv 2306.01708, Algorithm 1",
)
def ties(layer: Layer, density: float, alpha: float) -> Tensor:
    """Δ = α · mean of the trimmed, non-zero τt entries that have the elected sign.

    The elected sign of an entry is that of the sum of its trimmed values; where the sum is zero,
    the sign of the sum of all elected signs (1 if that is zero too).
    """
    least = [threshold(vector, density) for vector in layer]
    elected = torch.zeros_like(layer[0])
    for vector, bound in zip(layer, least, strict=True):
        elected += trim(vector, bound)
    elected.sign_()
    majority = 1.0 if elected.sum() >= 0 else -1.0
    elected = torch.where(elected == 0, majority, elected)
    merged, votes = torch.zeros_like(elected), torch.zeros_like(elected)
    for vector, bound in zip(layer, least, strict=True):
        trimmed = trim(vector, bound)
        agrees = trimmed.sign() == elected  # never true for a zero entry
        merged += trimmed * agrees
        votes += agrees
    return alpha * merged / votes.clamp(min=1)
