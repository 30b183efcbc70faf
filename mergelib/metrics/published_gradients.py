"""The gradient metrics as published: per pair, random heads, few test images of the own task each.

For every pair and every one of the six metrics the published code draws both heads anew, so that
the cosine and the dot product of one pair are not of the same gradients and disagree in sign about
half the time. `corrected` (`mergelib.metrics.encoder.pool_gradients`) uses the tasks' own heads and
images that all models share. Its generator was the global one, in a state that nobody knows; here
each head follows from a stated seed, the pair and the metric, so it agrees in distribution only.
"""

import itertools
import random
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from mergelib.checkpoints import task_vectors
from mergelib.core.errors import MergelibError
from mergelib.metrics.encoder import check_images, evaluating

CALIBRATION_SEED = 42
PER_TASK = 10
BATCH = 8
OF_GRAM = {
    "cosine_similarity": task_vectors.cosine,
    "l2_distance": task_vectors.distance,
    "dot_product": lambda gram: gram,
}
COLUMNS = list(itertools.product(("encoder", "input"), OF_GRAM))


def calibration(sizes: Sequence[int], n: int = PER_TASK) -> list[list[int]]:
    """Indices of the n images drawn from each test split of `sizes`, ascending: T lists.

    One stream of Python's `random`, seeded with 42, serves the splits in order. The pool of the
    activation metrics is that of all tasks; a pair's images are those of its two sizes, so that the
    second task's depend on the first one's size.
    Raises MergelibError for a split of fewer than n images.
    """
    stream = random.Random(CALIBRATION_SEED)
    for size in sizes:
        if size < n:
            raise MergelibError(f"a test split has {size} images, fewer than {n}: lower n")
    return [sorted(stream.sample(range(size), n)) for size in sizes]


def random_head(classes: int, width: int, generator: torch.Generator) -> Tensor:
    """A new linear layer's weight (C, d): entries uniform in ±1/√d; its bias is 0."""
    return torch.empty(classes, width).uniform_(-(width**-0.5), width**-0.5, generator=generator)


def head_pair(
    seed: int, pair: Sequence[int], metric: int, classes: Sequence[int], width: int
) -> list[Tensor]:
    """Both heads of a pair (i, j) for metric number 0 … 5, drawn one after the other.

    The generator's seed is the first word of numpy's SeedSequence of (seed, i, j, metric).
    """
    word = np.random.SeedSequence([seed, *pair, metric]).generate_state(1)[0]
    generator = torch.Generator().manual_seed(int(word))
    return [random_head(count, width, generator) for count in classes]


def gradients(
    visual: nn.Module, images: Tensor, labels: Tensor, head: Tensor, of: str
) -> list[Tensor]:
    """The published gradient of one model: `of` its "encoder", by parameter, or the "input".

    With L_b the mean cross-entropy of normalize(visual(x)) Wᵀ over batch b of up to 8 images:
    G = (Σ_b ∂L_b/∂θ) / N, a mean of the images divided by the batch size once more, and
    g = the images' ∂L_b/∂x (N, 3, H, W), so those of a smaller last batch weigh more.
    """
    check_images(images)
    parameters = {name: p.detach().requires_grad_() for name, p in visual.named_parameters()}
    device = next(iter(parameters.values())).device
    total = [torch.zeros_like(p) for p in parameters.values()] if of == "encoder" else []
    pixels = []
    with evaluating(visual):
        for batch, truth in zip(images.split(BATCH), labels.split(BATCH), strict=True):
            x = batch.to(device).detach().requires_grad_()
            features = normalize(torch.func.functional_call(visual, parameters, (x,)), dim=-1)
            logits = features @ head.to(features).T
            loss = cross_entropy(logits, truth.to(device))
            if of == "input":
                pixels.append(torch.autograd.grad(loss, x)[0])
                continue
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for sum_, gradient in zip(total, found, strict=True):
                if gradient is not None:
                    sum_ += gradient
    return [part / len(images) for part in total] if of == "encoder" else [torch.cat(pixels)]


def heads_of_pair(
    seed: int, pair: Sequence[int], classes: Sequence[int], width: int
) -> list[list[Tensor]]:
    """The heads of both models of a pair (i, j), six each, one a metric."""
    drawn = [head_pair(seed, pair, k, classes, width) for k in range(len(COLUMNS))]
    return [list(heads) for heads in zip(*drawn, strict=True)]


def of_model(
    visual: nn.Module, images: Tensor, labels: Tensor, heads: Sequence[Tensor]
) -> list[list[Tensor]]:
    """The gradients that one model of a pair gives for the six metrics, each by its own head."""
    return [
        gradients(visual, images, labels, head, of)
        for head, (of, _) in zip(heads, COLUMNS, strict=True)
    ]


def of_pair(first: list[list[Tensor]], second: list[list[Tensor]]) -> dict[str, float]:
    """The six metrics of two models from their gradients."""
    found = {}
    for (of, kind), a, b in zip(COLUMNS, first, second, strict=True):
        gram = sum(task_vectors.gram(both) for both in zip(a, b, strict=True))
        found[f"{of}_gradient_{kind}"] = float(OF_GRAM[kind](gram)[0, 1])
    return found
