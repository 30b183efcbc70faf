"""Effective rank metrics: how far the two rows of the stack [τ_i; τ_j] (2, D) are from one.

The singular values σ1 ≥ σ2 of the stack follow from the Gram matrix, in float64:
σ1² = ½ (‖τ_i‖² + ‖τ_j‖² + √((‖τ_i‖² − ‖τ_j‖²)² + 4 (τ_i·τ_j)²)),
σ2² = (‖τ_i‖² ‖τ_j‖² − (τ_i·τ_j)²) / σ1².
"""

import numpy as np

from mergelib.checkpoints import task_vectors
from mergelib.metrics.inputs import Inputs
from mergelib.metrics.registry import published_metric

CATEGORY = "effective_rank"
EPS = 1e-10


def singular_values(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """σ1 ≥ σ2 of every stack of two vectors, from their Gram matrix: (T, T) each."""
    square = np.diagonal(gram)
    a, b = square[:, None], square[None, :]
    top = (a + b + np.hypot(a - b, 2 * gram)) / 2
    rest = np.maximum(a * b - gram**2, 0)  # rounding makes it negative for parallel vectors
    low = np.divide(rest, top, out=np.zeros_like(top), where=top > 0)
    return np.sqrt(top), np.sqrt(low)


def effective_rank_of(gram: np.ndarray) -> np.ndarray:
    """exp(−Σ p_k ln(p_k + 1e-10)), p_k = σ_k / (σ1 + σ2 + 1e-10), from a Gram matrix: (T, T).

    Source: Roy and Vetterli 2007, "The effective rank", for the stack of two vectors.
    """
    first, second = singular_values(gram)
    total = first + second + EPS
    return np.exp(-sum(p * np.log(p + EPS) for p in (first / total, second / total)))


def layerwise_effective_rank_of(layer_grams: dict[str, np.ndarray]) -> np.ndarray:
    """Σ_ℓ w_ℓ r_ℓ / Σ_ℓ w_ℓ with w_ℓ = ‖τ_i,ℓ‖ + ‖τ_j,ℓ‖ over the tensors ℓ: (T, T).

    A tensor counts for a pair if both norms reach 1e-10; 2 if none does.
    """
    total: np.ndarray | float = 0.0
    weights: np.ndarray | float = 0.0
    for gram in layer_grams.values():
        norms = task_vectors.norms(gram)
        alive = np.minimum.outer(norms, norms) >= 1e-10
        weight = np.where(alive, np.add.outer(norms, norms), 0.0)
        total = total + weight * effective_rank_of(gram)
        weights = weights + weight
    return np.divide(total, weights, out=np.full_like(weights, 2.0), where=weights > 0)


@published_metric("effective_rank", CATEGORY, (1, 2), duplicates=("singular_value_ratio",))
def effective_rank(x: Inputs) -> np.ndarray:
    """exp of the entropy of σ / Σσ; see `effective_rank_of`."""
    return effective_rank_of(x.gram)


@published_metric(
    "effective_rank_mergeability_score", CATEGORY, (0, 1), duplicates=("effective_rank",)
)
def effective_rank_mergeability_score(x: Inputs) -> np.ndarray:
    """clip(2 − effective_rank, 0, 1)."""
    return np.clip(2 - effective_rank_of(x.gram), 0, 1)


@published_metric("stable_rank", CATEGORY, (1, 2), duplicates=("singular_value_ratio",))
def stable_rank(x: Inputs) -> np.ndarray:
    """(σ1 + σ2)² / (σ1² + σ2² + 1e-10); not the textbook's ‖A‖_F² / ‖A‖_2²."""
    first, second = singular_values(x.gram)
    return (first + second) ** 2 / (first**2 + second**2 + EPS)


@published_metric("spectral_gap", CATEGORY, (0, 1), duplicates=("singular_value_ratio",))
def spectral_gap(x: Inputs) -> np.ndarray:
    """(σ1 − σ2) / (σ1 + 1e-10)."""
    first, second = singular_values(x.gram)
    return (first - second) / (first + EPS)


@published_metric(
    "singular_value_ratio",
    CATEGORY,
    (0, 1),
    duplicates=("task_vector_cosine_similarity", "task_vector_magnitude_ratio"),
)
def singular_value_ratio(x: Inputs) -> np.ndarray:
    """σ2 / (σ1 + 1e-10)."""
    first, second = singular_values(x.gram)
    return second / (first + EPS)


@published_metric("layerwise_effective_rank", CATEGORY, (1, 2))
def layerwise_effective_rank(x: Inputs) -> np.ndarray:
    """Norm-weighted mean of the tensors' effective ranks; see `layerwise_effective_rank_of`."""
    return layerwise_effective_rank_of(x.layer_grams)


@published_metric(
    "layerwise_effective_rank_mergeability_score",
    CATEGORY,
    (0, 1),
    duplicates=("layerwise_effective_rank",),
)
def layerwise_effective_rank_score(x: Inputs) -> np.ndarray:
    """clip(2 − layerwise_effective_rank, 0, 1)."""
    return np.clip(2 - layerwise_effective_rank_of(x.layer_grams), 0, 1)
