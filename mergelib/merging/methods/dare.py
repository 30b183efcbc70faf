"""DARE: drop and rescale."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mergelib.core.store import digest
from mergelib.merging.layer import Layer
from mergelib.merging.registry import NUMBER, RATE, method


def draws(seed: int, name: str, position: int) -> torch.Generator:
    """Where the draws of one tensor of one model come from, on the CPU.

    The generator is seeded from a digest of (seed, tensor name, position of the model in the
    list), so neither the order of the tensors nor the device nor other draws change them.
    """
    generator = torch.Generator(device="cpu")
    return generator.manual_seed(int(digest("dare", seed, name, position)[:15], 16))


def keep_mask(shape: Sequence[int], drop_rate: float, generator: torch.Generator) -> Tensor:
    """Boolean mask of what survives, from the next draws: those of blocks are those of a whole."""
    return torch.rand(shape, generator=generator, dtype=torch.float64) >= drop_rate


@method(
    "dare",
    parameters={"drop_rate": RATE, "alpha": NUMBER},
    corrected={"drop_rate": 0.9, "alpha": 1.0},
    random=True,
    reference="Yu et al. 2024, Language models are Super Mario, arXiv 2311.03099",
)
def dare(layer: Layer, drop_rate: float, alpha: float, seed: int) -> Iterator[tuple[Layer, Tensor]]:
    """Δ = α (1/T) Σ maskt τt / (1 − p); each entry is dropped with probability p = drop_rate.

    Its mean over seeds is α times weight averaging: report the spread over seeds.
    """
    generators = [draws(seed, layer.name, position) for position in range(len(layer))]
    for block in layer.blocks():
        merged = torch.zeros_like(block[0])
        for vector, generator in zip(block, generators, strict=True):
            merged += vector * keep_mask(block.shape, drop_rate, generator).to(vector.device)
        yield block, alpha * merged / (len(layer) * (1 - drop_rate))
