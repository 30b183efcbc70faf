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
    whole = next(layer.blocks(select.FITS)) if size <= select.FITS else None

    def pieces(position: int) -> Iterator[Tensor]:
        return (block[position] for block in ([whole] if whole else layer.blocks()))

    return [select.kth_magnitude(partial(pieces, t), size, place) for t in range(len(layer))]


def trim(vector: Tensor, least: float) -> Tensor:
    """The vector without the entries whose magnitude is below `least`."""
    # one pass over the numbers; it wants the largest magnitude that is left out
    return hardshrink(vector, math.nextafter(least, -math.inf))


def elected(block: Layer, least: Sequence[float]) -> Tensor:
    """The sign of Σ of the trimmed task vectors, int8."""
    total = torch.zeros_like(block[0])
    for vector, bound in zip(block, least, strict=True):
        total += trim(vector, bound)
    return total.sign_().to(torch.int8)


@method(
    "ties",
    parameters={"density": FRACTION, "alpha": NUMBER},
    corrected={"density": 0.2, "alpha": 0.3},
    # Its authors trim over the whole model at once; here, as released, tensor by tensor.
    original={"alpha": 1.0},
    reference="Yadav et al. 2023, TIES-Merging, arXiv 2306.01708, Algorithm 1",
)
def ties(layer: Layer, density: float, alpha: float) -> Iterator[Tensor]:
    """Δ = α · mean of the trimmed, non-zero τt entries that have the elected sign.

    The elected sign of an entry is that of the sum of its trimmed values; where the sum is zero,
    the sign of the sum of all elected signs (1 if that is zero too).
    """
    least = thresholds(layer, density)
    signs = [elected(block, least) for block in layer.blocks()]  # a byte an entry
    majority = 1 if sum(int(sign.sum()) for sign in signs) >= 0 else -1
    for block, chosen in zip(layer.blocks(), signs, strict=True):
        sign = torch.where(chosen == 0, majority, chosen).double()
        merged, votes = torch.zeros_like(block[0]), torch.zeros_like(chosen, dtype=torch.int32)
        for vector, bound in zip(block, least, strict=True):
            agreeing = trim(vector, bound).mul_(sign).clamp_(min=0)  # their magnitudes
            merged += agreeing
            votes += agreeing > 0
        yield alpha * merged.mul_(sign) / votes.clamp_(min=1)
