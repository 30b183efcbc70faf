"""Artifacts on disk: written atomically, named by what they depend on, never pickled."""

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mergelib.core.errors import MergelibError


def _atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes) -> None:
    """Write bytes so that `path` holds all of them or what it held before."""
    _atomic(path, lambda temporary: temporary.write_bytes(data))


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named tensors as safetensors, atomically."""
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    _atomic(path, lambda temporary: save_file(held, temporary, metadata=dict(metadata or {})))


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


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write a table as CSV (17 significant digits, so float64 survives) or, by suffix, Parquet."""
    path = Path(path)
    if path.suffix == ".parquet":
        _atomic(path, lambda temporary: frame.to_parquet(temporary, index=False))
    else:
        text = frame.to_csv(index=False, float_format="%.17g", lineterminator="\n")
        write_atomic(path, text.encode())


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV or Parquet table.

    Raises MergelibError if the file is missing or cannot be parsed.
    """
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
    except (ValueError, OSError) as error:
        raise MergelibError(f"table {path} cannot be read ({error}): make it again") from None


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys, atomically."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False)
    write_atomic(path, (text + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises MergelibError if the file is missing or cannot be parsed.
    """
    path = Path(path)
    if not path.is_file():
        raise MergelibError(f"{path} is missing: check the path")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MergelibError(f"{path} is truncated or not JSON ({error}): write it again") from None


def _feed(state: Any, part: Any) -> None:
    if isinstance(part, Tensor):
        part = part.detach().cpu().contiguous()
        state.update(f"tensor {part.dtype} {tuple(part.shape)}\n".encode())
        state.update(part.flatten().view(torch.uint8).numpy())
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
