"""What a run would take, found without running it: units, images, disk, time, what is missing."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from mergelib.core.errors import MergelibError
from mergelib.merging.engine import merge
from mergelib.merging.registry import METHODS
from mergelib.models.backbones import GLYPH_VIT, Backbone, load
from mergelib.pipeline.keys import device, method_params, pixels
from mergelib.pipeline.loaded import one_thread
from mergelib.pipeline.params import Run
from mergelib.pipeline.run import plan, workers
from mergelib.tasks.given import dealt, opened
from mergelib.tasks.registry import SPLITS

BATCH = 8  # images that a speed is measured with
BLOCK = ".0."  # in the names of the first block's tensors


def estimate(run: Run, jobs: int = 0) -> Iterator[str]:
    """Lines for a person, the missing last; nothing is fetched or written.

    Sizes are upper bounds for tasks that are not there or not given. Times are those of this
    machine, of one batch and of merges of one matrix, under random weights; reading images is not
    in them.
    """
    jobs = jobs or workers(run)
    missing, counts = [], {}
    for task in run.tasks:
        try:
            counts[task] = images(run, task)
        except MergelibError as error:
            missing.append(str(error))
            counts[task] = asdict(run.sizes) | run.given[task].sizes
    on = f"{run.backbone} at {pixels(run)} px, {device(run)}, {jobs} at a time"
    yield f"{run.name}: {len(run.tasks)} tasks, {len(run.methods)} methods; {on}"
    units = [f"{len(work)} {label}" for label, _, work in plan(run) if work]
    yield f"units: {', '.join(units)}"
    totals = [f"{sum(n[s] for n in counts.values()):,} {s}" for s in SPLITS]
    yield f"images: {', '.join(totals)}" + (", at most: some are missing" if missing else "")
    try:
        backbone = blank(run)
    except MergelibError as error:
        missing.append(str(error))
    else:
        yield f"disk: {_told(disk(run, counts, backbone), 2**30, 'GiB')}"
        taken = {what: seconds / jobs for what, seconds in times(run, counts, backbone).items()}
        yield f"time: {_told(taken, 3600, 'h')}, on this machine with nothing beside it"
    if run.backbone != GLYPH_VIT and not Path(run.weights).exists():
        missing.append(f"weights {run.weights} of {run.backbone} are no file: the run fetches them")
    yield from (f"missing: {each}" for each in missing)
    if not missing:
        yield "nothing is missing"


def images(run: Run, task: str) -> dict[str, int]:
    """Images per split; of a task that is not given, those that are asked for.

    Raises MergelibError where a task's images are not there; nothing is fetched.
    """
    if task not in run.given:
        return asdict(run.sizes)
    given = run.given[task]
    still = replace(given, place=replace(given.place, download=False))
    opened(still)
    return {s: len(chosen) for s, (_, chosen) in dealt(still, asdict(run.sizes), run.seed).items()}


def blank(run: Run) -> Backbone:
    """The run's backbone with random weights where its own are not at hand."""
    there = run.backbone == GLYPH_VIT or Path(run.weights).exists()
    logging.disable(logging.WARNING)  # open_clip tells that weights are random, which is wanted
    try:
        return load(run.backbone, run.weights if there else None, run.image_size)
    finally:
        logging.disable(logging.NOTSET)


def disk(run: Run, counts: Mapping[str, Mapping[str, int]], backbone: Backbone) -> dict[str, float]:
    """Bytes of what a run stores: images as uint8, checkpoints, summaries and factors as float32.

    A summary holds the mean gradient of every parameter and that of the pool's pixels; factors
    hold the thin decomposition of each matrix.
    """
    shapes = [tuple(t.shape) for t in backbone.visual_state().values()]
    of_model = 4 * sum(torch.Size(shape).numel() for shape in shapes)
    thin = [min(shape) * (sum(shape) + 1) for shape in shapes if len(shape) == 2]
    picture = 3 * pixels(run) ** 2
    pool = 4 * picture * run.pool_per_task * len(run.tasks)
    factored = any(METHODS[method].factored for method in run.methods)
    return {
        "images": picture * sum(sum(n.values()) for n in counts.values()),
        "checkpoints": of_model * (len(run.tasks) + 1),
        "summaries": (of_model + pool) * len(run.tasks),
        "factors": 4 * sum(thin) * len(run.tasks) * factored,
    }


def times(
    run: Run, counts: Mapping[str, Mapping[str, int]], backbone: Backbone
) -> dict[str, float]:
    """Seconds of one worker on its one thread, by what they are spent on."""
    visual, on = backbone.model.visual.to(device(run)), device(run)
    side = pixels(run)
    batch = torch.zeros(BATCH, 3, side, side, device=on)

    def forward() -> Tensor:
        with torch.autocast(on, torch.bfloat16, run.bfloat16):
            return visual(batch)

    with one_thread():
        clock = time.process_time if on == "cpu" else time.perf_counter
        with torch.inference_mode():
            forward()  # the first call prepares what the library keeps
            seen = _seconds(lambda: float(forward().sum()), clock) / BATCH
        trained = _seconds(lambda: _step(visual, forward()), clock) / BATCH
        merging = sum(_merging(run, backbone, method) for method in run.methods)
    tests, tasks = sum(n["test"] for n in counts.values()), len(run.tasks)
    held_out = tests + sum(n["calibration"] for n in counts.values())
    heads = sum(n[run.head_split] for n in counts.values()) * (run.head != "zero_shot")
    return {
        "fine-tuning": tasks * run.finetune.steps * run.finetune.batch * trained
        + (2 * held_out + heads) * seen,
        "summaries": tasks * tasks * run.pool_per_task * (seen + trained),
        "merging": tasks * (tasks - 1) / 2 * merging,
        "evaluating merges": (tasks - 1) * len(run.methods) * tests * seen,
    }


def _step(visual: torch.nn.Module, features: Tensor) -> float:
    """A backward pass, and one gradient's norm, which waits for it."""
    loss = features.float().square().mean()
    found = torch.autograd.grad(loss, list(visual.parameters()), allow_unused=True)
    return float(next(g.norm() for g in found if g is not None))


def _merging(run: Run, backbone: Backbone, method: str) -> float:
    """Seconds of a pair's merge, in proportion to that of a block's least matrix.

    Without factors kept before. A decomposition costs as much an entry in all of a block.
    """
    matrices = {n: t for n, t in backbone.visual_state().items() if t.ndim == 2}
    name = min(matrices, key=lambda n: (BLOCK not in n, matrices[n].numel()))
    share = matrices[name].numel() / sum(t.numel() for t in matrices.values())
    draws = torch.Generator().manual_seed(0)
    base, *models = (
        {name: 0.01**k * torch.randn(matrices[name].shape, generator=draws)} for k in (0, 1, 1)
    )
    models = [{name: base[name] + model[name]} for model in models]
    params = method_params(run, method)
    if "weights" in params and params["weights"] is None:
        params["weights"] = [0.5, 0.5]
    return _seconds(lambda: merge(base, models, method, run.seed, **params)) / share


def _seconds(work: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    """Seconds of a call: of the processor's time, which other programs take nothing of.

    A GPU works beside it, so there `work` has to wait for its result.
    """
    start = clock()
    work()
    return clock() - start


def _told(parts: Mapping[str, float], unit: float, name: str) -> str:
    each = ", ".join(f"{what} {_short(value / unit)}" for what, value in parts.items() if value)
    return f"{_short(sum(parts.values()) / unit)} {name} ({each})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
