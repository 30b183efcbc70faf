"""Checkpoints in the formats people have, read tensor by tensor under open_clip's names.

Formats: safetensors files; `.pt`, `.pth` and `.bin` state dicts, bare or under "state_dict"
(tensors only, memory-mapped); Hugging Face CLIP directories (config.json beside model.safetensors,
pytorch_model.bin, or shards with their index).

Names: those of open_clip's image tower (`conv1.weight`, `transformer.resblocks.0.ln_1.bias`, …).
Of a whole CLIP only the image tower is read: what is under `visual.`, or `vision_model.` and
`visual_projection` of the Hugging Face layout; text tensors beside it are left out. A checkpoint
with neither is read as it stands. So models in different formats and layouts can be compared.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from pathlib import Path
from pickle import UnpicklingError
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mergelib.checkpoints.layouts import (
    TEXT,
    image_tower,
    is_hugging_face,
    rearranged,
    tower_names,
    vision_names,
)
from mergelib.checkpoints.weights import Source, Weights, of_mapping
from mergelib.core.errors import MergelibError
from mergelib.core.store import read_json

PICKLED = (".pt", ".pth", ".bin")
IN_DIRECTORY = ("model.safetensors", "pytorch_model.bin")
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
TEXT_MATRICES = ("token_embedding.weight", "positional_embedding", "text_projection")


@contextmanager
def open_file(path: Path | str) -> Iterator[Weights]:
    """Open a checkpoint of any known format; its image tower, tensor by tensor.

    Raises MergelibError, naming the file, if it is missing, truncated, of another format or layout,
    or holds pickled objects other than tensors.
    """
    with ExitStack() as stack:
        yield image_tower(_raw(Path(path), stack))


def whole_clip(path: Path | str) -> dict[str, Tensor]:
    """All tensors of a Hugging Face CLIP (both towers) as an open_clip state dict.

    Raises MergelibError as `open_file` does, or if the text tower is absent.
    """
    with ExitStack() as stack:
        weights = _raw(Path(path), stack)
        if not is_hugging_face(weights):
            raise MergelibError(f"{path} is no Hugging Face CLIP: it has no vision_model.* tensors")
        vision = {f"visual.{n}": parts for n, parts in vision_names(weights).items()}
        text = tower_names(weights, "text_model.", TEXT)
        text |= {"text_projection": ("text_projection.weight",), "logit_scale": ("logit_scale",)}
        both = rearranged(weights, vision | text)
        return {name: both.read(name) for name in both.shapes}


def text_matrices(source: Source) -> int:
    """How many matrices of the text side, short of its transformer, lie beside the image tower.

    The published checkpoints keep three such, which fine-tuning of the image tower leaves as they
    were; the paper edition of the subspace metrics counts them.
    """
    if isinstance(source, Mapping):
        names = set(source)
    else:
        with ExitStack() as stack:
            names = set(_raw(Path(source), stack).shapes)
    if any(name.startswith("visual.") for name in names):
        return len(names.intersection(TEXT_MATRICES))
    theirs = {f"text_model.{TEXT[name]}" for name in TEXT_MATRICES if name in TEXT}
    return len(names & (theirs | {"text_projection.weight"}))


def _raw(path: Path, stack: ExitStack) -> Weights:
    """A checkpoint under its own names."""
    if path.is_dir():
        return _directory(path, stack)
    if not path.is_file():
        raise MergelibError(
            f"{path} is missing: give the path of a safetensors, .pt, .pth or .bin file, or of a "
            "Hugging Face CLIP directory"
        )
    return _pickled(path) if path.suffix in PICKLED else _safetensors(path, stack)


def _safetensors(path: Path, stack: ExitStack) -> Weights:
    try:
        file = stack.enter_context(safe_open(path, framework="pt"))
    except (SafetensorError, OSError, ValueError) as error:
        raise MergelibError(
            f"{path} is truncated or no safetensors file ({error}): write or copy it again"
        ) from None
    stat = path.stat()
    shapes, dtypes = _header(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)

    def cut(name: str, rows: slice) -> Tensor:
        # pages count as memory until their file closes: a mapping of its own, let go with the rows
        with safe_open(path, framework="pt") as again:
            return again.get_slice(name)[rows]

    return Weights(str(path), shapes, dtypes, file.get_tensor, cut=cut)


@lru_cache(maxsize=256)  # sweeps open a file again and again, to let go of what was mapped
def _header(path: Path, *stamp: int) -> tuple[dict[str, tuple[int, ...]], dict[str, torch.dtype]]:
    """Shapes and types by name. Raises MergelibError, naming the tensor, for an unknown type."""
    with safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    for name, part in slices.items():
        if part.get_dtype() not in DTYPES:
            raise MergelibError(
                f"{path}: tensor {name!r} is of type {part.get_dtype()}, which torch does not "
                "know: save it in another one, float32 say"
            )
    return shapes, {name: DTYPES[part.get_dtype()] for name, part in slices.items()}


def _pickled(path: Path) -> Weights:
    held = _load(path)
    if isinstance(held, Mapping) and isinstance(held.get("state_dict"), Mapping):
        held = held["state_dict"]
    mend = "save the state dict alone, torch.save(model.state_dict(), path)"
    if not isinstance(held, Mapping):
        raise MergelibError(f"{path} holds a {type(held).__name__}, no state dict: {mend}")
    for name, value in held.items():
        if not isinstance(value, Tensor):
            raise MergelibError(f"{path}: {name!r} is a {type(value).__name__}, no tensor: {mend}")
    prefix = "module."  # of a model that was trained on several devices
    if held and all(name.startswith(prefix) for name in held):
        held = {name.removeprefix(prefix): value for name, value in held.items()}
    return of_mapping(held, str(path))


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
    except (RuntimeError, EOFError, OSError, LookupError, ValueError, UnpicklingError) as error:
        text = str(error)
        refused = isinstance(error, UnpicklingError) and ("GLOBAL" in text or is_zipfile(path))
        if refused or "TorchScript" in text:
            raise MergelibError(
                f"{path} holds pickled objects besides tensors, which could run code and are not "
                "loaded: save the state dict alone, torch.save(model.state_dict(), path), or as "
                "safetensors"
            ) from None
        reason = text.splitlines()[0].split(". ")[0] if text else type(error).__name__
        raise MergelibError(
            f"{path} is truncated or no PyTorch file ({reason}): write or copy it again"
        ) from None


def _directory(path: Path, stack: ExitStack) -> Weights:
    if not (path / "config.json").is_file():
        raise MergelibError(
            f"{path} has no config.json: give a Hugging Face CLIP directory, or a checkpoint file"
        )
    kind = read_json(path / "config.json").get("model_type")
    if kind not in ("clip", "clip_vision_model"):
        raise MergelibError(
            f"{path} holds a model of type {kind!r}: only CLIP (clip, clip_vision_model) is known"
        )
    for name in IN_DIRECTORY:
        if (path / name).is_file():
            return _raw(path / name, stack)
        if (path / f"{name}.index.json").is_file():
            return _shards(path, read_json(path / f"{name}.index.json"), stack)
    raise MergelibError(f"{path} has neither {' nor '.join(IN_DIRECTORY)}: copy the weights there")


def _shards(path: Path, index: Mapping, stack: ExitStack) -> Weights:
    where: dict[str, str] = index["weight_map"]
    files = {name: _raw(path / name, stack) for name in sorted(set(where.values()))}
    for name, file in where.items():
        if name not in files[file].shapes:
            raise MergelibError(f"{path / file} lacks tensor {name!r}, which the index puts there")
    return Weights(
        str(path),
        {name: files[file].shapes[name] for name, file in where.items()},
        {name: files[file].dtypes[name] for name, file in where.items()},
        lambda name: files[where[name]].get(name),
        cut=lambda name, rows: files[where[name]].part(name, rows),
    )
