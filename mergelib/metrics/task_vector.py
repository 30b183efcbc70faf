"""Task vector metrics: angle and lengths of τ_i and τ_j."""

import numpy as np

from mergelib.checkpoints import task_vectors
from mergelib.metrics.inputs import Inputs
from mergelib.metrics.registry import published_metric

CATEGORY = "task_vector"
INF = float("inf")


@published_metric("task_vector_cosine_similarity", CATEGORY, (-1, 1))
def cosine_similarity(x: Inputs) -> np.ndarray:
    """τ_i·τ_j / (max(‖τ_i‖, 1e-8) max(‖τ_j‖, 1e-8))."""
    return task_vectors.cosine(x.gram)


@published_metric(
    "task_vector_l2_distance",
    CATEGORY,
    (0, INF),
    duplicates=(
        "task_vector_cosine_similarity",
        "task_vector_dot_product",
        "task_vector_magnitude_ratio",
    ),
)
def l2_distance(x: Inputs) -> np.ndarray:
    """‖τ_i − τ_j‖."""
    return task_vectors.distance(x.gram)


@published_metric("task_vector_dot_product", CATEGORY, (-INF, INF))
def dot_product(x: Inputs) -> np.ndarray:
    """τ_i·τ_j."""
    return x.gram


@published_metric(
    "weight_space_angle", CATEGORY, (0, 180), duplicates=("task_vector_cosine_similarity",)
)
def weight_space_angle(x: Inputs) -> np.ndarray:
    """arccos(cosine) in degrees."""
    return np.degrees(np.arccos(task_vectors.cosine(x.gram)))


@published_metric("task_vector_magnitude_ratio", CATEGORY, (0, 1))
def magnitude_ratio(x: Inputs) -> np.ndarray:
    """min(‖τ_i‖, ‖τ_j‖) / max(‖τ_i‖, ‖τ_j‖); 0 if a norm is below 1e-8."""
    return task_vectors.magnitude_ratio(x.gram)
