"""How far a part's weights are from the base's, and how far what they compute is.

Far: d(x, y) = ‖x − y‖² / (‖x‖² + ‖y‖²) = 1 − e, of the identity coefficient e (Zegers and ten Berge
1985, Psychometrika 50, 17–24): 0 for equal ones, 1 for unrelated ones, above 0 for a multiple too,
and half the squared relative change where norms are alike.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SMALL = 0.005  # weights that moved by a tenth, relatively; less harms no merge
MOVED = 0.1  # above it a head or a hidden unit is looked at without the others
SAMPLE = 512  # hidden units that are looked for among the base's


class Change(NamedTuple):
    """d of weights, and of what is invariant under their symmetries."""

    weights: float
    function: float


def compare(
    attention: bool, start: Sequence[Tensor], tuned: Sequence[Tensor], heads: int | None = None
) -> list[Change]:
    """How far the matrices of a part are from the base's, as `symmetries.read` gives both.

    Attention: (Q, K) and (V, O), one each; a perceptron: one. Where `heads` is known, those that
    moved are compared without the others.
    """
    if not attention:
        return [_units(start, tuned)]
    return [_products(start[i : i + 2], tuned[i : i + 2], heads or 1) for i in (0, 2)]


def distance(x: Tensor, y: Tensor) -> Tensor:
    """d = Σ (x − y)² / Σ (x² + y²) over all entries; 0 where both are null."""
    return _share(*_squares(x, y, tuple(range(x.ndim))))


def _squares(x: Tensor, y: Tensor, dim: int | tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """‖x − y‖² and ‖x‖² + ‖y‖² along axes."""
    far, one, two = (torch.linalg.vector_norm(each, dim=dim).square() for each in (x - y, x, y))
    return far, one + two


def _share(far: Tensor, size: Tensor) -> Tensor:
    return torch.where(size == 0, 0.0, far / size)


def _products(start: Sequence[Tensor], tuned: Sequence[Tensor], heads: int) -> Change:
    """Of LᵀR, summed over heads: W_Qᵀ W_K or W_Vᵀ W_Oᵀ, biases among the columns.

    L ← A⁻ᵀ L, R ← A R and any order of the heads leave it as it is, and each of its entries.
    """
    by_head = [x.unflatten(0, (heads, -1)) for x in (*start, *tuned)]  # (heads, head width, d)
    far, size = zip(*(_squares(by_head[i], by_head[i + 2], (1, 2)) for i in (0, 1)), strict=True)
    moved = torch.maximum(*map(_share, far, size)) > MOVED
    if not moved.any():
        whole = max(float(_share(f.sum(), s.sum())) for f, s in zip(far, size, strict=True))
        if whole <= SMALL:
            return Change(whole, whole)
        moved[:] = True
    weights = max(
        float(_share(f[moved].sum(), s[moved].sum())) for f, s in zip(far, size, strict=True)
    )
    left, right, new_left, new_right = (x[moved].flatten(0, 1) for x in by_head)
    return Change(weights, float(distance(left.T @ right, new_left.T @ new_right)))


def _units(start: Sequence[Tensor], tuned: Sequence[Tensor]) -> Change:
    """Of hidden units, a row each (what feeds it, its bias, what it feeds), whatever their order.

    Units that moved are each set against that of the base's moved ones which is nearest.
    """
    squares = [_squares(x, y, 1) for x, y in zip(start, tuned, strict=True)]
    far, size = (sum(each, torch.zeros(len(start[0]))) for each in zip(*squares, strict=True))
    moved = (_share(far, size) > MOVED).nonzero().flatten()
    if len(moved) < 2:
        whole = float(_share(far.sum(), size.sum()))
        return Change(whole, whole)
    some = moved[:: -(-len(moved) // SAMPLE)]
    old, new, same = (
        torch.cat([each[rows] for each in of], dim=1)
        for of, rows in ((start, moved), (tuned, some), (start, some))
    )
    sizes = new.square().sum(1)[:, None] + old.square().sum(1)[None]
    nearest = (2 * (new @ old.T) / sizes).argmax(dim=1)
    return Change(float(distance(same, new)), float(distance(old[nearest], new)))
