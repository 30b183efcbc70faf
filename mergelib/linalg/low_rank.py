"""The thin SVD of a product that is known by its factors, which need never be multiplied."""

import torch
from torch import Tensor

from mergelib.linalg.polar import null, triplets


def product_triplets(
    left: Tensor, right: Tensor, rank: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The leading triplets of L·R, (m, r) times (r, n), null ones left out, as `polar.triplets`.

    L = Q₁R₁ and Rᵀ = Q₂R₂ give L·R = Q₁ (R₁R₂ᵀ) Q₂ᵀ, whose core is r × r: U (m, k), s (k,) and
    V (n, k) in float64 cost (m + n) r² rather than mn·min(m, n). Null means at most
    max(m, n)·eps·s₁.
    """
    q_left, core_left = torch.linalg.qr(left.double())
    q_right, core_right = torch.linalg.qr(right.double().T)
    u, s, v = triplets(core_left @ core_right.T, rank)
    if len(s):
        product = torch.empty(len(left), right.shape[1], device="meta")  # its shape is what counts
        kept = int((s > null(product, s[0])).sum())
        u, s, v = u[:, :kept], s[:kept], v[:, :kept]
    return q_left @ u, s, q_right @ v
