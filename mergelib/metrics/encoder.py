"""What data tell of one model: its mean activation and its gradients, once per model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from mergelib.core.errors import MergelibError
from mergelib.metrics.registry import check_edition

PAPER_BATCH = 32


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Hold a model in eval mode; it is left as it was."""
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)


def check_images(images: Tensor) -> None:
    """Raise MergelibError unless images are (N, 3, H, W), N > 0, floating point."""
    if images.ndim != 4 or not images.is_floating_point() or not len(images):
        raise MergelibError(
            f"images have shape {tuple(images.shape)} and type {images.dtype}: give at least one, "
            "(N, 3, H, W), normalized to floating point by `Backbone.normalize`"
        )


def mean_activation(
    visual: nn.Module,
    images: Tensor,
    batch_size: int | None = None,
    edition: str = "corrected",
) -> Tensor:
    """Output of the last transformer block, averaged over tokens and images: (width,) float64.

    h = 1/N Σ_n 1/L Σ_l block(x_n)_l, before the final norm and projection; `visual` is a
    vision transformer of open_clip or timm (block output (N, L, width)), `images` (N, 3, H, W) are
    normalized. Every image has the same weight. `edition="paper"`: every batch (of 32) has, however
    small the last one is, h = 1/B Σ_b 1/N_b Σ_{n in b} …, as the published code averages the batch
    axis for tokens. Raises MergelibError for an unknown edition, unusable images or a tower without
    transformer blocks.
    Source: published metrics, category activation.
    """
    check_edition(edition)
    check_images(images)
    transformer, blocks = _blocks(visual)
    tokens_first = not getattr(transformer, "batch_first", True)  # older open_clip: (L, N, width)
    device = next(visual.parameters()).device
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
        rows = output.transpose(0, 1) if tokens_first else output
        of_images = rows.double().mean(dim=1)
        seen.append((of_images.mean(dim=0) if edition == "paper" else of_images.sum(dim=0)).cpu())

    batches = images.split(batch_size or (PAPER_BATCH if edition == "paper" else 100))
    hook = blocks[-1].register_forward_hook(keep)
    try:
        with evaluating(visual), torch.no_grad():
            for batch in batches:
                visual(batch.to(device))
    finally:
        hook.remove()
    return torch.stack(seen).sum(dim=0) / (len(seen) if edition == "paper" else len(images))


def _blocks(visual: nn.Module) -> tuple[nn.Module, nn.ModuleList | nn.Sequential]:
    """A tower's transformer and its blocks: open_clip's, or timm's, which is the tower itself."""
    transformer = getattr(visual, "transformer", visual)
    blocks = getattr(transformer, "resblocks", getattr(transformer, "blocks", None))
    if not isinstance(blocks, nn.ModuleList | nn.Sequential) or not len(blocks):
        raise MergelibError(
            f"{type(visual).__name__} has no transformer.resblocks: give a vision transformer of "
            "open_clip (`model.visual`) or timm, or leave out the activation metrics"
        )
    return transformer, blocks


def pool_gradients(
    visual: nn.Module,
    images: Tensor,
    labels: Tensor,
    heads: Sequence[Tensor],
    task_index: Tensor,
    batch_size: int = 50,
) -> tuple[dict[str, Tensor], Tensor]:
    """Gradients of the cross-entropy at one model over the calibration pool of all tasks.

    loss_n = CE(normalize(visual(x_n)) · W_tᵀ, y_n), t = task_index[n], with W_t (C_t, embed_dim)
    the frozen zero-shot head of the image's own task, already scaled. Returns
    G = 1/N Σ_n ∂loss_n/∂θ by parameter name, and g_n = ∂loss_n/∂x_n (N, 3, H, W) with respect to
    the normalized pixels; one backward pass per batch yields both. Sums over batches run in
    float64; results have the parameters' type. The model runs in eval mode and is left as it was.
    Raises MergelibError if lengths, labels, task indices or a head do not fit.
    Source: published metrics, category gradient, with the real heads and one pool for all models
    in place of random heads and per-pair images.
    """
    check_pool(images, labels, heads, task_index)
    parameters = {name: p.detach().requires_grad_() for name, p in visual.named_parameters()}
    device = next(iter(parameters.values())).device
    heads = [head.to(device) for head in heads]
    totals = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}
    pixels: list[Tensor] = []
    with evaluating(visual):
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            x = images[part].to(device).detach().requires_grad_()
            features = torch.func.functional_call(visual, parameters, (x,))
            features = normalize(features, dim=-1)
            loss = _summed_loss(features, labels[part].to(device), heads, task_index[part])
            # The batch loss is a sum, so each image's pixels see the gradient of its own loss.
            wanted = [x, *parameters.values()]
            found = torch.autograd.grad(loss, wanted, allow_unused=True)
            pixels.append(found[0].cpu())
            for total, gradient in zip(totals.values(), found[1:], strict=True):
                if gradient is not None:
                    total += gradient
    mean = {}
    for name, parameter in parameters.items():  # popped, so that both precisions are never all held
        mean[name] = totals.pop(name).div_(len(images)).to(parameter.dtype).cpu()
    return mean, torch.cat(pixels)


@torch.no_grad()
def cross_accuracies(
    visual: nn.Module,
    images: Tensor,
    labels: Tensor,
    heads: Sequence[Tensor],
    task_index: Tensor,
    batch_size: int = 100,
) -> Tensor:
    """One encoder's top-1 accuracy under each task's head on that task's images: (T,) float64.

    Operands as in `pool_gradients`; NaN for a task without an image in the pool. The model runs in
    eval mode and is left as it was. Raises MergelibError if lengths, labels, task indices or a head
    do not fit.
    """
    check_pool(images, labels, heads, task_index)
    device = next(visual.parameters()).device
    with evaluating(visual):
        features = torch.cat([visual(batch.to(device)).cpu() for batch in images.split(batch_size)])
    shares = []
    for task, head in enumerate(heads):
        own = (task_index == task).cpu()
        guess = (features[own] @ head.to(features).T).argmax(dim=1)  # scale and norm change none
        shares.append((guess == labels.cpu()[own]).double().mean())
    return torch.stack(shares)


def _summed_loss(
    features: Tensor, labels: Tensor, heads: Sequence[Tensor], task_index: Tensor
) -> Tensor:
    loss = features.new_zeros(())
    for task in task_index.unique().tolist():
        if heads[task].shape[1] != features.shape[1]:
            raise MergelibError(
                f"head {task} has shape {tuple(heads[task].shape)} but the features have "
                f"{features.shape[1]} entries: give heads of the same backbone"
            )
        rows = (task_index == task).nonzero().squeeze(1).to(features.device)
        logits = features[rows] @ heads[task].to(features.dtype).T
        loss = loss + cross_entropy(logits, labels[rows], reduction="sum")
    return loss


def check_pool(images: Tensor, labels: Tensor, heads: Sequence[Tensor], task_index: Tensor) -> None:
    """Raise MergelibError unless images, labels, heads and task indices fit each other."""
    check_images(images)
    if not len(images) == len(labels) == len(task_index):
        raise MergelibError(
            f"the pool has {len(images)} images, {len(labels)} labels and {len(task_index)} task "
            "indices: give one label and one task index per image"
        )
    if task_index.min() < 0 or task_index.max() >= len(heads):
        raise MergelibError(
            f"task indices run from {int(task_index.min())} to {int(task_index.max())} but there "
            f"are {len(heads)} heads: give one head per task"
        )
    for task in task_index.unique().tolist():
        own = labels[task_index == task]
        if own.min() < 0 or own.max() >= len(heads[task]):
            raise MergelibError(
                f"labels of task {task} run from {int(own.min())} to {int(own.max())} but its head "
                f"has shape {tuple(heads[task].shape)}: labels must lie in 0 … C-1"
            )
