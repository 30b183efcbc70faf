"""Gradient metrics: loss gradients of both models on one calibration pool, with the real heads.

G is the mean gradient with respect to the encoder's parameters, g the concatenation of the images'
gradients with respect to their pixels. With the published random heads: `published_gradients`.
"""

import numpy as np

from mergelib.checkpoints import task_vectors
from mergelib.metrics.inputs import Inputs
from mergelib.metrics.registry import published_metric

CATEGORY = "gradient"
INF = float("inf")


@published_metric("encoder_gradient_cosine_similarity", CATEGORY, (-1, 1))
def encoder_cosine_similarity(x: Inputs) -> np.ndarray:
    """Cosine of G_i and G_j."""
    return task_vectors.cosine(x.need("encoder_gradient_gram"))


@published_metric("encoder_gradient_l2_distance", CATEGORY, (0, INF))
def encoder_l2_distance(x: Inputs) -> np.ndarray:
    """‖G_i − G_j‖."""
    return task_vectors.distance(x.need("encoder_gradient_gram"))


@published_metric("encoder_gradient_dot_product", CATEGORY, (-INF, INF))
def encoder_dot_product(x: Inputs) -> np.ndarray:
    """G_i·G_j."""
    return x.need("encoder_gradient_gram")


@published_metric("input_gradient_cosine_similarity", CATEGORY, (-1, 1))
def input_cosine_similarity(x: Inputs) -> np.ndarray:
    """Cosine of g_i and g_j."""
    return task_vectors.cosine(x.need("input_gradient_gram"))


@published_metric("input_gradient_l2_distance", CATEGORY, (0, INF))
def input_l2_distance(x: Inputs) -> np.ndarray:
    """‖g_i − g_j‖."""
    return task_vectors.distance(x.need("input_gradient_gram"))


@published_metric("input_gradient_dot_product", CATEGORY, (-INF, INF))
def input_dot_product(x: Inputs) -> np.ndarray:
    """g_i·g_j."""
    return x.need("input_gradient_gram")
