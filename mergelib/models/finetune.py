"""Fine-tuning of an image encoder on one task under its frozen zero-shot head."""

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mergelib.core.errors import MergelibError
from mergelib.models.batches import Batches
from mergelib.models.heads import logits
from mergelib.models.progress import Progress
from mergelib.models.recipe import Recipe as Recipe
from mergelib.models.recipe import learning_rate, optimizer
from mergelib.models.rules import PLAIN, RULES, Rule, Step, Tensors, Trained, double_backward

RULE_DRAWS = 1 << 32  # added to the seed: a rule's draws are not those of the batches
CROP_DRAWS = 1 << 32  # seeds of one training's crops, a step each
Examples = tuple[Tensor | Batches, Tensor]  # images as of `finetune`; labels int64 (N,)


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
    Batches are drawn epoch by epoch from a CPU generator, so the order depends on the seed alone.
    Raises MergelibError for an unknown rule and if the loss stops being finite.
    """
    return train(visual, (images, labels), head, recipe, bfloat16)[0]


def train(
    visual: nn.Module,
    examples: Examples,
    head: Tensor,
    recipe: Recipe,
    bfloat16: bool = False,
    validation: Examples | None = None,
    kept: Path | None = None,
) -> tuple[dict[str, Tensor], list[tuple[float, ...]]]:
    """`finetune`, with its log: a row of `progress.LOG` for each step.

    Every `recipe.save_every` steps what is needed to go on is written to the file `kept`; where it
    is there the training goes on from it, to the same bits. Raises MergelibError as `finetune`
    does, for a rule that goes with no checkpointing or early end, and for a file that is of
    another training.
    """
    row = RULES[recipe.rule] if recipe.rule and recipe.strength != 0 else PLAIN
    strength = row.strength if recipe.strength is None else recipe.strength
    averaged = row.function(recipe.steps, strength) if row.kind == "average" else 0
    model = copy.deepcopy(visual).train().requires_grad_(False)
    _check(row, recipe, model)
    base = dict(model.named_parameters())
    draws = torch.Generator().manual_seed(RULE_DRAWS + recipe.seed)
    trained, weights = _trained(row, base, strength, draws)
    setting = Setting(model, row, head, base, strength, recipe, bfloat16)
    buffers = dict(model.named_buffers())
    now = Progress(trained, buffers, optimizer(trained, recipe), draws)
    if kept is not None and kept.is_file():
        now.restore(kept)
    ended = 0 < recipe.patience <= now.stale()
    for chosen in itertools.islice(_batches(len(examples[1]), recipe), now.done, None):
        if ended:
            break
        rate = learning_rate(now.done, recipe)
        for group in now.optimizer.param_groups:
            group["lr"] = rate
        loss = _backward(setting, examples, chosen, now, weights)
        nn.utils.clip_grad_norm_(trained.values(), recipe.clip)
        now.optimizer.step()
        step = now.done + 1
        if recipe.steps - step < averaged:
            found = weights(trained).items()
            now.total = {n: now.total.get(n, 0) + w.detach().double() / averaged for n, w in found}
        judged = (float("nan"), float("nan"))
        if validation and recipe.validate_every and step % recipe.validate_every == 0:
            judged = _judged(setting, validation, weights(trained))
        now.log.append((step, rate, loss, *judged))
        ended = 0 < recipe.patience <= now.stale()
        if kept is not None and recipe.save_every and step % recipe.save_every == 0:
            now.save(kept)
    state = {**model.state_dict(), **(now.total or weights(trained))}
    return {n: v.detach().float().cpu().clone() for n, v in state.items()}, now.log


@dataclass(frozen=True)
class Setting:
    """What stays the same in all steps of a training."""

    model: nn.Module
    row: Rule
    head: Tensor
    base: Tensors
    strength: float
    recipe: Recipe
    bfloat16: bool


def _check(row: Rule, recipe: Recipe, model: nn.Module) -> None:
    """Put checkpointing into the model; refuse what does not go together."""
    if recipe.patience and row.kind == "average":
        raise MergelibError(
            f"rule {row.name} averages the last steps, which an early end never comes to: leave "
            "out finetune.patience"
        )
    if recipe.checkpointing and row.double_backward:
        raise MergelibError(
            f"rule {row.name} differentiates twice, which blocks computed again cannot: leave out "
            "finetune.checkpointing"
        )
    if recipe.checkpointing:
        from mergelib.models.recompute import recompute_blocks

        recompute_blocks(model)


def _backward(
    setting: Setting,
    examples: Examples,
    chosen: Tensor,
    now: Progress,
    weights: Callable[[Tensors], Tensors],
) -> float:
    """The gradient of a batch's objective, in the recipe's number of parts; its loss."""
    now.optimizer.zero_grad()
    pixels, truth = (part[chosen.to(part.device)] for part in examples)
    if setting.recipe.augment:
        from mergelib.models.crops import cropped  # of torchvision, which comes with backbones

        pixels = cropped(pixels, CROP_DRAWS * (1 + setting.recipe.seed) + now.done)
    total, count = 0.0, min(setting.recipe.accumulate, len(truth))
    for images, labels in zip(pixels.tensor_split(count), truth.tensor_split(count), strict=True):
        features = partial(_features, setting.model, images, setting.bfloat16)
        loss_of = partial(_loss, setting.head, labels)
        step = Step(
            features, loss_of, weights(now.trained), setting.base, setting.strength, now.draws
        )
        with double_backward() if setting.row.double_backward else contextlib.nullcontext():
            loss = setting.row.function(step) if setting.row.kind == "objective" else step.loss()
        if not torch.isfinite(loss):
            raise MergelibError("fine-tuning diverged (loss not finite): lower the learning rate")
        share = len(labels) / len(truth)  # 1 where there is one part
        (loss * share).backward()
        total += share * float(loss.detach())
    return total


@torch.no_grad()
def _judged(setting: Setting, validation: Examples, weights: Tensors) -> tuple[float, float]:
    """Loss and accuracy on validation images."""
    images, labels = validation
    setting.model.eval()
    parts = [
        logits(_features(setting.model, part, setting.bfloat16, weights), setting.head)
        for part in images.split(setting.recipe.batch)
    ]
    setting.model.train()
    scores = torch.cat(parts)
    right = (scores.argmax(1) == labels).float().mean()
    return float(cross_entropy(scores, labels)), float(right)


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
