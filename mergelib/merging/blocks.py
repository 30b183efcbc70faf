"""Layers of opened checkpoints, whole or some rows; a merged tensor written block by block."""

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from mergelib.checkpoints.task_vectors import difference
from mergelib.checkpoints.weights import Weights
from mergelib.core.errors import MergelibError
from mergelib.merging.layer import Layer
from mergelib.merging.registry import Method

HELD = 2**26  # bytes of task vectors of one tensor that are read once, however often they are used


def read_layer(
    name: str,
    origin: Weights,
    models: Sequence[Weights],
    kept: Sequence[Weights] | None = None,
    rows: slice | None = None,
) -> Layer:
    """The layer of one tensor, or of some of its rows; nothing is read before it is asked for.

    `kept` are opened files of factors. What is read raises MergelibError for NaN or infinite
    entries, and for factors that do not fit.
    """
    shape = origin.shapes[name]
    if rows is not None:
        shape = (rows.stop - rows.start, *shape[1:])
    start = cache(partial(origin.read, name, rows))
    read: list[Callable[[], Tensor]] = [
        partial(_task_vector, model, name, rows, start) for model in models
    ]
    if 8 * len(read) * math.prod(shape) <= HELD:
        read = [cache(one) for one in read]
    if rows is not None:
        return Layer(name, shape, read, origin=start, rows=rows)
    triplets = None if kept is None else lambda t: _triplets(kept[t], name, start())
    narrow = partial(read_layer, name, origin, models, None)
    return Layer(name, shape, read, triplets, start, narrow)


def _task_vector(
    model: Weights, name: str, rows: slice | None, start: Callable[[], Tensor]
) -> Tensor:
    return difference(model.read(name, rows), start(), str(start().device))


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


def merged_tensor(
    row: Method,
    layer: Layer,
    params: dict[str, Any],
    into: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """θ0 + Δ of one tensor, rounded once, into `into` or a new tensor of this type."""
    for block, delta in row.blocks(layer, **params):
        tensor = block.start + delta
        if into is None:
            into = tensor.new_empty(layer.shape, dtype=dtype)
        into[block.rows].copy_(tensor)
    assert into is not None  # a layer has at least one block
    return into
