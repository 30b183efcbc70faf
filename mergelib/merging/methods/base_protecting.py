"""A weighted merge that protects what the base model knows least."""

from collections.abc import Sequence

from torch import Tensor

from mergelib.core.errors import MergelibError
from mergelib.merging.layer import Layer, elementwise
from mergelib.merging.registry import NUMBER, WEIGHTS_OR_NONE, method


@method(
    "base_protecting",
    parameters={"weights": WEIGHTS_OR_NONE, "alpha": NUMBER},
    corrected={"weights": None, "alpha": 1.0},
    reference="Rahamim et al. 2026, Will it Merge?, arXiv 2601.06672 (weights in our reading)",
)
@elementwise
def base_protecting(layer: Layer, weights: Sequence[float] | None, alpha: float) -> Tensor:
    """Δ = α Σ wt τt / Σ wt: models of tasks that the base knows least get the largest weights.

    `weights` are T numbers, as `mergelib.merging.knowledge` gives them from accuracies; without
    them all are equal, which is weight averaging. That the weight falls linearly with the base's
    share of the fine-tuned accuracy is our reading of the proposal, which leaves the form open.
    """
    if weights is None:
        return alpha * layer.mean()
    if len(weights) != len(layer):
        raise MergelibError(
            f"base_protecting: {len(weights)} weights for {len(layer)} models: give one a model"
        )
    total = layer[0] * weights[0]
    for position in range(1, len(layer)):
        total += weights[position] * layer[position]
    return alpha / sum(weights) * total
