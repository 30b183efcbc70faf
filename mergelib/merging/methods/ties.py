"""TIES: trim, elect sign, disjoint mean."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mergelib.linalg.select import kth_magnitude
from mergelib.merging.layer import Layer
from mergelib.merging.registry import FRACTION, NUMBER, method


def threshold(layer: Layer, position: int, density: float) -> float:
    """The m-th largest magnitude, m = max(1, ⌊density·numel⌋): what reaches it is kept."""
    size = math.prod(layer.shape)
    if size == 0:
        return 0.0
    place = size - max(1, math.floor(density * size))
    return kth_magnitude(lambda: (block[position] for block in layer.blocks()), size, place)


def trim(vector: Tensor, least: float) -> Tensor:
    """The vector without the entries whose magnitude is below `least`."""
    return vector.masked_fill(vector.abs() < least, 0.0)


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
    least = [threshold(layer, position, density) for position in range(len(layer))]
    signs = [elected(block, least) for block in layer.blocks()]  # a byte an entry
    majority = 1 if sum(int(sign.sum()) for sign in signs) >= 0 else -1
    for block, sign in zip(layer.blocks(), signs, strict=True):
        sign = torch.where(sign == 0, majority, sign)
        merged, votes = torch.zeros_like(block[0]), torch.zeros_like(block[0])
        for vector, bound in zip(block, least, strict=True):
            trimmed = trim(vector, bound)
            agrees = trimmed.sign() == sign  # never true for a zero entry
            merged += trimmed * agrees
            votes += agrees
        yield alpha * merged / votes.clamp(min=1)
