"""Activation metrics: the mean outputs h_i and h_j of the last block on one calibration pool."""

import numpy as np
import torch

from mergelib.checkpoints import task_vectors
from mergelib.metrics.inputs import Inputs
from mergelib.metrics.registry import published_metric

CATEGORY = "activation"
INF = float("inf")


def _gram(x: Inputs) -> np.ndarray:
    return task_vectors.gram(torch.from_numpy(x.need("activation")))


@published_metric(
    "activation_l2_distance",
    CATEGORY,
    (0, INF),
    duplicates=(
        "activation_cosine_similarity",
        "activation_magnitude_ratio",
        "activation_dot_product",
    ),
)
def l2_distance(x: Inputs) -> np.ndarray:
    """‖h_i − h_j‖."""
    return task_vectors.distance(_gram(x))


@published_metric("activation_cosine_similarity", CATEGORY, (-1, 1))
def cosine_similarity(x: Inputs) -> np.ndarray:
    """h_i·h_j / (max(‖h_i‖, 1e-8) max(‖h_j‖, 1e-8))."""
    return task_vectors.cosine(_gram(x))


@published_metric("activation_magnitude_ratio", CATEGORY, (0, 1))
def magnitude_ratio(x: Inputs) -> np.ndarray:
    """min(‖h_i‖, ‖h_j‖) / max(‖h_i‖, ‖h_j‖); 0 if a norm is below 1e-8."""
    return task_vectors.magnitude_ratio(_gram(x))


@published_metric("activation_dot_product", CATEGORY, (-INF, INF))
def dot_product(x: Inputs) -> np.ndarray:
    """h_i·h_j."""
    return _gram(x)
