"""Singular value factors of one task vector's matrices, in float64."""

import torch
from torch import Tensor


def is_matrix(vectors: Tensor, name: str) -> bool:
    """Whether the spectral methods treat this tensor as a matrix (the others are averaged).

    `vectors` has shape (T, *shape). Matrices are the tensors with two dimensions, except the text
    projection, as in the released TSV code.
    """
    return vectors.ndim == 3 and "text_projection" not in name


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD (U, S, Vᵀ) without the null triplets: U (m, r), S (r,), Vᵀ (r, n), r = rank.

    A null singular value leaves its vectors undefined, and they would differ from one LAPACK to
    the next. Null means at most max(m, n)·eps·S₁ (eps of float64, as numpy's matrix_rank).
    """
    if matrix.shape[0] < matrix.shape[1]:  # the wide case costs LAPACK almost twice the tall one
        v, s, ut = svd(matrix.T)
        return ut.T, s, v.T
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    if s.numel():
        rank = int((s > max(matrix.shape) * torch.finfo(s.dtype).eps * s[0]).sum())
        u, s, vt = u[:, :rank], s[:rank], vt[:rank]
    return u, s, vt


def polar(matrix: Tensor) -> Tensor:
    """Polar factor PQᵀ of A = PΣQᵀ (same shape): the nearest matrix with orthonormal columns.

    For a wide A it is the rows that are orthonormal. Where A is rank-deficient it is the canonical
    partial isometry (zero on the null space of A), which is unique, unlike a completion by
    arbitrary null vectors.
    """
    p, _, qt = svd(matrix)
    return p @ qt


def low_rank(matrix: Tensor, rank: int) -> Tensor:
    """Best approximation of at most that rank (Eckart–Young)."""
    u, s, vt = svd(matrix)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]
