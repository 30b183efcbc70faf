"""Isotropic merging (Iso-C): one flat spectrum."""

import torch
from torch import Tensor

from mergelib.merging.catalogue import FLAG, NUMBER, method
from mergelib.merging.factors import is_matrix, low_rank, svd


@method(
    "isotropic",
    parameters={"alpha": NUMBER, "truncate": FLAG},
    defaults={"alpha": 1.0, "truncate": False},
    # The released code shares TSV's loader and so cuts every task vector's spectrum first.
    released={"truncate": True},
    # Its authors tune α per model and T on validation data (0.9 to 1.5 for 8 to 20 tasks).
    reference="Marczak et al. 2025, No task left behind, arXiv 2502.04959 (Iso-C)",
)
def isotropic(vectors: Tensor, name: str, alpha: float, truncate: bool) -> Tensor:
    """Δ = α mean(σ) UVᵀ with M = Σ τt = U diag(σ) Vᵀ for a matrix, α (1/T) Σ τt otherwise.

    The mean runs over all min(m, n) singular values. Directions in which M is null get nothing,
    since they are arbitrary. With `truncate` each τt is first cut to rank ⌊min(m, n)/T⌋.
    """
    if not is_matrix(vectors, name):
        return alpha * vectors.mean(0)
    size = min(vectors.shape[1:])
    if truncate:
        vectors = torch.stack([low_rank(vector, size // len(vectors)) for vector in vectors])
    u, s, vt = svd(vectors.sum(0))
    return alpha * s.sum() / max(size, 1) * (u @ vt)
