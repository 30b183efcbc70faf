"""Fine-tuning of an image encoder on one task under its frozen zero-shot head."""

import contextlib
import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mergelib.core.errors import MergelibError
from mergelib.models.heads import logits
from mergelib.models.regularizers import PENALTIES, double_backward


@dataclass(frozen=True)
class Recipe:
    """The published recipe's shape: AdamW, cosine decay, gradient clipping, last weights kept.

    steps and warmup in optimizer steps; strength multiplies the regularizer of that name; seed
    fixes the order of the batches.
    """

    steps: int = 100
    batch: int = 64
    learning_rate: float = 3e-4
    weight_decay: float = 0.1
    warmup: int = 0
    clip: float = 10.0
    regularizer: str = ""
    strength: float = 0.0
    seed: int = 0


def finetune(
    visual: nn.Module,
    images: Tensor,
    labels: Tensor,
    head: Tensor,
    recipe: Recipe,
    bfloat16: bool = False,
) -> dict[str, Tensor]:
    """Train a copy of `visual` on one task; return its state dict, float32 on the CPU.

    Minimizes mean cross-entropy of `logits(visual(images), head)` plus strength times the
    regularizer. images float32 (N, 3, H, W), normalized; labels int64 (N,); head (C, d), frozen.
    A strength of 0 is the control of a study: the same code without the penalty.
    No augmentation; batches are drawn epoch by epoch from a CPU generator, so the order depends on
    the seed alone. Raises MergelibError if the loss stops being finite.
    """
    model = copy.deepcopy(visual).train()
    parameters = {n: p.requires_grad_() for n, p in model.named_parameters()}
    base = {name: p.detach().clone() for name, p in parameters.items()}
    penalty = PENALTIES[recipe.regularizer] if recipe.regularizer else None
    twice = penalty is not None and penalty.double_backward
    optimizer = torch.optim.AdamW(
        parameters.values(), recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _decay(step, recipe))
    device = images.device.type
    for chosen in _batches(len(labels), recipe):
        pick = chosen.to(images.device)
        with torch.autocast(device, torch.bfloat16, bfloat16):
            with double_backward() if twice else contextlib.nullcontext():
                features = model(images[pick])
            loss = cross_entropy(logits(features.float(), head), labels[pick])
        if penalty is not None and recipe.strength:
            loss = loss + recipe.strength * penalty.function(loss, parameters, base)
        optimizer.zero_grad()
        loss.backward()
        if not torch.isfinite(loss):
            raise MergelibError("fine-tuning diverged (loss not finite): lower the learning rate")
        nn.utils.clip_grad_norm_(parameters.values(), recipe.clip)
        optimizer.step()
        schedule.step()
    return {n: v.detach().float().cpu().clone() for n, v in model.state_dict().items()}


def _decay(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then half a cosine over the remaining steps."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    share = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def _batches(n: int, recipe: Recipe) -> Iterator[Tensor]:
    """Index batches, epoch by epoch without repetition inside an epoch."""
    generator = torch.Generator().manual_seed(recipe.seed)
    size = min(recipe.batch, n)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(recipe.steps):
        if len(order) < size:
            order = torch.cat([order, torch.randperm(n, generator=generator)])
        chosen, order = order[:size], order[size:]
        yield chosen
