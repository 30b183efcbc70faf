"""Which tensor of a checkpoint goes into which file, and sizes in words."""

import re
from collections.abc import Mapping

import torch

from mergelib.core.errors import MergelibError

# Types and shapes by name, in the order in which the tensors are to be written.
Spec = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
BINARY_UNITS = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def size_in_bytes(size: int | str) -> int:
    """Bytes of a size such as 5000000000, "5GB" (10⁹, as Hugging Face counts) or "2GiB" (2³⁰).

    Raises MergelibError if it is not such, or less than 1.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", str(size), re.IGNORECASE)
    if match is None or isinstance(size, bool):
        raise MergelibError(f"a shard's size must be like 5GB, 500MB or 2GiB, not {size!r}")
    number, unit = match.groups()
    count = int(float(number) * (UNITS | BINARY_UNITS)[(unit or "").lower()])
    if count < 1:
        raise MergelibError(f"a shard's size must be 1 byte or more, not {size!r}")
    return count


def bytes_of(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    """How many bytes a tensor takes."""
    return dtype.itemsize * torch.Size(shape).numel()


def cut(spec: Spec, stem: str, limit: int | None) -> dict[str, Spec]:
    """The safetensors files by name, and what goes into each, in order.

    One file if all fit in `limit` bytes; a tensor that is larger gets a file of its own.
    """
    parts: list[dict[str, tuple[torch.dtype, tuple[int, ...]]]] = [{}]
    held = 0
    for name, (dtype, shape) in spec.items():
        size = bytes_of(dtype, shape)
        if limit is not None and parts[-1] and held + size > limit:
            parts.append({})
            held = 0
        parts[-1][name] = (dtype, shape)
        held += size
    if len(parts) == 1:
        return {f"{stem}.safetensors": parts[0]}
    names = (f"{stem}-{i:05d}-of-{len(parts):05d}.safetensors" for i in range(1, len(parts) + 1))
    return dict(zip(names, parts, strict=True))


def index_of(files: Mapping[str, Spec]) -> dict[str, dict]:
    """What an index of shards says: the file of every tensor, and the bytes of all."""
    sizes = [bytes_of(*each) for part in files.values() for each in part.values()]
    where = {name: file for file, part in files.items() for name in part}
    return {"metadata": {"total_size": sum(sizes)}, "weight_map": where}
