"""Task vector metrics: angle and lengths of τ_i and τ_j."""

import numpy as np

from mergelib.checkpoints import task_vectors
from mergelib.metrics.inputs import Ingredients
from mergelib.metrics.registry import metric

CATEGORY = "task_vector"
INF = float("inf")


@metric("task_vector_cosine_similarity", CATEGORY, (-1, 1))
def cosine_similarity(x: Ingredients, mode: str = "corrected") -> np.ndarray:
    """τ_i·τ_j / (max(‖τ_i‖, 1e-8) max(‖τ_j‖, 1e-8))."""
    return task_vectors.cosine(x.gram)


@metric(
    "task_vector_l2_distance",
    CATEGORY,
    (0, INF),
    duplicates=(
        "task_vector_cosine_similarity",
        "task_vector_dot_product",
        "task_vector_magnitude_ratio",
    ),
)
def l2_distance(x: Ingredients, mode: str = "corrected") -> np.ndarray:
    """‖τ_i − τ_j‖."""
    return task_vectors.distance(x.gram)


@metric("task_vector_dot_product", CATEGORY, (-INF, INF))
def dot_product(x: Ingredients, mode: str = "corrected") -> np.ndarray:
    """τ_i·τ_j."""
    return x.gram


@metric("weight_space_angle", CATEGORY, (0, 180), duplicates=("task_vector_cosine_similarity",))
def weight_space_angle(x: Ingredients, mode: str = "corrected") -> np.ndarray:
    """arccos(cosine) in degrees."""
    return np.degrees(np.arccos(task_vectors.cosine(x.gram)))


@metric("task_vector_magnitude_ratio", CATEGORY, (0, 1))
def magnitude_ratio(x: Ingredients, mode: str = "corrected") -> np.ndarray:
    """min(‖τ_i‖, ‖τ_j‖) / max(‖τ_i‖, ‖τ_j‖); 0 if a norm is below 1e-8."""
    return task_vectors.magnitude_ratio(x.gram)
