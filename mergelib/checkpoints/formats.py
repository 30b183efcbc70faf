"""Checkpoint files in the formats people have, read tensor by tensor under their own names.

safetensors files, and state dicts of torch.save (`.pt`, `.pth`, `.bin`, `.ckpt`; tensors only,
memory-mapped), told apart by their first bytes, whatever they are called.
"""

import json
import os
import warnings
from contextlib import ExitStack
from functools import lru_cache, partial
from io import FileIO
from math import prod
from pathlib import Path
from pickle import UnpicklingError
from zipfile import is_zipfile

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mergelib.checkpoints.weights import Weights, of_mapping
from mergelib.checkpoints.wrappers import state_dict
from mergelib.core.errors import MergelibError

# The types of safetensors files by their names there.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# The first bytes of files that are taken for checkpoints: what they are, and the mend.
OTHERS = {
    b"GGUF": ("a GGUF file (llama.cpp)", "merge the safetensors that it was made from"),
    b"version https://git-lfs": ("a Git LFS pointer, not the file itself", "run `git lfs pull`"),
    b"<!DOCTYPE": ("a web page", "download the file itself"),
    b"<html": ("a web page", "download the file itself"),
    b"\x89HDF\r\n\x1a\n": ("an HDF5 file (Keras)", "convert it to safetensors"),
    b"\x1f\x8b": ("a gzip archive", "unpack it"),
    b"7z\xbc\xaf'\x1c": ("a 7z archive", "unpack it"),
    b"\x93NUMPY": ("a numpy array", "save a state dict"),
}
PICKLES = (b"PK\x03\x04", b"\x80")  # a zip archive, as torch.save writes it, or a bare pickle
SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")


def open_weights(path: Path, stack: ExitStack) -> Weights:
    """A checkpoint file under its own names, open as long as `stack`.

    Raises MergelibError, naming the file, if it is missing, truncated, of another format, or holds
    pickled objects other than tensors.
    """
    if not path.is_file():
        what = "is a link to nothing" if path.is_symlink() else "is missing"
        raise MergelibError(
            f"{path} {what}: give the path of a safetensors, .pt, .pth, .bin or .ckpt file, or of "
            "a model folder; a model of a hub is given by the folder that it was downloaded to"
        )
    with path.open("rb") as file:
        start = file.read(32)
    for mark, (what, mend) in OTHERS.items():
        if start.startswith(mark):
            raise MergelibError(f"{path} is {what}: {mend}")
    if path.suffix == ".npz":
        raise MergelibError(f"{path} is a numpy archive: save a state dict")
    if start.startswith(PICKLES) or (path.suffix in SUFFIXES and start[8:9] != b"{"):
        return _pickled(path)
    return _safetensors(path, stack)


def _safetensors(path: Path, stack: ExitStack) -> Weights:
    try:
        file = stack.enter_context(safe_open(path, framework="pt"))
        stat = path.stat()
        shapes, dtypes, starts = _header(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)
        raw = stack.enter_context(path.open("rb", buffering=0))
    except (SafetensorError, OSError, ValueError) as error:
        raise MergelibError(
            f"{path} is truncated or no safetensors file ({_line(error)}): write or copy it again"
        ) from None

    def cut(name: str, rows: slice) -> Tensor:
        # pages of a mapped file count as memory until it closes; what is read goes with the rows
        shape, dtype = shapes[name], dtypes[name]
        row = prod(shape[1:])
        first, last, _ = rows.indices(shape[0])
        begin = starts[name] + first * row * dtype.itemsize
        held = np.empty((last - first) * row * dtype.itemsize, dtype=np.uint8)
        _fill(raw, held.data, begin, path)
        return torch.from_numpy(held).view(dtype).view(last - first, *shape[1:])

    return Weights(str(path), shapes, dtypes, file.get_tensor, cut=cut)


def _fill(raw: FileIO, held: memoryview, begin: int, path: Path) -> None:
    """Read a file from a byte on until the memory is full; MergelibError if it ends before."""
    done = 0
    while done < len(held):
        count = os.preadv(raw.fileno(), [held[done:]], begin + done)
        if not count:
            raise MergelibError(f"{path} has become shorter while it was read: write it again")
        done += count


@lru_cache(maxsize=256)  # sweeps open a file again and again, to let go of what was mapped
def _header(
    path: Path, *stamp: int
) -> tuple[dict[str, tuple[int, ...]], dict[str, torch.dtype], dict[str, int]]:
    """Shapes, types and first bytes by name.

    Raises MergelibError, naming the tensor, for an unknown type.
    """
    with safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    for name, part in slices.items():
        if part.get_dtype() not in DTYPES:
            raise MergelibError(
                f"{path}: tensor {name!r} is of type {part.get_dtype()}, which is not known here: "
                "save it in another one, float32 say"
            )
    with path.open("rb") as raw:
        size = int.from_bytes(raw.read(8), "little")
        header = json.loads(raw.read(size))
    starts = {name: 8 + size + header[name]["data_offsets"][0] for name in shapes}
    return shapes, {name: DTYPES[part.get_dtype()] for name, part in slices.items()}, starts


def _pickled(path: Path) -> Weights:
    held, note = state_dict(_load(path), str(path))
    for name, tensor in held.items():
        _check(path, name, tensor)
    dense = {n: t.to_dense() if t.layout != torch.strided else t for n, t in held.items()}
    return of_mapping(dense, str(path), note)


def _check(path: Path, name: str, tensor: Tensor) -> None:
    """Raise MergelibError unless a tensor's numbers are all in the file, one by one."""
    mend = "save the state dict again, with its numbers"
    if tensor.is_meta:
        raise MergelibError(f"{path}: tensor {name!r} is on the meta device, without data: {mend}")
    if tensor.is_quantized or tensor.is_nested:
        kind = "quantized" if tensor.is_quantized else "nested"
        raise MergelibError(f"{path}: tensor {name!r} is {kind}: save it as a plain one, float32")
    parts = [tensor] if tensor.layout == torch.strided else _of_sparse(tensor)
    room = sum(part.untyped_storage().nbytes() for part in parts)
    entries = tensor.numel() * tensor.dtype.itemsize
    if entries > room and (tensor.layout == torch.strided or entries > 2**33):
        raise MergelibError(
            f"{path}: tensor {name!r} of shape {tuple(tensor.shape)} holds fewer numbers than its "
            f"shape says: {mend}"
        )


def _of_sparse(tensor: Tensor) -> list[Tensor]:
    return [tensor._values()] if tensor.layout == torch.sparse_coo else [tensor.values()]


def _load(path: Path) -> object:
    load = partial(torch.load, path, map_location="cpu", weights_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong is said once, below
            try:
                return load(mmap=True)
            except RuntimeError as error:
                if "mmap can only be used" not in str(error):
                    raise
                return load()  # the format before PyTorch 1.6 cannot be mapped
    except Exception as error:  # a damaged pickle raises whatever its bytes make of it
        text = str(error)
        refused = isinstance(error, UnpicklingError) and ("GLOBAL" in text or is_zipfile(path))
        if refused or "TorchScript" in text:
            raise MergelibError(
                f"{path} holds pickled objects besides tensors, which could run code and are not "
                "loaded: save the state dict alone, torch.save(model.state_dict(), path), or as "
                "safetensors"
            ) from None
        raise MergelibError(
            f"{path} is truncated or no PyTorch file ({_line(error)}): write or copy it again"
        ) from None


def _line(error: Exception) -> str:
    """What an error of a library says, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]
