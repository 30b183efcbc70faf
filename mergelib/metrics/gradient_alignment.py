"""Gradient alignment metrics (extra): do two models want the same change, image by image?

Both models see the same images under the same heads (the calibration pool of all tasks), so their
gradients can be compared image by image and tensor by tensor; a negative cosine is a conflict.
"""

import numpy as np

from mergelib.checkpoints import task_vectors
from mergelib.metrics.inputs import Inputs
from mergelib.metrics.registry import metric

CATEGORY = "gradient_alignment"
REFERENCE = "Yu et al. 2020, Gradient surgery for multi-task learning (arXiv 2001.06782)"


@metric("input_gradient_alignment", CATEGORY, (-1, 1), REFERENCE)
def input_gradient_alignment(x: Inputs) -> np.ndarray:
    """1/N Σ_n cos(g_i,n, g_j,n) of the gradients at the pixels of image n."""
    return np.mean([task_vectors.cosine(gram) for gram in x.need("input_gradient_grams")], axis=0)


@metric("encoder_gradient_alignment", CATEGORY, (-1, 1), REFERENCE)
def encoder_gradient_alignment(x: Inputs) -> np.ndarray:
    """Mean over the tensors ℓ of cos(G_i,ℓ, G_j,ℓ); tensors without any gradient do not count."""
    grams = x.need("encoder_gradient_grams").values()
    alive = [gram for gram in grams if np.diagonal(gram).any()]
    total = sum((task_vectors.cosine(gram) for gram in alive), np.zeros_like(x.gram))
    return total / max(len(alive), 1)
