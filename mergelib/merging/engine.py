"""Checkpoints swept tensor by tensor: a few tensors of every model in memory, never a model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergelib.checkpoints.reading import opened
from mergelib.checkpoints.weights import Source, Weights, check_same, of_mapping
from mergelib.core.errors import MergelibError
from mergelib.core.threads import threaded
from mergelib.merging.blocks import merged_tensor, read_layer
from mergelib.merging.layer import Layer
from mergelib.merging.registry import METHODS

BATCH = 2**28  # bytes read between openings: pages of a mapped file count as memory until it closes


def sweep(
    base: Source,
    tuned: Sequence[Source],
    work: Callable[[Layer], Tensor],
    factors: Sequence[Source] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, work(layer)) for each floating-point tensor of the base, in any order.

    `factors` are files of `mergelib.merging.cache`, one a model. Tensors are worked on in parallel,
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
    work: Callable[[Layer], Tensor],
    origin: Weights,
    models: Sequence[Weights],
    kept: Sequence[Weights] | None,
    name: str,
) -> Tensor:
    return work(read_layer(name, origin, models, kept))


def merge(
    base: Source,
    tuned: Sequence[Source],
    method: str,
    seed: int = 0,
    factors: Sequence[Source] | None = None,
    into: Mapping[str, Tensor] | None = None,
    **params: Any,
) -> dict[str, Tensor]:
    """Merge fine-tuned models: θ0 + Δ(τ1 … τT), tensor by tensor.

    `base` and each of `tuned` are state dicts, or checkpoints (`mergelib.checkpoints.formats`; read
    tensor by tensor), with the same names and shapes. Floating tensors come in float32, on the
    device of the base; others (counters, masks) are copied from the base. `seed` matters for random
    methods only (`METHODS[method].random`). `factors`, one file of `mergelib.merging.cache` a
    model, spares tsv the decompositions; other methods do without. `into` are the tensors to write
    to (say, those of a model that evaluates one merge after another); they are returned.
    Raises MergelibError for an unknown method, a wrong parameter, no model, other names or shapes
    (of `into` too), NaN, and a file that cannot be read.
    """
    row = METHODS[method]
    params = row.check(params)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise MergelibError(f"{method}: seed must be a whole number, not {seed!r}")
    if row.random:
        params["seed"] = seed
    if isinstance(tuned, (Mapping, str, Path)):
        raise MergelibError(
            "the fine-tuned models must come as a list, even one alone: give [model]"
        )

    if (survey := row.survey) is not None:
        parts = sweep(base, tuned, lambda layer: survey(layer, **params))
        params = {**params, "surveyed": torch.stack([part for _, part in parts]).sum(0)}

    if into is not None:
        with opened(base, "the base") as origin:
            check_same(origin, of_mapping(into, "the tensors to write to"))

    def add(layer: Layer) -> Tensor:
        return merged_tensor(row, layer, params, None if into is None else into[layer.name])

    merged = dict(sweep(base, tuned, add, factors))
    with opened(base) as origin:
        for name in origin.shapes.keys() - origin.floating:
            tensor = origin.get(name)
            merged[name] = tensor.clone() if into is None else into[name].copy_(tensor)
        return {name: merged[name] for name in origin.shapes}
