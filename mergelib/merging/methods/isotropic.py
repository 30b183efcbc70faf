"""Isotropic merging (Iso-C): one flat spectrum."""

import torch
from torch import Tensor

from mergelib.linalg.polar import polar, triplets
from mergelib.merging.layer import Layer
from mergelib.merging.registry import FLAG, NUMBER, method


@method(
    "isotropic",
    parameters={"alpha": NUMBER, "truncate": FLAG},
    corrected={"alpha": 1.0, "truncate": False},
    # The released code shares TSV's loader and so cuts every task vector's spectrum first.
    paper={"truncate": True},
    # Its authors tune α per model and T on validation data (0.9 to 1.5 for 8 to 20 tasks).
    reference="Marczak et al. 2025, No task left behind, arXiv 2502.04959 (Iso-C)",
)
def isotropic(layer: Layer, alpha: float, truncate: bool) -> Tensor:
    """Δ = α mean(σ) UVᵀ with M = Σ τt = U diag(σ) Vᵀ for a matrix, α (1/T) Σ τt otherwise.

    The mean runs over all min(m, n) singular values. Directions in which M is null get nothing,
    since they are arbitrary. With `truncate` each τt is first cut to rank ⌊min(m, n)/T⌋.
    """
    if not layer.is_matrix:
        return alpha * layer.mean()
    size = min(layer.shape)
    total = _cut_sum(layer, size // len(layer)) if truncate else layer.sum()
    flat = polar(total)
    return alpha * (flat * total).sum() / max(size, 1) * flat  # ⟨UVᵀ, M⟩ = Σ σ


def _cut_sum(layer: Layer, rank: int) -> Tensor:
    """Σ of the best approximations of the τt of at most that rank (Eckart–Young)."""
    total = torch.zeros_like(layer[0])
    for vector in layer:  # kept factors will not do: every direction of the sum weighs the same
        u, s, v = triplets(vector, rank)
        total += (u * s) @ v.T
    return total
