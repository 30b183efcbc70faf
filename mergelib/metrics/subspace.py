"""Subspace metrics: do the ends of the SVD τ_ℓ = U Σ Vᵀ of each matrix point the same way?

Each is a mean over the matrices ℓ. In the corrected edition a matrix that is zero in either task
vector has no directions and does not count for that pair (0 if none is left). In the paper edition
all matrices count, and `Inputs.zero_matrices` more, with what identical bases give.
"""

from collections.abc import Callable

import numpy as np

from mergelib.core.threads import threaded
from mergelib.metrics.inputs import Factors, Inputs
from mergelib.metrics.registry import published_metric
from mergelib.metrics.weights import TRIPLETS

CATEGORY = "subspace"


def layer_mean(
    x: Inputs, edition: str, value: Callable[[Factors], np.ndarray], zero_value: float
) -> np.ndarray:
    """Mean over the matrices of a pairwise value (T, T); `zero_value` is that of a zero matrix."""
    factors: dict[str, Factors] = x.need("factors")
    total: np.ndarray | float = 0.0
    count: np.ndarray | float = 0.0
    for part, values in zip(factors.values(), threaded(value, factors.values()), strict=True):
        alive = part.sigma[:, 0] > 0
        counts = np.outer(alive, alive) if edition == "corrected" else np.ones((len(alive),) * 2)
        total = total + counts * values
        count = count + counts
    if edition == "paper":
        total = total + x.zero_matrices * zero_value
        count = count + x.zero_matrices
    return np.divide(total, count, out=np.zeros_like(total), where=count > 0)


@published_metric("singular_value_overlap", CATEGORY, (0, 1))
def singular_value_overlap(x: Inputs, edition: str = "corrected") -> np.ndarray:
    """Cosine of the first 100 singular values of τ_i,ℓ and τ_j,ℓ; 0 for a zero matrix."""

    def value(part: Factors) -> np.ndarray:
        # Dividing by the sum cancels in the cosine and keeps its epsilon from mattering.
        shares = part.sigma / np.maximum(part.sigma.sum(axis=1, keepdims=True), 1e-300)
        norms = np.maximum(np.linalg.norm(shares, axis=1), 1e-8)
        return shares @ shares.T / np.outer(norms, norms)

    return layer_mean(x, edition, value, 0.0)


@published_metric("subspace_overlap", CATEGORY, (0, 1))
def subspace_overlap(x: Inputs, edition: str = "corrected") -> np.ndarray:
    """‖U_iᵀ U_j‖_F / √k over the first k left vectors; the paper edition divides by k."""
    power = 0.5 if edition == "corrected" else 1.0

    def value(part: Factors) -> np.ndarray:
        return np.sqrt(part.left_top) / part.k**power

    return layer_mean(x, edition, value, TRIPLETS ** (0.5 - power))


@published_metric("right_subspace_overlap_top_k", CATEGORY, (0, 1))
def right_subspace_overlap_top_k(x: Inputs, edition: str = "corrected") -> np.ndarray:
    """‖V_iᵀ V_j‖_F / √k over the first k right vectors."""
    return layer_mean(x, edition, lambda p: np.sqrt(p.right_top / p.k), 1.0)


@published_metric("right_subspace_overlap_bottom_k", CATEGORY, (0, 1))
def right_subspace_overlap_bottom_k(x: Inputs, edition: str = "corrected") -> np.ndarray:
    """‖V_iᵀ V_j‖_F / √k over the last k right vectors of the thin SVD."""
    return layer_mean(x, edition, lambda p: np.sqrt(p.right_bottom / p.k), 1.0)


@published_metric("interaction_matrix_overlap_top_k", CATEGORY, (0, 1))
def interaction_matrix_overlap_top_k(x: Inputs, edition: str = "corrected") -> np.ndarray:
    """Mean squared singular value of V_iᵀ V_j, ‖V_iᵀ V_j‖_F² / k, over the first k."""
    return layer_mean(x, edition, lambda p: p.right_top / p.k, 1.0)


@published_metric("interaction_matrix_overlap_bottom_k", CATEGORY, (0, 1))
def interaction_matrix_overlap_bottom_k(x: Inputs, edition: str = "corrected") -> np.ndarray:
    """Mean squared singular value of V_iᵀ V_j, ‖V_iᵀ V_j‖_F² / k, over the last k."""
    return layer_mean(x, edition, lambda p: p.right_bottom / p.k, 1.0)
