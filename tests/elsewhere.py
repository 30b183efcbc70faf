"""A stand-in for a GPU: tensors that lie elsewhere, and refuse to meet those of the CPU.

Their numbers are held in ordinary tensors, so results can be compared. What this tests is that code
puts its operands on one device, makes new tensors there and brings results back, on a machine
without a GPU; not speed, and not a GPU's own kernels.
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

PLACE = torch.device("meta")  # a device that torch knows without a driver
COPY, MOVE = torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default


class Elsewhere(Tensor):
    """A tensor on the stand-in device."""

    @staticmethod
    def __new__(cls, held: Tensor) -> "Elsewhere":
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        return Tensor._make_wrapper_subclass(
            cls, held.shape, dtype=held.dtype, device=PLACE, **layout
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self) -> str:
        return f"Elsewhere({self.held})"

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), named=None):
        return compute(function, arguments, named or {})


def compute(function, arguments, named):
    """Call an operator on what its operands hold; the result lies where they do, or where asked."""
    operands = [x for x in tree_leaves((arguments, named)) if isinstance(x, Tensor)]
    there = [x for x in operands if isinstance(x, Elsewhere)]
    numbers = [x for x in operands if not isinstance(x, Elsewhere) and x.ndim == 0]
    if there and len(there) + len(numbers) < len(operands) and function not in (COPY, MOVE):
        raise RuntimeError(f"{function}: operands lie on two devices")
    device = named.get("device")
    if device is not None:
        named = named | {"device": torch.device("cpu")}
    plain, named = tree_map_only(Elsewhere, lambda x: x.held, (arguments, named))
    with torch.utils._python_dispatch._disable_current_modes():
        found = function(*plain, **named)
    if function is COPY:
        return arguments[0]
    stays = bool(there) if device is None else torch.device(device).type == PLACE.type
    if not stays:
        return found
    written = {id(x.held): x for x in there}  # what was written in place stays itself

    def lay(tensor: Tensor) -> Tensor:
        return written[id(tensor)] if id(tensor) in written else Elsewhere(tensor)

    return tree_map_only(Tensor, lay, found)


class NewTensors(TorchDispatchMode):
    """Lets tensors be made on the stand-in device, in the thread that enters this."""

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        return compute(function, arguments, named or {})
