"""Weights of a merge by how much fine-tuning added to what the base model knew."""

from collections.abc import Sequence

from mergelib.core.errors import MergelibError


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
