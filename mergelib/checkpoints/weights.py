"""Named tensors that are read one by one, wherever they come from."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mergelib.core.errors import MergelibError


@dataclass(frozen=True)
class Weights:
    """Named tensors that are read one by one; `label` is what an error calls them.

    `notes` say what was done to find them, a sentence each: a prefix taken off, say. `cut(name,
    rows)`, where a format has one, reads some rows without keeping others in memory. Of a model
    that came as an adapter, `low_rank(name)` is a task vector as left (m, r) and right (r, n), or
    None.
    """

    label: str
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    get: Callable[[str], Tensor]
    notes: tuple[str, ...] = ()
    cut: Callable[[str, slice], Tensor] | None = None
    low_rank: Callable[[str], tuple[Tensor, Tensor] | None] | None = None

    @cached_property
    def floating(self) -> frozenset[str]:
        """The names of the tensors of real floating point numbers."""
        return frozenset(name for name, dtype in self.dtypes.items() if dtype.is_floating_point)

    def part(self, name: str, rows: slice) -> Tensor:
        """Some rows of the tensor of that name."""
        return self.get(name)[rows] if self.cut is None else self.cut(name, rows)

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """The tensor of that name, or some of its rows; of eight bits in float32, to compute with.

        Raises MergelibError if an entry of them is NaN or infinite.
        """
        tensor = self.get(name) if rows is None else self.part(name, rows)
        if tensor.dtype.itemsize == 1 and tensor.dtype.is_floating_point:
            tensor = tensor.float()
        ends = torch.aminmax(tensor) if tensor.numel() else ()
        if not math.isfinite(sum(end.item() for end in ends)):
            raise MergelibError(
                f"{self.label}: tensor {name!r} has NaN or infinite entries; train it again"
            )
        return tensor


def of_mapping(state: Mapping[str, Tensor], label: str, notes: tuple[str, ...] = ()) -> Weights:
    """A state dict in memory."""
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    dtypes = {name: tensor.dtype for name, tensor in state.items()}
    return Weights(label, shapes, dtypes, state.__getitem__, notes)


def check_same(origin: Weights, other: Weights) -> None:
    """Raise MergelibError, naming the tensor, unless both hold the same names and shapes."""
    for name in sorted(origin.shapes.keys() ^ other.shapes.keys()):
        has, lacks = (origin, other) if name in origin.shapes else (other, origin)
        raise MergelibError(
            f"{lacks.label} lacks tensor {name!r}, which {has.label} has with shape "
            f"{has.shapes[name]}: give models of one architecture"
        )
    for name, shape in origin.shapes.items():
        if other.shapes[name] != shape:
            raise MergelibError(
                f"tensor {name!r} has shape {other.shapes[name]} in {other.label} but {shape} in "
                f"{origin.label}: give models of one architecture"
            )
