"""Checkpoints written tensor by tensor, in any order, with one tensor in memory.

By the name of what is written: `.safetensors`, one file, or shards beside each other with their
index; `.pt`, `.pth` and `.bin`, a state dict as torch.save writes it, for which all tensors are in
memory; a name without suffix, a model folder as Hugging Face's libraries read it.

All is written to a temporary folder beside the place and moved there at the end, so the place holds
the whole result or what it held before. What a killed process left there goes with the next one.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from mergelib.checkpoints.formats import DTYPES
from mergelib.checkpoints.output.casting import fitted
from mergelib.checkpoints.output.companions import copy_companions, library
from mergelib.checkpoints.output.shards import Spec, bytes_of, cut, index_of, size_in_bytes
from mergelib.core.atomic import temporary_folder, unwritten
from mergelib.core.errors import MergelibError

Put = Callable[[str, Tensor], None]

PICKLED = (".pt", ".pth", ".bin")
STEM = "model"  # of the weights in a folder
FOLDER_LIMIT = 5 * 10**9  # of a shard there, as Hugging Face has it
ONE_FILE = ("open_clip", "timm")  # libraries that read no shards


@contextmanager
def writer(
    out: Path | str,
    spec: Spec,
    *,
    like: Path | str | None = None,
    max_shard_size: int | str | None = None,
    metadata: Mapping[str, str] | None = None,
    texts: Mapping[str, str] | None = None,
) -> Iterator[Put]:
    """A function put(name, tensor) that takes every tensor of `spec` once, cast to its type there.

    `max_shard_size`: see `shards.size_in_bytes`. `metadata` go into safetensors files. For a folder
    `like` is the model folder whose small files come along (`companions`), and `texts` are further
    files by name, a model card say. Whatever is raised inside, nothing stays behind.
    Raises MergelibError for a place that cannot be written or must not be replaced (a folder that
    is not empty, a checkpoint in shards), an unknown suffix, a pickled file in shards, a type that
    safetensors has no name for, too little space, and a tensor that is missing at the end, unknown,
    given twice, of another shape, or that its type cannot hold (`casting`).
    """
    out = Path(out)
    plan = _plan(out, spec, max_shard_size, None if like is None else Path(like))
    home = next(folder for folder in out.absolute().parents if folder.exists())
    _check_place(out, plan, home, sum(bytes_of(*each) for each in spec.values()))
    held: dict[str, Tensor] = {}
    given: set[str] = set()
    with ExitStack() as stack:
        with _told(out):
            temporary = stack.enter_context(temporary_folder(home))
            if out.suffix in PICKLED:
                write: Put = held.__setitem__
            else:
                write = _streams(temporary, plan, metadata or {})

        def put(name: str, tensor: Tensor) -> None:
            if name not in spec or name in given:
                fault = "given twice" if name in given else "not among those to be written"
                raise MergelibError(f"{out}: tensor {name!r} is {fault}")
            given.add(name)
            tensor = fitted(name, tensor, *spec[name])
            with _told(out):
                write(name, tensor.clone() if out.suffix in PICKLED else tensor)

        yield put
        missing = [name for name in spec if name not in given]
        if missing:
            raise MergelibError(f"{out}: tensor {missing[0]!r} was never given")
        with _told(out):
            if out.suffix in PICKLED:
                torch.save({name: held[name] for name in spec}, temporary / out.name)
            _finish(out, temporary, plan, like, spec, texts or {})


def is_folder(out: Path) -> bool:
    """Whether a model folder is written under that name. Raises MergelibError for a wrong suffix.

    A dot before anything but letters is part of a name: llama-3.1-merged.
    """
    if out.suffix in (".safetensors", *PICKLED):
        return False
    if re.fullmatch(r"\.[A-Za-z]+", out.suffix) and not out.is_dir():
        raise MergelibError(
            f"{out} has an unknown suffix: write .safetensors, {', '.join(PICKLED)}, or a folder, "
            "whose name has none"
        )
    return True


def _plan(out: Path, spec: Spec, limit: int | str | None, like: Path | None) -> dict[str, Spec]:
    """What goes into which file."""
    most = None if limit is None else size_in_bytes(limit)
    if is_folder(out):
        if most is None and (like is None or library(like) not in ONE_FILE):
            most = FOLDER_LIMIT
        return cut(spec, STEM, most)
    if out.suffix == ".safetensors":
        return cut(spec, out.stem, most)
    if most is not None:
        raise MergelibError(f"{out} cannot be in shards: write .safetensors or a folder")
    return {out.name: spec}


def _check_place(out: Path, plan: Mapping[str, Spec], home: Path, size: int) -> None:
    """Raise MergelibError, before any work, if the result could not be put there."""
    index = out.with_name(f"{out.name}.index.json")
    if is_folder(out):
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise MergelibError(f"{out} exists already: give a new folder, or an empty one")
    elif out.is_dir():
        raise MergelibError(f"{out} is a folder: give the name of a file")
    elif out.suffix == ".safetensors" and index.exists():
        raise MergelibError(f"{out} is there in shards ({index}): delete them, or write elsewhere")
    elif len(plan) > 1 and out.exists():
        raise MergelibError(f"{out} exists already, in one file: delete it, or write elsewhere")
    if not home.is_dir():
        raise MergelibError(f"{out} cannot be written: {home} is no folder")
    free = shutil.disk_usage(home).free
    if free < size:
        raise MergelibError(
            f"{out} takes {size / 1e9:.3g} GB, but only {free / 1e9:.3g} GB are free there: make "
            "room, or write elsewhere"
        )


@contextmanager
def _told(out: Path) -> Iterator[None]:
    """Tell what the system, or torch.save, could not write."""
    try:
        yield
    except OSError as error:
        raise unwritten(out, error) from None
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise MergelibError(
            f"{out} cannot be written ({reason}): check the room and the rights there"
        ) from None


def _streams(folder: Path, plan: Mapping[str, Spec], metadata: Mapping[str, str]) -> Put:
    """Start the safetensors files; a function that writes a tensor to its place in its file."""
    places: dict[str, tuple[Path, int]] = {}
    for file, part in plan.items():
        start, offsets = header(part, metadata)
        (folder / file).write_bytes(start)
        places |= {name: (folder / file, offset) for name, offset in offsets.items()}

    def write(name: str, tensor: Tensor) -> None:
        path, offset = places[name]
        with path.open("rb+") as file:  # opened for every tensor: there may be many shards
            file.seek(offset)
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)

    return write


def header(spec: Spec, metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """The beginning of a safetensors file, and where in the file each tensor starts.

    Tensors of wide numbers come first, so that every one is aligned, as the format's own writer has
    it. Raises MergelibError, naming the tensor, for a type that the format has no name for.
    """
    kinds = {dtype: kind for kind, dtype in DTYPES.items()}
    told: dict[str, dict] = {"__metadata__": {**metadata, "format": "pt"}}
    offsets, end = {}, 0
    for name, (dtype, shape) in sorted(spec.items(), key=lambda item: -item[1][0].itemsize):
        if dtype not in kinds or name in told:
            raise MergelibError(f"tensor {name!r} of type {dtype} cannot be written as safetensors")
        offsets[name], end = end, end + bytes_of(dtype, shape)
        told[name] = {
            "dtype": kinds[dtype],
            "shape": list(shape),
            "data_offsets": [offsets[name], end],
        }
    text = json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    start = len(text).to_bytes(8, "little") + text
    return start, {name: len(start) + offset for name, offset in offsets.items()}


def _finish(
    out: Path,
    temporary: Path,
    plan: Mapping[str, Spec],
    like: Path | str | None,
    spec: Spec,
    texts: Mapping[str, str],
) -> None:
    """Write what belongs beside the weights, and put everything in place."""
    names = list(plan)
    if len(plan) > 1:
        stem = STEM if is_folder(out) else out.stem
        names.append(f"{stem}.safetensors.index.json")  # last: whoever finds it finds the shards
        text = json.dumps(index_of(plan), indent=2, sort_keys=True)
        (temporary / names[-1]).write_text(text + "\n", encoding="utf-8")
    for name in names:
        with (temporary / name).open("rb+") as file:
            os.fsync(file.fileno())
    out.parent.mkdir(parents=True, exist_ok=True)
    if is_folder(out):
        if like is not None:
            copy_companions(Path(like), temporary, spec)
        for name, text in texts.items():
            (temporary / name).write_text(text, encoding="utf-8")
        temporary.rename(out)
        return
    placed: list[Path] = []
    try:
        for name in names:
            (temporary / name).replace(out.with_name(name))
            placed.append(out.with_name(name))
    except BaseException:
        for path in placed:
            path.unlink()
        raise
