"""What the metrics need of one model."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mergelib.core.store import load_tensors, save_tensors
from mergelib.metrics.encoder import cross_accuracies, mean_activation, pool_gradients
from mergelib.metrics.published_gradients import calibration
from mergelib.metrics.weights import summarize
from mergelib.pipeline.keys import device, needs, path
from mergelib.pipeline.loaded import encoder, one_thread
from mergelib.pipeline.params import Run
from mergelib.pipeline.task_data import head, ready, split, stored_scores

Pool = tuple[Tensor, Tensor, Tensor]


def make(store: Path, run: Run, task: str) -> Path:
    """Store what the metrics need of one model: factors, activation, gradients, accuracies.

    In the paper edition the gradients are those of pairs (`mergelib.pipeline.units.gradients`).
    """
    file = path(store, run, "summary", task)
    if file.is_file():
        return file
    with one_thread():
        tuned = path(store, run, "tuned", task)
        visual = encoder(run, load_tensors(tuned), tuned)
        held = summarize(path(store, run, "base"), tuned, device(run))
        images, labels, index = pool(store, run)
        held["activation"] = mean_activation(visual, images, None, run.edition)
        heads = [head(store, run, name) for name in run.tasks]
        if run.edition == "corrected":
            of_encoder, pixels = pool_gradients(visual, images, labels, heads, index)
            held |= {f"encoder_gradient/{name}": value for name, value in of_encoder.items()}
            held["input_gradient"] = pixels
        if needs(run, "cross_task"):
            whole = calibration_pool(store, run, run.sizes.calibration)
            held["cross_accuracy"] = cross_accuracies(visual, whole[0], whole[1], heads, whole[2])
        scores = stored_scores(store, run, task)["calibration"]
        for name in ("zero_shot", "fine_tuned"):
            held[name] = torch.tensor(scores[name], dtype=torch.float64)
        save_tensors(file, held)
    return file


def pool(store: Path, run: Run) -> Pool:
    """The pool that all models share: images, labels, and the index of each one's task.

    `run.pool_per_task` images of each task: the first of its calibration split, or as published,
    drawn from the test split.
    """
    if run.edition == "corrected":
        return calibration_pool(store, run, run.pool_per_task)
    sizes = [len(split(store, run, task, "test").labels) for task in run.tasks]
    chosen = calibration(sizes, run.pool_per_task)
    splits = [ready(store, run, task, "test") for task in run.tasks]
    return _pooled([(x[i], y[i]) for (x, y), i in zip(splits, chosen, strict=True)])


def calibration_pool(store: Path, run: Run, per_task: int) -> Pool:
    """The first images of each task's calibration split."""
    splits = [ready(store, run, task, "calibration") for task in run.tasks]
    return _pooled([(images[:per_task], labels[:per_task]) for images, labels in splits])


def _pooled(parts: Sequence[tuple[Tensor, Tensor]]) -> Pool:
    index = [torch.full((len(labels),), i) for i, (_, labels) in enumerate(parts)]
    images, labels = zip(*parts, strict=True)
    return torch.cat(images), torch.cat(labels), torch.cat(index)
