"""TIES: trim, elect sign, disjoint mean."""

import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from mergelib.linalg import select
from mergelib.merging.layer import Layer
from mergelib.merging.registry import FRACTION, NUMBER, method


def thresholds(layer: Layer, density: float) -> list[float]:
    """Each model's m-th largest magnitude, m = max(1, ⌊density·numel⌋): what reaches it is kept."""
    size = math.prod(layer.shape)
    if size == 0:
        return [0.0] * len(layer)
    place = size - max(1, math.floor(density * size))
    held = torch.empty(size if size <= select.FITS else 0, dtype=torch.float64)

    def pieces(position: int) -> Iterator[Tensor]:
        return (block[position] for block in layer.blocks(size if len(held) else None))

    return [select.kth_magnitude(partial(pieces, t), size, place, held) for t in range(len(layer))]


def trim(vector: Tensor, least: float) -> Tensor:
    """The vector without the entries whose magnitude is below `least`."""
    # one pass over the numbers; it wants the largest magnitude that is left out
    return hardshrink(vector, math.nextafter(least, -math.inf))


def joined(trimmed: Sequence[Tensor], alpha: float, majority: int) -> tuple[Tensor, int, bool]:
    """α · disjoint mean of trimmed task vectors, which are written over; `majority` signs ties.

    Then the sum of the elected signs, and whether a tie was settled by the majority.
    """
    total = trimmed[0].clone()
    for vector in trimmed[1:]:
        total += vector
    chosen = total.sign()
    sign = torch.where(chosen == 0, majority, chosen)
    merged, votes = torch.zeros_like(total), torch.zeros_like(total, dtype=torch.int32)
    for vector in trimmed:
        agreeing = vector.mul_(sign).clamp_(min=0)  # their magnitudes
        merged += agreeing
        votes += agreeing > 0
    tied = bool(((chosen == 0) & (votes > 0)).any())
    return merged.mul_(sign).mul_(alpha).div_(votes.clamp_(min=1)), int(chosen.sum()), tied


@method(
    "ties",
    parameters={"density": FRACTION, "alpha": NUMBER},
    corrected={"density": 0.2, "alpha": 0.3},
    # Its authors trim over the whole model at once; here, as released, tensor by tensor.
    original={"alpha": 1.0},
    reference="Yadav et al. 2023, TIES-Merging, arXiv 2306.01708, Algorithm 1",
)
def ties(layer: Layer, density: float, alpha: float) -> Iterator[tuple[Layer, Tensor]]:
    """Δ = α · mean of the trimmed, non-zero τt entries that have the elected sign.

    The elected sign of an entry is that of the sum of its trimmed values; where the sum is zero,
    the sign of the sum of all elected signs (1 if that is zero too).
    """
    least = thresholds(layer, density)

    def of(block: Layer, majority: int) -> tuple[Tensor, int, bool]:
        trimmed = [trim(vector, bound) for vector, bound in zip(block, least, strict=True)]
        return joined(trimmed, alpha, majority)

    balance, tied_blocks = 0, []
    for place, block in enumerate(layer.blocks()):
        delta, signs, tied = of(block, majority=1)
        balance += signs
        if tied:
            tied_blocks.append(place)
        yield block, delta
    if balance < 0:  # known only now: blocks with ties come again, which spares a pass over all
        for place, block in enumerate(layer.blocks()):
            if place in tied_blocks:
                yield block, of(block, majority=-1)[0]
