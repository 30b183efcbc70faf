"""Singular value decompositions of a task vector's matrices, in float64, from the cheaper side.

The eigenvectors of the small Gram matrix AᵀA cost a fifth of an SVD, a few of them a tenth, but
rounding moves its eigenvalues σ² by about eps·σ1². That is harmless at the top; what is small is
either refined on A itself (`ends`) or, where the spectrum is too wide for that, left to LAPACK's
SVD. On a GPU it is the large products that run there; the small problems are LAPACK's everywhere,
whose threads solve many at a time.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mergelib.linalg.lapack import Tridiagonal, eigh, small_gram

TOP = 1e-3  # of σ1: below this the Gram matrix blurs a singular vector
FULL = 1e-4  # of σ1: likewise where orthonormal left and right factors are wanted
NULL = 1e-11  # of σ1: below this a value counts as rounding and its vectors as arbitrary
GUARD = 10  # columns beyond the wanted ones that refine the bottom with them
STEPS = 5  # of the refinement, which squares the error: two as a rule
SETTLED = 1e-6  # radians: what is left after a turn this small is 1e-12
FEW = 1 / 8  # of all eigenvectors: so many cost less by themselves
LOST = 0.1  # radians: a turn this large is no first-order one


@dataclass(frozen=True)
class Ends:
    """Ends of the thin SVD of (m, n): the largest singular values, and k vectors at each end."""

    sigma: Tensor  # (min(sigmas, m, n),) descending
    u_top: Tensor  # (m, k)
    v_top: Tensor  # (n, k)
    u_bottom: Tensor  # (m, k), the last k of the min(m, n)
    v_bottom: Tensor  # (n, k)


def _svd(tall: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    u, s, vt = torch.linalg.svd(tall.cpu(), full_matrices=False)
    return u, s, vt.T


def thin_factors(matrix: Tensor, rank: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD A ≈ U diag(s) Vᵀ of (m, n) in float64: U (m, r), s (r,) descending, V (n, r).

    r = min(m, n), or at most `rank`. Where s_r ≥ 1e-4 s_1 the factors come from the smaller Gram
    matrix: values are within 1e-14 s_1²/s of LAPACK's, and the factor on the larger side is
    orthonormal to 1e-14 (s_1/s_r)², the other to 1e-13. Otherwise they are LAPACK's. Vectors of
    equal values are any basis of their space; below the rank of A they are arbitrary.
    """
    if matrix.shape[0] < matrix.shape[1]:  # the wide case costs LAPACK almost twice the tall one
        v, s, u = thin_factors(matrix.T, rank)
        return u, s, v
    tall = matrix.double()
    squares, vectors = _leading(small_gram(tall), rank)
    s = squares.clamp(min=0).sqrt()
    if not len(s) or s[-1] < FULL * s[0] or s[0] == 0:
        u, s, v = (part.to(tall.device) for part in _svd(tall))
        return u[:, :rank], s[:rank], v[:, :rank]
    return _times(tall, vectors).to(s) / s, s, vectors


def _leading(gram: Tensor, rank: int | None) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues (r,) of a Gram matrix (n, n), descending, and their vectors (n, r).

    A few vectors cost a third of all. The matrix may be written over.
    """
    if rank is not None and rank <= FEW * len(gram):
        try:
            eigen = Tridiagonal(gram.cpu().clone())
            vectors = eigen.ends(0, rank)[1].flip(1)
            return eigen.values.flip(0)[:rank].to(gram.device), vectors.to(gram.device)
        except torch.linalg.LinAlgError:  # equal values, a null row
            pass
    squares, vectors = eigh(gram)
    return squares.flip(0)[:rank], vectors.flip(1)[:, :rank].contiguous()


def ends(matrix: Tensor, sigmas: int = 100, k: int = 10, room: Tensor | None = None) -> Ends:
    """Ends of the thin SVD of (m, n), float64, on the CPU; k is cut to min(m, n).

    Against LAPACK's float64 SVD: values within 1e-14 σ1²/σ; the space of either group of vectors
    within 1e-11 + 1e-13 σ1/gap radians, gap being what separates its values from the others'. Where
    AᵀA cannot give that (σ_k < 1e-3 σ1, or a bottom that is null or that the refinement does not
    settle), and for small matrices, it is LAPACK's SVD. Below the rank of A vectors complete the
    others arbitrarily; those of a zero matrix are the first k axes, and the last k of min(m, n).
    `room`, float64 (n, n) with n = min(m, n) on the CPU, is memory for AᵀA there: where many
    matrices are factored, the system takes a tenth of the time to clear new memory for each.
    """
    if matrix.shape[0] < matrix.shape[1]:
        found = ends(matrix.T, sigmas, k, room)
        return Ends(found.sigma, found.v_top, found.u_top, found.v_bottom, found.u_bottom)
    tall = matrix.double()
    n = tall.shape[1]
    k = min(k, n)
    if not tall[0].any() and not tall.any():
        u, v = (torch.eye(rows, n, dtype=torch.float64) for rows in tall.shape)
        zeros = torch.zeros(min(sigmas, n), dtype=torch.float64)
        return Ends(zeros, u[:, :k], v[:, :k], u[:, n - k : n], v[:, -k:])
    if n > k + GUARD and (by_gram := _by_gram(tall, sigmas, k, room)):
        return by_gram
    u, s, v = _svd(tall)
    return Ends(s[:sigmas], u[:, :k], v[:, :k], u[:, -k:], v[:, -k:])


def _by_gram(tall: Tensor, sigmas: int, k: int, room: Tensor | None) -> Ends | None:
    """`ends` from AᵀA; None where that cannot give them."""
    try:
        eigen = Tridiagonal(small_gram(tall, room).cpu())
        sigma = eigen.values.clamp(min=0).sqrt().flip(0)
        top = sigma[:k]
        if not top[-1] > TOP * top[0]:
            return None
        low, high = eigen.ends(k + GUARD, k)
        images = _times(tall, torch.cat([low, high], dim=1))  # one pass over A, the slow part
        bottom = _bottom(tall, eigen, low, images[:, :-k], k)
    except torch.linalg.LinAlgError:
        return None
    u = images[:, -k:].flip(1) / top
    return Ends(sigma[:sigmas], u, high.flip(1), *bottom) if bottom else None


def _times(matrix: Tensor, columns: Tensor) -> Tensor:
    """Matrix times columns, on the CPU."""
    if not matrix.is_cpu:
        return (matrix @ columns.to(matrix.device)).cpu()
    # numpy's BLAS takes a tenth of the time of torch's for so few columns, as some processors are
    return torch.from_numpy(matrix.numpy() @ columns.numpy())


def _bottom(
    tall: Tensor, eigen: Tridiagonal, w: Tensor, images: Tensor, k: int
) -> tuple[Tensor, Tensor] | None:
    """Last k left and right singular vectors, in descending order; None where they do not settle.

    W, the bottom of the eigenvectors of AᵀA, is off by about eps·σ1² over a gap of squares. What
    AᵀA loses, the products A W and Aᵀ(A W) keep: the SVD of A W sorts out W itself, and the rest C
    gives the first-order turn Σ_i c_i (c_i·(AᵀA w_j − σ_j² w_j)) / (σ_i² − σ_j²), until it is nil.
    """
    settled = False
    for _ in range(STEPS):
        u, s, rt = torch.linalg.svd(images, full_matrices=False)  # descending
        w = w @ rt.T
        left, right, value = u[:, -k:], w[:, -k:], s[-k:]
        if settled:
            return left, right
        if s[-1] < NULL * eigen.values[-1].sqrt():
            return None
        residual = _times(tall.T, left * value) - right * value**2
        turn = eigen.solve_outside(residual, value**2)
        angle = turn.norm(dim=0).max()
        if not angle < LOST:  # nan too
            return None
        w = torch.linalg.qr(torch.cat([w[:, :-k], right - turn], dim=1))[0]
        images = _times(tall, w)
        settled = angle < SETTLED
    return None
