"""A tensor in the type that it is to be written in."""

import torch
from torch import Tensor

from mergelib.core.errors import MergelibError


def fitted(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """The tensor on the CPU, contiguous, in that type; itself where it is so already.

    Raises MergelibError, naming it, for another shape, for a change of type other than from
    floating point to floating point, and for entries beyond the type's range.
    """
    if tuple(tensor.shape) != tuple(shape):
        raise MergelibError(f"tensor {name!r} has shape {tuple(tensor.shape)}, not {tuple(shape)}")
    tensor = tensor.detach()
    if tensor.dtype != dtype:
        _check_cast(name, tensor, dtype)
        tensor = tensor.to(dtype)
    return tensor.cpu().contiguous().resolve_conj().resolve_neg()


def _check_cast(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    scale = torch.float8_e8m0fnu  # powers of two alone: what is in it is no weight
    floating = tensor.dtype.is_floating_point and dtype.is_floating_point
    if not floating or scale in (tensor.dtype, dtype):
        raise MergelibError(
            f"tensor {name!r} is of type {_name(tensor.dtype)} and cannot be written as "
            f"{_name(dtype)}: keep its type"
        )
    limit = torch.finfo(dtype).max
    if tensor.numel() and torch.finfo(tensor.dtype).max > limit:
        wide = tensor.float() if tensor.itemsize == 1 else tensor  # float8 knows no minimum
        largest = max(abs(end.item()) for end in torch.aminmax(wide))
        if largest > limit:
            raise MergelibError(
                f"tensor {name!r} has an entry of size {largest:g}, beyond {limit:g}, the largest "
                f"of {_name(dtype)}: write bfloat16 or float32"
            )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
