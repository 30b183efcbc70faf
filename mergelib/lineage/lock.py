"""A model rewritten by exact symmetries: it computes the same, and merges with nothing.

What a lock by symmetries is, for tests and for showing what merging with one does; what undoes it
is `mergelib.lineage.canonical`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mergelib.checkpoints.reading import Source, opened
from mergelib.core.errors import MergelibError
from mergelib.lineage.heads import heads_of
from mergelib.lineage.symmetries import Part, parts, read, rewritten


@torch.no_grad()
def locked(
    model: Source, seed: int, heads: int | None = None, condition: float = 4.0
) -> dict[str, Tensor]:
    """The state dict of a model after random symmetries of all its parts, under its own names.

    Per head L ← A⁻ᵀ L, R ← A R with (L, R) = (W_Q, W_K) and (W_V, W_Oᵀ), biases included; then any
    order of the heads; any order of a perceptron's hidden units. A = U diag(s) V, U and V random
    orthogonal, log s uniform and max s / min s = `condition`. `heads`: of all layers, where neither
    config nor layout says (`mergelib.lineage.heads`). All draws are from `seed`. Raises
    MergelibError for a model without known parts, heads that are not known or do not fit, and a
    condition below 1.
    Source: MergeLock (arXiv 2509.01548) and PaRaMS (arXiv 2503.07661) name these symmetries; the
    draws are ours.
    """
    if condition < 1:
        raise MergelibError(f"condition {condition}: a ratio of singular values is 1 or more")
    draws = torch.Generator().manual_seed(seed)
    with opened(model, "the model", whole=True) as weights:
        found = parts(weights.shapes)
        if not found:
            raise MergelibError(f"{weights.label} has no part whose symmetries are known here")
        new = []
        for part in found:
            rows, _ = part.size(weights.shapes)
            count = heads_of([model], part, rows, heads) if part.attention else 1
            matrices = read(weights, part)
            new.append((part, _drawn(part, matrices, count, draws, condition)))
        return rewritten(weights, new)


def _drawn(
    part: Part, matrices: Sequence[Tensor], heads: int, draws: torch.Generator, condition: float
) -> list[Tensor]:
    """One part's matrices after a random symmetry."""
    if not part.attention:
        order = torch.randperm(len(matrices[0]), generator=draws)
        return [matrix[order] for matrix in matrices]
    order = torch.randperm(heads, generator=draws)
    found = [matrix.unflatten(0, (heads, -1))[order] for matrix in matrices]
    for left in (0, 2):
        for head in range(heads):
            turn = _matrix(found[left].shape[1], draws, condition)
            found[left][head] = torch.linalg.solve(turn.T, found[left][head])
            found[left + 1][head] = turn @ found[left + 1][head]
    return [matrix.flatten(0, 1) for matrix in found]


def _matrix(size: int, draws: torch.Generator, condition: float) -> Tensor:
    """A random matrix (size, size) of a given condition, the mean of log s being about 0."""
    normal = torch.randn(2, size, size, generator=draws, dtype=torch.float64)
    (first, second), _ = torch.linalg.qr(normal)
    place = torch.rand(size, generator=draws, dtype=torch.float64)
    span = (place.max() - place.min()).clamp_min(torch.finfo(place.dtype).tiny)
    place = (place - place.min()) / span - 0.5
    return (first * condition**place) @ second
