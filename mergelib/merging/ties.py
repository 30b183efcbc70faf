"""TIES: trim, elect sign, disjoint mean."""

import math

import torch
from torch import Tensor

from mergelib.merging.catalogue import FRACTION, NUMBER, method


def trim(vector: Tensor, density: float) -> Tensor:
    """Keep the entries whose magnitude reaches the m-th largest, m = max(1, ⌊density·numel⌋)."""
    if vector.numel() == 0:
        return vector
    size = vector.abs().flatten()
    m = max(1, math.floor(density * size.numel()))
    threshold = size.kthvalue(size.numel() - m + 1).values
    return torch.where(vector.abs() >= threshold, vector, 0.0)


@method(
    "ties",
    parameters={"density": FRACTION, "alpha": NUMBER},
    defaults={"density": 0.2, "alpha": 0.3},
    # Its authors trim over the whole model at once; here, as released, tensor by tensor.
    original={"alpha": 1.0},
    reference="Yadav et al. 2023, TIES-Merging, arXiv 2306.01708, Algorithm 1",
)
def ties(vectors: Tensor, name: str, density: float, alpha: float) -> Tensor:
    """Δ = α · mean of the trimmed, non-zero τt entries that have the elected sign.

    The elected sign of an entry is that of the sum of its trimmed values; where the sum is zero,
    the sign of the sum of all elected signs (1 if that is zero too).
    """
    trimmed = torch.stack([trim(vector, density) for vector in vectors])
    elected = trimmed.sum(0).sign()
    majority = 1.0 if elected.sum() >= 0 else -1.0
    elected = torch.where(elected == 0, majority, elected)
    agrees = trimmed.sign() == elected  # never true for a zero entry
    return alpha * (trimmed * agrees).sum(0) / agrees.sum(0).clamp(min=1)
