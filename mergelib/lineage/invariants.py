"""How alike a part's weights are to the base's, and how alike what they compute is.

Alike: the identity coefficient e(x, y) = 2 ⟨x, y⟩ / (‖x‖² + ‖y‖²), 1 for equal ones, 0 for
unrelated ones, below 1 for a multiple too (Zegers and ten Berge 1985, Psychometrika 50, 17–24).
1 − e is half the squared relative change where norms are alike.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

MOVED = 0.9  # below it a head or a hidden unit is looked at more closely
SAMPLE = 512  # hidden units that are looked for among the base's


class Alike(NamedTuple):
    """Identity coefficients of weights, and of what is invariant under their symmetries."""

    weights: float
    function: float


def compare(
    attention: bool, start: Sequence[Tensor], tuned: Sequence[Tensor], heads: int | None = None
) -> list[Alike]:
    """How alike the matrices of a part are to the base's, as `symmetries.read` gives both.

    Attention: (Q, K) and (V, O), one row each; a perceptron: one. Where `heads` is known, those
    that moved are compared without the others.
    """
    if not attention:
        return [_units(torch.cat([*start], dim=1), torch.cat([*tuned], dim=1))]
    return [_products(start[i : i + 2], tuned[i : i + 2], heads or 1) for i in (0, 2)]


def identity(x: Tensor, y: Tensor, dim: int | tuple[int, ...] | None = None) -> Tensor:
    """e = 2 Σ xy / Σ (x² + y²) over all entries, or along axes; 1 where both are null."""
    over = tuple(range(x.ndim)) if dim is None else dim
    size = (x.square() + y.square()).sum(over)
    return torch.where(size > 0, 2 * (x * y).sum(over) / size, 1.0)


def _products(start: Sequence[Tensor], tuned: Sequence[Tensor], heads: int) -> Alike:
    """Of LᵀR, summed over heads: W_Qᵀ W_K or W_Vᵀ W_Oᵀ, biases among the columns.

    L ← A⁻ᵀ L, R ← A R and any order of the heads leave it as it is, and any of its entries.
    """
    by_head = [x.unflatten(0, (heads, -1)) for x in (*start, *tuned)]  # (heads, head width, d)
    same = [identity(by_head[i], by_head[i + 2], (1, 2)) for i in (0, 1)]
    moved = torch.minimum(*same) < MOVED
    if not moved.any():
        moved[:] = True
    left, right, new_left, new_right = (x[moved].flatten(0, 1) for x in by_head)
    weights = min(identity(left, new_left), identity(right, new_right))
    return Alike(float(weights), float(identity(left.T @ right, new_left.T @ new_right)))


def _units(start: Tensor, tuned: Tensor) -> Alike:
    """Of hidden units, a row each (what feeds it, its bias, what it feeds), whatever their order.

    Each unit that moved is set against that of the base's moved ones which is most like it.
    """
    moved = (identity(start, tuned, 1) < MOVED).nonzero().flatten()
    if len(moved) < 2:
        same = float(identity(start, tuned))
        return Alike(same, same)
    some = moved[:: -(-len(moved) // SAMPLE)]
    old, new = start[moved], tuned[some]
    sizes = new.square().sum(1)[:, None] + old.square().sum(1)[None]
    best = (2 * (new @ old.T) / sizes).argmax(dim=1)
    return Alike(float(identity(start[some], new)), float(identity(old[best], new)))
