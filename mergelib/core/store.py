"""Artifacts on disk: written atomically, named by what they depend on, never pickled."""

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from mergelib.core.atomic import atomic
from mergelib.core.atomic import write_atomic as write_atomic
from mergelib.core.documents import read_json as read_json
from mergelib.core.errors import MergelibError
from mergelib.core.outputs import TABLES, check_suffix

if TYPE_CHECKING:  # half a second, which merging does without
    import pandas as pd


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named tensors as safetensors, atomically, one after another.

    Raises MergelibError, naming the file, where it cannot be written.
    """

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            _write_tensors(file, tensors, dict(metadata or {}))

    atomic(path, write)


def _write_tensors(file: BinaryIO, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """What `safetensors.torch.save` returns, without holding it in memory.

    Its `save_file` writes to a name of its own choice, which a killed process leaves behind.
    """
    blank = save({name: tensor.new_empty(0).cpu() for name, tensor in tensors.items()}, metadata)
    header = json.loads(blank[8:])  # names in the order of the file, each with its type
    names = [name for name in header if name != "__metadata__"]
    begin = 0
    for name in names:
        end = begin + tensors[name].nbytes
        header[name] |= {"shape": list(tensors[name].shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        held = tensors[name].detach().cpu().contiguous()
        file.write(held.flatten().view(torch.uint8).numpy().data)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file.

    Raises MergelibError if the file is missing, truncated or not safetensors.
    """
    path = Path(path)
    if not path.is_file():
        raise MergelibError(f"{path} is missing: give the path of a safetensors file")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise MergelibError(
            f"{path} is truncated or no safetensors file ({error}): write or copy it again"
        ) from None


def write_table(path: Path, frame: "pd.DataFrame") -> None:
    """Write a table, by suffix as CSV (17 significant digits, so float64 survives) or Parquet.

    Raises MergelibError for another suffix, and where the file cannot be written.
    """
    path = Path(path)
    check_suffix(path, TABLES)
    if path.suffix == ".parquet":
        atomic(path, lambda temporary: frame.to_parquet(temporary, index=False))
    else:
        text = frame.to_csv(index=False, float_format="%.17g", lineterminator="\n")
        write_atomic(path, text.encode())


def read_table(path: Path) -> "pd.DataFrame":
    """Read a CSV or Parquet table.

    Raises MergelibError if the file is missing or cannot be parsed.
    """
    import pandas as pd

    path = Path(path)
    if not path.is_file():
        raise MergelibError(f"table {path} is missing: make it with `mergelib run`")
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        with warnings.catch_warnings():
            # older pandas reads exactly only when asked; newer always does, and says so
            warnings.filterwarnings("ignore", "The 'float_precision'", DeprecationWarning)
            return pd.read_csv(path, float_precision="round_trip")
    except (ValueError, OSError, OverflowError) as error:
        raise MergelibError(f"table {path} cannot be read ({error}): make it again") from None


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys, atomically."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False)
    write_atomic(path, (text + "\n").encode())


def _feed(state: Any, part: Any) -> None:
    if isinstance(part, Tensor):
        part = part.detach().cpu().contiguous()
        state.update(f"tensor {part.dtype} {tuple(part.shape)}\n".encode())
        state.update(part.flatten().view(torch.uint8).numpy().data)
    elif isinstance(part, np.ndarray):
        state.update(f"array {part.dtype} {part.shape}\n".encode())
        state.update(np.ascontiguousarray(part).tobytes())
    elif isinstance(part, bytes):
        state.update(b"bytes %d\n" % len(part))
        state.update(part)
    elif isinstance(part, Mapping):
        state.update(b"map %d\n" % len(part))
        for key in sorted(part):
            _feed(state, key)
            _feed(state, part[key])
    elif isinstance(part, (list, tuple)):
        state.update(b"list %d\n" % len(part))
        for item in part:
            _feed(state, item)
    else:
        state.update(f"{type(part).__name__} {part!r}\n".encode())


def digest(*parts: Any) -> str:
    """SHA-256 (hex) over strings, bytes, numbers, mappings, lists, arrays and tensors."""
    state = hashlib.sha256()
    for part in parts:
        _feed(state, part)
    return state.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
