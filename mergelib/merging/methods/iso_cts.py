"""Isotropic merging in common and task-specific subspaces (Iso-CTS)."""

import torch
from torch import Tensor

from mergelib.linalg.polar import null, orthogonal_sum, precision, triplets
from mergelib.merging.layer import Layer
from mergelib.merging.registry import FRACTION, NUMBER, method


@method(
    "iso_cts",
    parameters={"alpha": NUMBER, "common": FRACTION},
    # As for Iso-C, its authors tune α on validation data.
    corrected={"alpha": 1.0, "common": 0.8},
    reference="Marczak et al. 2025, No task left behind, arXiv 2502.04959 (Iso-CTS)",
)
def iso_cts(layer: Layer, alpha: float, common: float) -> Tensor:
    """Δ = α mean(σ) U⊥V⊥ᵀ for a matrix of shape (m, n), α (1/T) Σ τt for any other tensor.

    With r = min(m, n), each model has q = round((1 − common) r/T) directions of its own and s =
    r − qT are common. U, σ, V: the leading q triplets of (I − U_sU_sᵀ) τt for every model, then the
    leading s of M = Σ τt, whose left vectors are U_s; U⊥ and V⊥ are their polar factors; the mean
    runs over r. Null triplets are left out, since their vectors are arbitrary.
    """
    if not layer.is_matrix:
        return alpha * layer.mean()
    size = min(layer.shape)
    own, shared = ranks(size, len(layer), common)
    total = layer.sum()
    found = [triplets(total, shared)]
    u, s, _ = found[0]
    least = null(total, s[0]) if len(s) else 0.0
    for vector in layer:
        found.append(triplets(vector - u @ (u.T @ vector), own, least))
    us, ss, vs = (torch.cat(parts, dim=-1) for parts in zip(*found, strict=True))
    level = (alpha * ss.sum() / max(size, 1)).expand_as(ss)
    if layer.shape[0] < layer.shape[1]:
        return orthogonal_sum([vs], level, [us], precision(layer.shape)).T
    return orthogonal_sum([us], level, [vs], precision(layer.shape))


def ranks(size: int, count: int, common: float) -> tuple[int, int]:
    """How many directions each of `count` models has of its own, and how many are common."""
    own = min(round((size - int(common * size)) / count), size // count)
    return own, size - own * count
