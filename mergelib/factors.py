"""Thin singular value decompositions of a task vector's matrices, from the cheaper side."""

import torch
from torch import Tensor


def thin_factors(matrix: Tensor, rank: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD τ = U diag(s) Vᵀ of (m, n) in float64: U (m, r), s (r,) descending, V (n, r).

    r = min(m, n), or at most `rank`.
    """
    tall = matrix.double()
    flip = tall.shape[0] < tall.shape[1]
    left, s, right = torch.linalg.svd(tall.T if flip else tall, full_matrices=False)
    u, v = (right.T, left) if flip else (left, right.T)
    return u[:, :rank], s[:rank], v[:, :rank]
