"""A weighted merge that protects what the base model knows least."""

from collections.abc import Sequence

from torch import Tensor

from mergelib.core.errors import MergelibError
from mergelib.merging.layer import Layer
from mergelib.merging.registry import NUMBER, WEIGHTS_OR_NONE, method


def weights_of_knowledge(zero_shot: Sequence[float], fine_tuned: Sequence[float]) -> list[float]:
    """Weights wt ∝ max(0, 1 − zero_shott / fine_tunedt), summing to 1: what fine-tuning had to add.

    Accuracies of the base and of each fine-tuned model on its own task, from data that is not used
    for evaluation. Equal weights where fine-tuning added nothing to any task. Raises MergelibError
    for other lengths and accuracies that are no accuracies.
    """
    if not zero_shot or len(zero_shot) != len(fine_tuned):
        raise MergelibError(
            f"{len(zero_shot)} zero-shot and {len(fine_tuned)} fine-tuned accuracies: give one of "
            "each a model"
        )
    for before, after in zip(zero_shot, fine_tuned, strict=True):
        if not (0 <= before <= 1 and 0 < after <= 1):
            raise MergelibError(
                f"zero-shot accuracy {before} with fine-tuned accuracy {after}: give fractions, "
                "the latter above 0"
            )
    missing = [max(0.0, 1 - b / a) for b, a in zip(zero_shot, fine_tuned, strict=True)]
    total = sum(missing)
    return [w / total if total else 1 / len(missing) for w in missing]


@method(
    "base_protecting",
    parameters={"weights": WEIGHTS_OR_NONE, "alpha": NUMBER},
    defaults={"weights": None, "alpha": 1.0},
    reference="Rahamim et al. 2026, Will it Merge?, arXiv 2601.06672 (weights in our reading)",
)
def base_protecting(layer: Layer, weights: Sequence[float] | None, alpha: float) -> Tensor:
    """Δ = α Σ wt τt / Σ wt: models of tasks that the base knows least get the largest weights.

    `weights` are T numbers, as `weights_of_knowledge` gives them from accuracies; without them all
    are equal, which is weight averaging. That the weight falls linearly with the base's share of
    the fine-tuned accuracy is our reading of the proposal, which leaves the form open.
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
