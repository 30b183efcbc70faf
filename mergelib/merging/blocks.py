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
from mergelib.linalg.low_rank import product_triplets
from mergelib.merging.layer import Layer, Triplets, cached_rank
from mergelib.merging.registry import Method

HELD = 2**26  # bytes of task vectors of one tensor that are read once, however often they are used


def read_layer(
    name: str,
    origin: Weights,
    models: Sequence[Weights],
    kept: Sequence[Weights] | None = None,
    shares: Sequence[float] | None = None,
    rows: slice | None = None,
) -> Layer:
    """The layer of one tensor, or of some of its rows; nothing is read before it is asked for.

    `kept` are opened files of factors; `shares` what the task vectors are times. What is read
    raises MergelibError for NaN or infinite entries, and for factors that do not fit.
    """
    shape = origin.shapes[name]
    if rows is not None:
        shape = (rows.stop - rows.start, *shape[1:])
    start = cache(partial(origin.read, name, rows))
    share = [1.0] * len(models) if shares is None else shares
    read: list[Callable[[], Tensor]] = [
        partial(_task_vector, model, name, rows, start, part)
        for model, part in zip(models, share, strict=True)
    ]
    if 8 * len(read) * math.prod(shape) <= HELD:
        read = [cache(one) for one in read]
    if rows is not None:
        return Layer(name, shape, read, origin=start, rows=rows)

    def triplets(position: int, rank: int) -> Triplets | None:
        found = _low_rank(models[position], name, rank)
        if found is None and kept is not None and rank <= cached_rank(shape):
            found = _kept(kept[position], name, start())
        return None if found is None else _times(found, share[position])

    narrow = partial(_rows_of, name, origin, models, shares)
    return Layer(name, shape, read, triplets, start, narrow)


def _rows_of(
    name: str,
    origin: Weights,
    models: Sequence[Weights],
    shares: Sequence[float] | None,
    rows: slice,
) -> Layer:
    return read_layer(name, origin, models, None, shares, rows)


def _task_vector(
    model: Weights, name: str, rows: slice | None, start: Callable[[], Tensor], share: float
) -> Tensor:
    vector = difference(model.read(name, rows), start(), str(start().device))
    return vector if share == 1 else vector.mul_(share)


def _low_rank(model: Weights, name: str, rank: int) -> Triplets | None:
    """The triplets of a task vector that came as a product of thin factors."""
    factors = None if model.low_rank is None else model.low_rank(name)
    return None if factors is None else product_triplets(*factors, rank)


def _kept(kept: Weights, name: str, start: Tensor) -> Triplets:
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


def _times(triplets: Triplets, share: float) -> Triplets:
    """The triplets of a matrix times a number; none are left of nothing."""
    u, s, v = triplets
    if share == 0:
        return u[:, :0], s[:0], v[:, :0]
    return (u if share > 0 else -u), s * abs(share), v


def merged_tensor(row: Method, layer: Layer, params: dict[str, Any], dtype: torch.dtype) -> Tensor:
    """θ0 + Δ of one tensor, rounded once to a type (of eight bits: to float32).

    Raises MergelibError if the method leaves rows out.
    """
    if dtype.itemsize == 1:
        dtype = torch.float32
    merged: Tensor | None = None
    made = torch.zeros(layer.shape[:1], dtype=torch.bool)
    for block, delta in row.blocks(layer, **params):
        tensor = block.start + delta
        if merged is None:
            merged = tensor.new_empty(layer.shape, dtype=dtype)
        merged[block.rows].copy_(tensor)
        made[block.rows] = True
    if merged is None or not made.all():
        raise MergelibError(
            f"method {row.name!r} leaves rows of {layer.name!r} out: yield each of layer.blocks() "
            "with its merged task vector"
        )
    return merged
