"""TSV-M: task singular vectors, orthogonalized against each other."""

import torch
from torch import Tensor

from mergelib.linalg.polar import orthogonal_sum, precision
from mergelib.merging.layer import Layer
from mergelib.merging.registry import NUMBER, method


@method(
    "tsv",
    parameters={"alpha": NUMBER},
    corrected={"alpha": 1.0},
    factored=True,
    reference="Gargiulo et al. 2025, Task singular vectors, arXiv 2412.00081 (TSV-M)",
)
def tsv(layer: Layer, alpha: float) -> Tensor:
    """Δ = α U⊥ diag(S) V⊥ᵀ for a matrix of shape (m, n), α (1/T) Σ τt for any other tensor.

    S holds the leading ⌊min(m, n)/T⌋ singular values of every τt, one model after another, U and V
    their vectors side by side; U⊥ and V⊥ are the polar factors of U and V. Triplets with a null
    singular value carry nothing and are left out, since their vectors are arbitrary.
    """
    if not layer.is_matrix:
        return alpha * layer.mean()
    rank = min(layer.shape) // len(layer)
    us, ss, vs = zip(*(layer.triplets(t, rank) for t in range(len(layer))), strict=True)
    s = alpha * torch.cat(ss)
    if layer.shape[0] < layer.shape[1]:
        return orthogonal_sum(vs, s, us, precision(layer.shape)).T
    return orthogonal_sum(us, s, vs, precision(layer.shape))
