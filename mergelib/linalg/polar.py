"""Singular triplets and polar factors of one task vector's matrices."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mergelib.linalg.lapack import eigh, small_gram
from mergelib.linalg.svd import thin_factors

LARGE = 2**18  # entries; from here on products of well-conditioned matrices run in float32

# A polar factor A (AᵀA)^(-1/2) is taken from the small Gram matrix where A's singular values exceed
# this share of the largest; what is below is taken from A itself. Rounding grows by the inverse.
WEAK = {torch.float64: 1e-3, torch.float32: 0.1}


def is_matrix(shape: tuple[int, ...], name: str) -> bool:
    """Whether the spectral methods treat this tensor as a matrix (the others are averaged).

    Matrices are the tensors with two dimensions, except the text projection, as in the released
    TSV code.
    """
    return len(shape) == 2 and "text_projection" not in name


def precision(shape: tuple[int, ...]) -> torch.dtype:
    """The type of the large products: float32 (error about 1e-6) from 2^18 entries on."""
    return torch.float32 if len(shape) == 2 and shape[0] * shape[1] >= LARGE else torch.float64


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD (U, S, Vᵀ) without the null triplets: U (m, r), S (r,), Vᵀ (r, n), r = rank.

    A null singular value leaves its vectors undefined, and they would differ from one LAPACK to
    the next. Null means at most max(m, n)·eps·S₁ (eps of float64, as numpy's matrix_rank).
    """
    u, s, v = triplets(matrix)
    return u, s, v.T


def triplets(
    matrix: Tensor, rank: int | None = None, floor: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The leading triplets of the thin SVD, null ones left out: U (m, r), s (r,), V (n, r).

    Null means at most `floor`, by default max(m, n)·eps·s₁. Float64.
    """
    u, s, v = thin_factors(matrix, rank)
    if len(s):
        least = null(matrix, s[0]) if floor is None else floor
        kept = int((s > least).sum())
        u, s, v = u[:, :kept], s[:kept], v[:, :kept]
    return u, s, v


def null(matrix: Tensor, largest: Tensor) -> float:
    """Singular values up to this are rounding: max(m, n)·eps·σ₁, eps of float64."""
    return max(matrix.shape) * torch.finfo(torch.float64).eps * float(largest)


@dataclass(frozen=True)
class Polar:
    """The polar factor of a tall A (m, n) as A·root + rest·basisᵀ.

    root (n, n) = Σ v vᵀ/σ over the strong right singular vectors of A; basis (n, r) spans the weak
    ones, and rest (m, r) is the polar factor of A·basis.
    """

    matrix: Tensor
    root: Tensor
    rest: Tensor
    basis: Tensor

    def times(self, right: Tensor) -> Tensor:
        """The polar factor times (n, k), without forming it."""
        return self.matrix @ (self.root @ right) + self.rest @ (self.basis.T @ right)

    def full(self) -> Tensor:
        """The polar factor: (m, n)."""
        return self.matrix @ self.root + self.rest @ self.basis.T


def polar(matrix: Tensor) -> Tensor:
    """Polar factor PQᵀ of A = PΣQᵀ (same shape), float64: the nearest orthonormal matrix.

    It is the columns of a tall A, the rows of a wide one, that become orthonormal. Where A is
    rank-deficient it is the canonical partial isometry (zero on the null space of A), which is
    unique, unlike a completion by arbitrary null vectors.
    """
    if matrix.shape[0] < matrix.shape[1]:
        return polar(matrix.T).T
    return split(matrix).full()


def split(matrix: Tensor, dtype: torch.dtype = torch.float64, floor: float | None = None) -> Polar:
    """Polar factor of a tall matrix through the eigenvectors of its small Gram matrix.

    `dtype` is that of the parts; singular values up to `floor` (default: `null`) count as zero.
    """
    tall = matrix.double()
    squares, vectors = eigh(small_gram(tall))
    sigma = squares.clamp(min=0).sqrt()
    largest = sigma[-1] if len(sigma) else sigma.sum()
    least = null(matrix, largest) if floor is None else floor
    weak = (sigma < WEAK[dtype] * largest) | (sigma <= least)
    strong = vectors[:, ~weak]
    root = (strong / sigma[~weak]) @ strong.T
    return _parts(matrix, root.to(dtype), vectors[:, weak] if largest > least else None, least)


def split_pair(first: Tensor, second: Tensor, dtype: torch.dtype) -> Polar:
    """Polar factor of A = [U₁ U₂], two blocks with orthonormal columns, (m, k₁) and (m, k₂).

    With C = U₁ᵀU₂ and cos²Θ the eigenvalues of CᵀC, AᵀA has the eigenvalues 1 ± cos Θ, and
    (AᵀA)^(-1/2) = [[I + C h Cᵀ, −C g], [−g Cᵀ, f]] with functions f, g, h of CᵀC: one eigenproblem
    of a quarter of the size. Where both blocks share a direction (cos Θ → 1) its difference is
    weak; it is taken from the blocks themselves, which the Gram matrix would blur.
    """
    cross = (first.to(dtype).T @ second.to(dtype)).double()
    squares, vectors = eigh(cross.T @ cross)
    squares = squares.clamp(0, 1)
    cosine = squares.sqrt()
    apart = (1 - squares) / (1 + cosine)  # 1 − cos Θ
    weak = apart < WEAK[dtype] ** 2
    total = (1 + cosine).rsqrt()
    difference = torch.where(weak, 0.0, apart.clamp(min=WEAK[dtype] ** 2).rsqrt())
    f = (difference + total) / 2
    # their series, where the quotients would lose digits
    g = torch.where(cosine > 1e-3, (difference - total) / (2 * cosine), 0.5 + squares * 5 / 16)
    h = torch.where(cosine > 1e-3, (f - 1) / squares, 0.375 + squares * 35 / 128)
    turned = cross @ vectors
    left, right = turned.to(dtype), vectors.to(dtype)
    f, g, h = f.to(dtype), g.to(dtype), h.to(dtype)
    corner = (left * h) @ left.T
    corner.diagonal().add_(1)
    side = -(left * g) @ right.T
    root = torch.cat([torch.cat([corner, side], 1), torch.cat([side.T, (right * f) @ right.T], 1)])
    basis = torch.cat([turned[:, weak] / cosine[weak], -vectors[:, weak]]) / 2**0.5
    # Blocks of float32 cannot tell directions that are closer than this from one.
    least = 1e-6 if first.dtype == torch.float32 else 2 * null(first, cosine.new_ones(()))
    return _parts(torch.cat([first, second], dim=1), root, basis, least)


def _parts(matrix: Tensor, root: Tensor, basis: Tensor | None, floor: float) -> Polar:
    """Refine the weak basis on A itself, and orthonormalize what A makes of it.

    A basis from a rounded Gram matrix leaks into the strong directions; root²·AᵀA·basis is that
    leak to first order, and the strong directions are large enough for it to matter.
    """
    strong = matrix.to(root.dtype)
    if basis is None or not basis.shape[1]:
        none = root[:, :0]
        return Polar(strong, root, strong[:, :0], none)
    exact = matrix.double()
    leak = (exact.T @ (exact @ basis)).to(root.dtype)
    basis = basis - (root @ (root @ leak)).double()
    rest = split(exact @ basis, floor=floor).full()
    return Polar(strong, root, rest.to(root.dtype), basis.to(root.dtype))


def orthogonal_sum(
    us: Sequence[Tensor], s: Tensor, vs: Sequence[Tensor], dtype: torch.dtype
) -> Tensor:
    """U⊥ diag(s) V⊥ᵀ from the blocks of U (m, ·) and V (n, ·), m ≥ n; products run in `dtype`."""
    left, right = _split_blocks(us, dtype), _split_blocks(vs, dtype)
    return left.times((right.full() * s.to(dtype)).T)


def _split_blocks(blocks: Sequence[Tensor], dtype: torch.dtype) -> Polar:
    if len(blocks) == 2:
        return split_pair(blocks[0], blocks[1], dtype)
    return split(torch.cat(list(blocks), 1), dtype)
