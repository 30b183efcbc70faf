"""Checkpoints swept tensor by tensor: a few tensors of every model in memory, never a model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache, partial

import torch
from torch import Tensor

from mergelib.errors import MergelibError
from mergelib.merging.layer import Layer
from mergelib.parallel import threaded
from mergelib.vectors import Source, Weights, check_same, difference, opened

BATCH = 2**28  # bytes read between openings: pages of a mapped file count as memory until it closes
HELD = 2**26  # bytes of task vectors of one tensor that are read once, however often they are used


def sweep(
    base: Source,
    tuned: Sequence[Source],
    work: Callable[[Tensor, Layer], Tensor],
    factors: Sequence[Source] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, work(θ0, layer)) for each floating-point tensor of the base, in any order.

    `factors` are files of `mergelib.merging.kept`, one a model. Tensors are worked on in parallel,
    one core each. Raises MergelibError for other names or shapes, NaN, a file that cannot be read,
    and factors that are not of these models.
    """
    if not tuned:
        raise MergelibError("no fine-tuned model is given: give at least one checkpoint")
    if factors is not None and len(factors) != len(tuned):
        raise MergelibError(
            f"{len(factors)} files of factors for {len(tuned)} models: give one a model, in order"
        )
    with opened(base, "the base") as origin:
        if not origin.floating:
            raise MergelibError(f"{origin.label} holds no floating point tensor: check the file")
        shapes = {name: origin.shapes[name] for name in sorted(origin.floating)}
    for names in _batches(shapes, len(tuned) + 1):
        with ExitStack() as stack:
            origin = stack.enter_context(opened(base, "the base"))
            models = _opened(stack, tuned, "model")
            for model in models:
                check_same(origin, model)
            kept = None if factors is None else _opened(stack, factors, "factors of model")
            found = partial(_found, work, origin, models, kept)
            yield from zip(names, threaded(found, names), strict=True)


def _batches(shapes: dict[str, tuple[int, ...]], copies: int) -> Iterator[list[str]]:
    """Names in runs of about BATCH bytes."""
    names, size = [], 0
    for name, shape in shapes.items():
        names.append(name)
        size += 4 * copies * torch.Size(shape).numel()
        if size >= BATCH:
            yield names
            names, size = [], 0
    if names:
        yield names


def _opened(stack: ExitStack, sources: Sequence[Source], label: str) -> list[Weights]:
    return [stack.enter_context(opened(s, f"{label} {t}")) for t, s in enumerate(sources)]


@torch.no_grad()  # which holds for one thread only
def _found(
    work: Callable[[Tensor, Layer], Tensor],
    origin: Weights,
    models: Sequence[Weights],
    kept: Sequence[Weights] | None,
    name: str,
) -> Tensor:
    start = origin.read(name)
    read = [partial(_task_vector, model, name, start) for model in models]
    if 8 * len(read) * start.numel() <= HELD:
        read = [cache(one) for one in read]
    triplets = None if kept is None else lambda t: _triplets(kept[t], name, start)
    return work(start, Layer(name, start.shape, read, triplets))


def _task_vector(model: Weights, name: str, start: Tensor) -> Tensor:
    return difference(model.read(name), start, start.device)


def _triplets(kept: Weights, name: str, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    keys = [f"{part}/{name}" for part in "usv"]
    rank = kept.shapes.get(keys[1], (0,))[0]
    wanted = [(len(start), rank), (rank,), (start.shape[1], rank)]
    for key, size in zip(keys, wanted, strict=True):
        if kept.shapes.get(key) != size:
            raise MergelibError(
                f"{kept.label}: {key!r} has shape {kept.shapes.get(key)}, not {size}, as the "
                "models want: give factors of these models, in their order"
            )
    u, s, v = (kept.read(key).to(start.device) for key in keys)
    return u, s, v
