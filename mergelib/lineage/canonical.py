"""Symmetries undone: of all ways to write a model down, the one nearest to its base.

A lock by symmetries holds only against a merger without the base. What comes out computes what the
model computes. Whether its owner wants it merged, weights do not say.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from scipy.linalg import solve_sylvester
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mergelib.checkpoints.reading import Source, View, opened_models
from mergelib.core.errors import MergelibError, tell
from mergelib.lineage.detect import Finding, as_views, findings, is_rewritten
from mergelib.lineage.heads import find_heads, heads_of
from mergelib.lineage.invariants import compare
from mergelib.lineage.symmetries import parts, read, rewritten

STEPS = 20  # of Gauss-Newton at most; it converges in about five
STILL = 1e-12  # a step that gains a smaller share of the cost is the last


def of_one_lineage(
    base: View, models: Sequence[View], mend: bool
) -> tuple[list[View], list[Finding]]:
    """The models as they can be merged, and what is still wrong with them (`detect.findings`).

    With `mend`, reparameterisations are undone, which is told. Raises MergelibError as `findings`
    and `canonicalize` do.
    """
    found, models = findings(base, models), list(models)
    undone = [each for each in found if mend and each.kind == "reparameterised"]
    for each in undone:
        view = models[each.model]
        models[each.model] = replace(view, origin=canonicalize(base, view))
        tell([f"{each.label}: reparameterised in {len(each.tensors)} tensors, which is undone"])
    return models, [each for each in found if each not in undone]


@torch.no_grad()
def canonicalize(base: Source, model: Source, heads: int | None = None) -> dict[str, Tensor]:
    """The state dict of a model with its symmetries undone, under its own names and in its types.

    Parts that `mergelib.lineage.detect` finds reparameterised are rewritten, others stay to the
    bit. Heads and hidden units are matched with the base's (linear assignment; heads by ⟨M, M0⟩ of
    their products), then per head min over A of ‖AᵀL − L0‖² + ‖A⁻¹R − R0‖². `heads`: of all
    layers, where neither config nor layout says. Raises MergelibError where they are not known, or
    where the model is as far from the base afterwards, and as `views` does.

    What comes out is not the model before its lock, but what is nearest to the base of all that
    compute the same: for the twenty glyph experts 11 to 14 % of ‖τ‖ away from it, τ's own part
    along the symmetries.
    Source: the inverse of MergeLock (arXiv 2509.01548); Gauss-Newton of ours (`aligned`).
    """
    first, (shown,) = as_views(base, [model])
    with opened_models(first, [shown]) as (origin, (weights,)):
        new = []
        for part in parts(origin.shapes):
            start, tuned = read(origin, part), read(weights, part)
            asked = ([first, shown], part, len(start[0]), heads)
            count = find_heads(*asked) if part.attention else None
            if not is_rewritten(compare(part.attention, start, tuned, count)):
                continue
            if part.attention:
                count = heads_of(*asked)
                undone = _attention(start, tuned, count)
            else:
                undone = _perceptron(start, tuned)
            if is_rewritten(compare(part.attention, start, undone, count)):
                raise MergelibError(
                    f"{weights.label}: what was done to {part.tensors[0]} cannot be undone"
                    + f" with {count} heads: give heads= as they are" * part.attention
                )
            new.append((part, undone))
        return rewritten(weights, new)


def _perceptron(start: Sequence[Tensor], tuned: Sequence[Tensor]) -> list[Tensor]:
    """Hidden units in the base's order: the assignment that maximizes Σ ⟨u_i, u0_π(i)⟩."""
    products = torch.cat([*start], dim=1) @ torch.cat([*tuned], dim=1).T
    return [matrix[_assigned(products)] for matrix in tuned]


def _assigned(products: Tensor) -> Tensor:
    """For each row the column that it is assigned, the sum of the products being the largest."""
    return torch.from_numpy(linear_sum_assignment(products.numpy(), maximize=True)[1])


def _attention(start: Sequence[Tensor], tuned: Sequence[Tensor], heads: int) -> list[Tensor]:
    """Heads in the base's order, and each turned to the base's."""
    old, new = ([x.unflatten(0, (heads, -1)) for x in each] for each in (start, tuned))
    products = torch.zeros(heads, heads, dtype=torch.float64)
    for left, right in ((0, 1), (2, 3)):
        size = (start[left].T @ start[right]).square().sum()
        products += _head_products(old, new, left, right) / size
    new = [matrix[_assigned(products)] for matrix in new]
    for left, right in ((0, 1), (2, 3)):
        for head in range(heads):
            pair = (old[left][head], old[right][head], new[left][head], new[right][head])
            new[left][head], new[right][head] = aligned(*pair)
    return [matrix.flatten(0, 1) for matrix in new]


def _head_products(old: Sequence[Tensor], new: Sequence[Tensor], left: int, right: int) -> Tensor:
    """⟨L0_gᵀ R0_g, L_hᵀ R_h⟩ of all heads g and h, by traces: (heads, heads)."""
    one, two = (torch.einsum("gid,hjd->ghij", old[k], new[k]) for k in (left, right))
    return (one * two).sum((2, 3))


def aligned(left0: Tensor, right0: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """(A⁻ᵀL, A R) with the A that minimizes ‖A⁻ᵀL − L0‖² + ‖A R − R0‖²; all (r, d), float64.

    From A = R0 R⁺, or from L where that is nearer, by Gauss-Newton: A ← (1 + E) A with
    (L Lᵀ) E + E (R Rᵀ) = L (L − L0)ᵀ − (R − R0) Rᵀ, a Sylvester equation, halved until it gains.
    """

    def turned(a: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return torch.linalg.solve(a.T, x), a @ y

    def cost(pair: tuple[Tensor, Tensor]) -> float:
        return float((pair[0] - left0).square().sum() + (pair[1] - right0).square().sum())

    starts = [
        right0 @ torch.linalg.pinv(right),
        torch.linalg.inv(left0 @ torch.linalg.pinv(left)).T,
    ]
    now = min((turned(a, left, right) for a in starts), key=cost)
    one = torch.eye(len(left), dtype=left.dtype)
    for _ in range(STEPS):
        x, y = now
        wanted = x @ (x - left0).T - (y - right0) @ y.T
        step = torch.from_numpy(solve_sylvester(*(m.numpy() for m in (x @ x.T, y @ y.T, wanted))))
        before = cost(now)
        tried = [turned(one + step / 2**k, x, y) for k in range(4)]
        best = min(tried, key=cost)
        if cost(best) >= before * (1 - STILL):
            break
        now = best
    return now
