"""DARE: drop and rescale."""

import torch
from torch import Tensor

from mergelib.core.store import digest
from mergelib.merging.layer import Layer
from mergelib.merging.registry import NUMBER, RATE, method


def keep_mask(shape: torch.Size, drop_rate: float, seed: int, name: str, position: int) -> Tensor:
    """Boolean mask of what survives: a pure function of its arguments, drawn on the CPU.

    The generator is seeded from a digest of (seed, tensor name, position of the model in the
    list), so neither the order of the tensors nor the device nor other draws change it.
    """
    generator = torch.Generator(device="cpu")
    generator.manual_seed(int(digest("dare", seed, name, position)[:15], 16))
    return torch.rand(shape, generator=generator, dtype=torch.float64) >= drop_rate


@method(
    "dare",
    parameters={"drop_rate": RATE, "alpha": NUMBER},
    corrected={"drop_rate": 0.9, "alpha": 1.0},
    random=True,
    reference="Yu et al. 2024, Language models are Super Mario, arXiv 2311.03099",
)
def dare(layer: Layer, drop_rate: float, alpha: float, seed: int) -> Tensor:
    """Δ = α (1/T) Σ maskt τt / (1 − p); each entry is dropped with probability p = drop_rate.

    Its mean over seeds is α times weight averaging: report the spread over seeds.
    """
    merged = torch.zeros_like(layer[0])
    for position, vector in enumerate(layer):
        mask = keep_mask(vector.shape, drop_rate, seed, layer.name, position).to(vector.device)
        merged += vector * mask
    return alpha * merged / (len(layer) * (1 - drop_rate))
