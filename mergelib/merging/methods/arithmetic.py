"""Task arithmetic."""

from torch import Tensor

from mergelib.merging.layer import Layer, elementwise
from mergelib.merging.registry import NUMBER, method


@method(
    "arithmetic",
    parameters={"alpha": NUMBER},
    corrected={"alpha": 0.3},
    # Its authors tune it on validation data; without any, 0.4 is usual (Yadav et al. 2023).
    original={"alpha": 0.4},
    reference="Ilharco et al. 2023, Editing models with task arithmetic, arXiv 2212.04089",
)
@elementwise
def arithmetic(layer: Layer, alpha: float) -> Tensor:
    """Δ = α Σ τt."""
    return alpha * layer.sum()
