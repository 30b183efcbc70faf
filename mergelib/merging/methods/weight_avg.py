"""Weight averaging."""

from torch import Tensor

from mergelib.merging.layer import Layer, elementwise
from mergelib.merging.registry import method


@method(
    "weight_avg",
    reference="Wortsman et al. 2022, Model soups, arXiv 2203.05482 (uniform soup)",
)
@elementwise
def weight_avg(layer: Layer) -> Tensor:
    """Δ = (1/T) Σ τt, so that θ0 + Δ is the mean of the models' weights."""
    return layer.mean()
