"""The units of work: each makes one artifact, a pure function of the store, the run and names."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from mergelib.core.errors import MergelibError
from mergelib.core.store import load_tensors, read_json, save_tensors, write_json
from mergelib.merging.cache import keep_factors
from mergelib.merging.engine import merge
from mergelib.merging.methods.base_protecting import weights_of_knowledge
from mergelib.merging.registry import METHODS
from mergelib.metrics.encoder import cross_accuracies, mean_activation, pool_gradients
from mergelib.metrics.published_gradients import calibration, heads_of_pair, of_model, of_pair
from mergelib.metrics.weights import summarize
from mergelib.models.finetune import finetune
from mergelib.pipeline.keys import device, method_params, needs, path, places
from mergelib.pipeline.loaded import (
    _encoder,
    _fast,
    checkpoint,
    head,
    loaded,
    one_thread,
    ready,
    score,
    scratch,
    split,
)
from mergelib.pipeline.params import Run
from mergelib.tasks import SPLITS, TASKS, build


def make_base(store: Path, run: Run) -> Path:
    """Store the pretrained image encoder that task vectors are taken from."""
    file = path(store, run, "base")
    if not file.is_file():
        save_tensors(file, loaded(run).visual_state())
    return file


def make_data(store: Path, run: Run, task: str) -> Path:
    """Store a task's three splits."""
    file = path(store, run, "data", task)
    if not file.is_file():
        built = build(task, asdict(run.sizes), run.seed)
        held = {}
        for name in SPLITS:
            part = getattr(built, name)
            held |= {f"{name}/images": part.images, f"{name}/labels": part.labels}
        save_tensors(file, held)
    return file


def make_tuned(store: Path, run: Run, task: str) -> Path:
    """Fine-tune on a task; store the checkpoint and, beside it, accuracies before and after."""
    file = path(store, run, "tuned", task)
    if file.is_file() and file.with_suffix(".json").is_file():
        return file
    with one_thread():
        backbone, words = loaded(run), head(run, task)
        images, labels = ready(store, run, task, "train")
        try:
            state = finetune(
                backbone.model.visual, images, labels, words, run.finetune, run.bfloat16
            )
        except MergelibError as error:
            raise MergelibError(f"task {task!r}: {error}") from None
        after = _encoder(run, state, file)
        scores = {}
        for part in ("calibration", "test"):
            scores[part] = {
                "zero_shot": score(store, run, backbone.model.visual, task, part),
                "fine_tuned": score(store, run, after, task, part),
                "n": len(split(store, run, task, part).labels),
            }
        write_json(file.with_suffix(".json"), scores | {"n_train": len(labels)})
        save_tensors(file, state)
    return file


def make_summary(store: Path, run: Run, task: str) -> Path:
    """Store what the metrics need of one model: factors, activation, gradients, accuracies.

    In the paper edition the gradients are those of pairs (`make_gradients`).
    """
    file = path(store, run, "summary", task)
    if file.is_file():
        return file
    with one_thread():
        tuned = path(store, run, "tuned", task)
        state = load_tensors(tuned)
        visual = _encoder(run, state, tuned)
        held = summarize(path(store, run, "base"), tuned, device(run))
        images, labels, index = pool(store, run)
        held["activation"] = mean_activation(visual, images, mode=run.mode)
        heads = [head(run, name) for name in run.tasks]
        if run.mode == "corrected":
            encoder, pixels = pool_gradients(visual, images, labels, heads, index)
            held |= {f"encoder_gradient/{name}": value for name, value in encoder.items()}
            held["input_gradient"] = pixels
        if needs(run, "cross_task"):
            whole = calibration_pool(store, run, run.sizes.calibration)
            held["cross_accuracy"] = cross_accuracies(visual, whole[0], whole[1], heads, whole[2])
        scores = _scores(store, run, task)["calibration"]
        for name in ("zero_shot", "fine_tuned"):
            held[name] = torch.tensor(scores[name], dtype=torch.float64)
        save_tensors(file, held)
    return file


Pool = tuple[Tensor, Tensor, Tensor]


def pool(store: Path, run: Run) -> Pool:
    """The pool that all models share: images, labels, and the index of each's task.

    `run.pool_per_task` images of each task: the first of its calibration split, or as published,
    drawn from the test split.
    """
    if run.mode == "corrected":
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


def make_gradients(store: Path, run: Run, first: str, second: str) -> Path:
    """Store a pair's gradient metrics as published: random heads, test images of its own."""
    file = path(store, run, "gradients", first, second)
    if file.is_file():
        return file
    with one_thread():
        data = [ready(store, run, task, "test") for task in (first, second)]
        chosen = calibration([len(labels) for _, labels in data], run.pool_per_task)
        classes = tuple(len(TASKS[task].class_names) for task in (first, second))
        sides = []
        for side, task in enumerate((first, second)):
            tuned = path(store, run, "tuned", task)
            visual = _encoder(run, load_tensors(tuned), tuned)
            images, labels = (part[chosen[side]] for part in data[side])
            heads = heads_of_pair(run.seed, places(run, first, second), classes, visual.output_dim)
            sides.append(of_model(visual, images, labels, heads[side]))
        write_json(file, of_pair(*sides))
    return file


def make_factors(store: Path, run: Run, task: str) -> Path:
    """Store the factors that merges of one model share."""
    file = path(store, run, "factors", task)
    if not file.is_file():
        with one_thread():
            keep_factors(file, path(store, run, "base"), path(store, run, "tuned", task))
    return file


def _by_pairs(run: Run) -> bool:
    """Whether the gradient metrics are those of pairs, as published."""
    return run.mode == "paper" and not run.is_study


def factored(run: Run) -> bool:
    return any(METHODS[method].factored for method in run.methods)


def _weights(store: Path, run: Run, tasks: Sequence[str]) -> list[float]:
    """Weights for a merge by what the base knows of the tasks, seen on their calibration splits."""
    scores = [_scores(store, run, task)["calibration"] for task in tasks]
    before, after = ([score[k] for score in scores] for k in ("zero_shot", "fine_tuned"))
    return weights_of_knowledge(before, after)


def make_merged(store: Path, run: Run, first: str, second: str) -> list[Path]:
    """Merge a pair by every method; store the merged model's accuracy on both test splits.

    A method that takes weights and was given none gets those of `weights_of_knowledge`.
    """
    files = []
    for method in run.methods:
        file = path(store, run, "merged", first, second, method)
        files.append(file)
        if file.is_file():
            continue
        with one_thread():
            tuned = [path(store, run, "tuned", task) for task in (first, second)]
            base = path(store, run, "base")
            params = method_params(run, method)
            if "weights" in params and params["weights"] is None:
                params["weights"] = _weights(store, run, (first, second))
            kept = None
            if METHODS[method].factored:
                kept = [path(store, run, "factors", task) for task in (first, second)]
            # one encoder, whose weights every merge writes over
            visual = scratch(run.backbone, run.weights, device(run)).eval()
            origin, *models = (checkpoint(run, each) for each in (base, *tuned))
            merge(origin, models, method, run.seed, kept, visual.state_dict(), **params)
            fast = _fast(run, visual)
            sides = {"acc_a": first, "acc_b": second}
            found = {s: score(store, run, fast, task, "test") for s, task in sides.items()}
            write_json(file, found)
    return files


def _scores(store: Path, run: Run, task: str) -> dict:
    return read_json(path(store, run, "tuned", task).with_suffix(".json"))
