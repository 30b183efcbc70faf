"""A recipe of fine-tuning: its numbers, what they may be, and the learning rate of a step."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

OPTIMIZERS = {"adamw": "AdamW", "sgd": "SGD"}
SCHEDULES = ("cosine", "constant")
AUGMENTATIONS = ("", "crop")


@dataclass(frozen=True)
class Recipe:
    """The published recipe's shape: AdamW, cosine decay, gradient clipping, last weights kept.

    steps and warmup in optimizer steps; rule one of `RULES`, with its strength (none: the rule's
    own; 0: the control, without it); seed fixes the order of the batches, the crops and the rule's
    draws. momentum of SGD; a batch is computed in `accumulate` parts, and with `checkpointing`
    block by block again on the way back, both for less memory; augment "crop" as CLIP's
    fine-tuning does. Every `save_every` steps the state is kept, every `validate_every` the loss on
    validation images is noted; after `patience` such losses in a row that are not the lowest,
    training ends (0: never, for each).
    """

    steps: int = 100
    batch: int = 64
    learning_rate: float = 3e-4
    weight_decay: float = 0.1
    warmup: int = 0
    clip: float = 10.0
    rule: str = ""
    strength: float | None = None
    seed: int = 0
    optimizer: str = "adamw"
    momentum: float = 0.9
    schedule: str = "cosine"
    accumulate: int = 1
    augment: str = ""
    checkpointing: bool = False
    save_every: int = 0
    validate_every: int = 0
    patience: int = 0


def complaints(recipe: Recipe) -> dict[str, bool]:
    """What must hold of a recipe's values, by the complaint where it does not."""
    counts = (recipe.warmup, recipe.save_every, recipe.validate_every, recipe.patience)
    return {
        "finetune: steps must be 0 or more, batch at least 1, learning_rate above 0": (
            recipe.steps >= 0 and recipe.batch >= 1 and recipe.learning_rate > 0
        ),
        f"finetune.optimizer must be one of {tuple(OPTIMIZERS)}": recipe.optimizer in OPTIMIZERS,
        f"finetune.schedule must be one of {SCHEDULES}": recipe.schedule in SCHEDULES,
        f"finetune.augment must be one of {AUGMENTATIONS}": recipe.augment in AUGMENTATIONS,
        "finetune.momentum must be 0 or more, and less than 1": 0 <= recipe.momentum < 1,
        "finetune.accumulate must be between 1 and finetune.batch": (
            1 <= recipe.accumulate <= recipe.batch
        ),
        "finetune: warmup, save_every, validate_every and patience must be 0 or more": (
            min(counts) >= 0
        ),
        "finetune.patience counts validations: give finetune.validate_every": (
            not recipe.patience or recipe.validate_every > 0
        ),
    }


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then half a cosine over the remaining steps, or a constant."""
    return recipe.learning_rate * _share(step, recipe)


def _share(step: int, recipe: Recipe) -> float:
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    if recipe.schedule == "constant":
        return 1.0
    share = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def optimizer(trained: Mapping[str, Tensor], recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW (decoupled weight decay), or SGD with momentum (decay added to the gradient)."""
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(trained.values(), rate, recipe.momentum, weight_decay=decay)
    return torch.optim.AdamW(trained.values(), rate, weight_decay=decay)
