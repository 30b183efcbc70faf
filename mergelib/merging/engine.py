"""Checkpoints swept tensor by tensor: a few tensors of every model in memory, never a model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergelib.checkpoints.layouts import Arranged
from mergelib.checkpoints.reading import Source, View, opened, views
from mergelib.checkpoints.selection import Choice, is_statistic
from mergelib.checkpoints.weights import Weights, check_same, of_mapping
from mergelib.core.errors import MergelibError
from mergelib.core.threads import threaded
from mergelib.merging.blocks import merged_tensor, read_layer
from mergelib.merging.layer import Layer
from mergelib.merging.registry import METHODS

BATCH = 2**28  # bytes read between openings: pages of a mapped file count as memory until it closes

Shares = Mapping[str, Sequence[float]]  # by tensor: what every model's task vector is times
Spec = dict[str, tuple[torch.dtype, tuple[int, ...]]]  # by name in the file: type and shape


@dataclass(frozen=True)
class Plan:
    """What a merge will do, known before it does it.

    `base` and `models` are views of what is merged. `spec` says what is written: the base's
    tensors, under its own names. `kept` are those of them that stay as they are, `notes` what a
    user should know.
    """

    base: View
    models: tuple[View, ...]
    spec: Spec
    kept: tuple[str, ...]
    notes: tuple[str, ...]


def plan(
    base: Source,
    tuned: Sequence[Source],
    choice: Choice | None = None,
    dtype: torch.dtype | None = None,
) -> Plan:
    """Look through checkpoints before a merge; `dtype` of what is written (none: the base's).

    Raises MergelibError as `mergelib.checkpoints.reading.views` does.
    """
    if isinstance(tuned, (Mapping, str, Path)):
        raise MergelibError(
            "the fine-tuned models must come as a list, even one alone: give [model]"
        )
    origin, models, found = views(base, tuned, choice, whole=True)
    merged = {part for parts in origin.layout.values() for part in parts.names}
    with opened(origin) as weights:
        own = weights.own
        types = {n: dtype if dtype and n in own.floating else own.dtypes[n] for n in own.shapes}
        spec = {name: (types[name], own.shapes[name]) for name in own.shapes}
    kept = tuple(name for name in spec if name not in merged)
    return Plan(origin, tuple(models), spec, kept, found.notes)


def sweep(
    base: Source,
    tuned: Sequence[Source],
    work: Callable[[Layer], Tensor],
    factors: Sequence[Source] | None = None,
    shares: Shares | None = None,
    statistics: bool = True,
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, work(layer)) for each floating-point tensor of the base, in any order.

    `factors` are files of `mergelib.merging.cache`, one a model. `statistics`: those of activations
    too. Tensors are worked on in parallel, one core each. Raises MergelibError for other names or
    shapes, NaN, a file that cannot be read, and factors that are not of these models.
    """
    if factors is not None and len(factors) != len(tuned):
        raise MergelibError(
            f"{len(factors)} files of factors for {len(tuned)} models: give one a model, in order"
        )
    if not isinstance(base, View):
        base, tuned, _ = views(base, tuned, whole=True)
    with opened(base) as origin:
        names = [name for name in sorted(origin.shapes) if statistics or not is_statistic(name)]
        shapes = {name: origin.shapes[name] for name in names}
    for names in _batches(shapes, len(tuned) + 1):
        with ExitStack() as stack:
            origin = stack.enter_context(opened(base))
            models = [stack.enter_context(opened(each)) for each in tuned]
            kept = None if factors is None else _opened(stack, factors, "factors of model")
            found = partial(_found, work, origin, models, kept, shares)
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


def _opened(stack: ExitStack, sources: Sequence[Source], label: str) -> list[Arranged]:
    return [stack.enter_context(opened(s, f"{label} {t}")) for t, s in enumerate(sources)]


@torch.no_grad()  # which holds for one thread only
def _found(
    work: Callable[[Layer], Tensor],
    origin: Arranged,
    models: Sequence[Arranged],
    kept: Sequence[Weights] | None,
    shares: Shares | None,
    name: str,
) -> Tensor:
    share = None if shares is None else shares[name]
    return work(read_layer(name, origin, models, kept, share))


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

    `base` and each of `tuned` are state dicts or checkpoints of one model, in whatever layouts.
    All tensors of the base come back, under its own names and in its types, on its device; those
    that no method merges (counters) are the base's. `seed` matters for random methods only
    (`METHODS[method].random`). `factors`, one file of `mergelib.merging.cache` a model, spares tsv
    the decompositions; other methods do without. `into` are the tensors to write to (say, those of
    a model that evaluates one merge after another); they are returned.
    Raises MergelibError for an unknown method, a wrong parameter, no model, other names or shapes
    (of `into` too), NaN, and a file that cannot be read.
    """
    planned = plan(base, tuned)
    if into is not None:
        with opened(planned.base) as origin:
            check_same(origin.own, of_mapping(into, "the tensors to write to"))
    found = merged(planned, method, seed, factors, **params)
    state = {n: t if into is None else into[n].copy_(t) for n, t in found}
    return {name: state[name] for name in planned.spec}


def merged(
    planned: Plan,
    method: str,
    seed: int = 0,
    factors: Sequence[Source] | None = None,
    shares: Shares | None = None,
    **params: Any,
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a planned merge as they are made, under the base's own names, in any order.

    `shares` are what task vectors are times, by tensor and model (none: 1). Statistics of
    activations (of batch normalization) are averaged by every method: an extrapolated variance may
    be negative. Raises MergelibError as `merge` does.
    """
    row = METHODS[method]
    params = row.check(params)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise MergelibError(f"{method}: seed must be a whole number, not {seed!r}")
    if row.random:
        params["seed"] = seed
    swept = partial(sweep, planned.base, planned.models, shares=shares)
    if (survey := row.survey) is not None:
        parts = swept(lambda layer: survey(layer, **params), statistics=False)
        params = {**params, "surveyed": torch.stack([part for _, part in parts]).sum(0)}

    with opened(planned.base) as origin:

        def add(layer: Layer) -> Tensor:
            dtype = planned.spec[origin.layout[layer.name].names[0]][0]
            if is_statistic(layer.name):
                return layer.start + layer.mean()
            return merged_tensor(row, layer, params, dtype)

        for name, tensor in swept(add, factors):
            rows = origin.layout[name].rows
            if rows is not None:  # others are the base's
                part = origin.layout[name].names[0]
                tensor = torch.cat([tensor, origin.own.get(part)[rows:].to(tensor)])
            for own, piece in origin.under_own_names(name, tensor):
                if piece.numel() < tensor.numel() or not piece.is_contiguous():
                    piece = piece.clone(memory_format=torch.contiguous_format)  # its own memory
                yield own, piece.to(planned.spec[own][0])
        for own in planned.kept:
            yield own, origin.own.get(own).to(planned.spec[own][0]).clone()
