"""Fine-tuning of an image encoder on one task under its frozen zero-shot head."""

import contextlib
import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mergelib.core.errors import MergelibError
from mergelib.models.batches import Batches
from mergelib.models.heads import logits
from mergelib.models.rules import PLAIN, RULES, Rule, Step, Tensors, Trained, double_backward

RULE_DRAWS = 1 << 32  # added to the seed: a rule's draws are not those of the batches


@dataclass(frozen=True)
class Recipe:
    """The published recipe's shape: AdamW, cosine decay, gradient clipping, last weights kept.

    steps and warmup in optimizer steps; rule one of `RULES`, with its strength (none: the rule's
    own; 0: the control, without it); seed fixes the order of the batches and the rule's draws.
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


def finetune(
    visual: nn.Module,
    images: Tensor | Batches,
    labels: Tensor,
    head: Tensor,
    recipe: Recipe,
    bfloat16: bool = False,
) -> dict[str, Tensor]:
    """Train a copy of `visual` on one task; return its state dict, float32 on the CPU.

    Minimizes mean cross-entropy of `logits(visual(images), head)`, or what the recipe's rule makes
    of it. images float32 (N, 3, H, W), normalized; labels int64 (N,); head (C, d), frozen.
    No augmentation; batches are drawn epoch by epoch from a CPU generator, so the order depends on
    the seed alone. Raises MergelibError for an unknown rule and if the loss stops being finite.
    """
    row = RULES[recipe.rule] if recipe.rule and recipe.strength != 0 else PLAIN
    strength = row.strength if recipe.strength is None else recipe.strength
    averaged = row.function(recipe.steps, strength) if row.kind == "average" else 0
    model = copy.deepcopy(visual).train().requires_grad_(False)
    base = dict(model.named_parameters())
    draws = torch.Generator().manual_seed(RULE_DRAWS + recipe.seed)
    trained, weights = _trained(row, base, strength, draws)
    optimizer = torch.optim.AdamW(
        trained.values(), recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _decay(step, recipe))
    total: dict[str, Tensor] = {}
    for done, chosen in enumerate(_batches(len(labels), recipe), start=1):
        pick = chosen.to(images.device)
        features = partial(_features, model, images[pick], bfloat16)
        loss_of = partial(_loss, head, labels[pick])
        step = Step(features, loss_of, weights(trained), base, strength, draws)
        with double_backward() if row.double_backward else contextlib.nullcontext():
            loss = row.function(step) if row.kind == "objective" else step.loss()
        optimizer.zero_grad()
        loss.backward()
        if not torch.isfinite(loss):
            raise MergelibError("fine-tuning diverged (loss not finite): lower the learning rate")
        nn.utils.clip_grad_norm_(trained.values(), recipe.clip)
        optimizer.step()
        schedule.step()
        if recipe.steps - done < averaged:
            now = weights(trained).items()
            total = {n: total.get(n, 0) + w.detach().double() / averaged for n, w in now}
    state = {**model.state_dict(), **(total or weights(trained))}
    return {n: v.detach().float().cpu().clone() for n, v in state.items()}


def _trained(row: Rule, base: Tensors, strength: float, draws: torch.Generator) -> Trained:
    """What is trained, and the encoder's weights of it: the weights themselves, or a rule's."""
    if row.kind == "weights":
        return row.function(base, strength, draws)
    return {n: p.detach().clone().requires_grad_() for n, p in base.items()}, dict


def _features(model: nn.Module, images: Tensor, bfloat16: bool, weights: Tensors) -> Tensor:
    """Features of a batch under any weights, float32."""
    with torch.autocast(images.device.type, torch.bfloat16, bfloat16):
        return torch.func.functional_call(model, dict(weights), (images,)).float()


def _loss(head: Tensor, labels: Tensor, features: Tensor) -> Tensor:
    """Mean cross-entropy under the head."""
    return cross_entropy(logits(features, head), labels)


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
