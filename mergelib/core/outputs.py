"""Whether what a command is to write can be written, asked before any work."""

import errno
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from mergelib.core.atomic import unwritten
from mergelib.core.errors import MergelibError

TABLES = (".csv", ".parquet")  # what `mergelib.core.store.write_table` writes


def check_output(
    path: Path, inputs: Iterable[Path] = (), suffixes: Sequence[str] = (), folder: bool = False
) -> None:
    """Raise MergelibError, with the mend, where `path` cannot become a file or a new `folder`.

    That is: something else is there (of folders, one that is not empty), it cannot be created or
    written, it is one of `inputs`, by whatever name, lies inside one or holds one, or its suffix is
    none of `suffixes`. Nothing is left behind.
    """
    path = Path(path)
    try:
        _check_apart(path, [Path(each) for each in inputs], folder)
        if folder:
            _check_new_folder(path)
        else:
            _check_file(path)
        check_suffix(path, suffixes)
        _probe(path / "x" if folder else path)
    except OSError as error:
        raise unwritten(path, error) from None


def check_folder(path: Path, inputs: Iterable[Path] = ()) -> None:
    """Raise MergelibError, with the mend, where `path` cannot be a folder to write files into.

    It may be there and hold files (a cache, a folder of tables). It must not be one of `inputs` or
    lie inside one. Nothing is left behind.
    """
    path = Path(path)
    try:
        _check_apart(path, [Path(each) for each in inputs], False)
        if os.path.lexists(path) and not path.is_dir():
            raise MergelibError(f"{path} is a file, and a folder is wanted: give another path")
        _probe(path / "x")
    except OSError as error:
        raise unwritten(path, error) from None


def check_suffix(path: Path, suffixes: Sequence[str]) -> None:
    """Raise MergelibError for a file whose name ends in none of `suffixes` (any, if empty)."""
    if suffixes and path.suffix not in suffixes:
        *first, last = suffixes
        known = f"{', '.join(first)} or {last}" if first else last
        raise MergelibError(f"{path}: what is written here ends in {known}: name it so")


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise MergelibError(f"{path} is a folder, and a file is wanted: give a file's name in it")
    if path.exists() and not path.is_file():
        raise MergelibError(f"{path} is a device or the like, no file: give a file's name")


def _check_new_folder(path: Path) -> None:
    if os.path.lexists(path) and not path.is_dir():
        raise MergelibError(f"{path} is a file, and a folder is wanted: give another path")
    if path.is_dir() and any(path.iterdir()):
        raise MergelibError(f"{path} holds files already: give a new folder, or empty it")


def _check_apart(path: Path, inputs: Sequence[Path], folder: bool) -> None:
    """Inputs are not written over, by whatever name, nor anything put among them."""
    here = Path(os.path.realpath(path))
    for each in filter(os.path.exists, inputs):  # of one that is missing, its reader says so
        there = Path(os.path.realpath(each))
        if _same(path, each):
            raise MergelibError(f"{path} is {_called(path, each)}: give another path")
        if each.is_dir() and (there in here.parents or any(_same(path, f) for f in each.iterdir())):
            raise MergelibError(f"{path} is a part of the input {each}: write it elsewhere")
        if folder and here in there.parents:
            raise MergelibError(f"{path} holds the input {each}: give a folder of its own")


def _same(one: Path, other: Path) -> bool:
    both = os.path.exists(one) and os.path.exists(other)
    return both and os.path.samefile(one, other)


def _called(path: Path, each: Path) -> str:
    return "one of the inputs" if str(path) == str(each) else f"one of the inputs, {each}"


def _probe(path: Path) -> None:
    """Create a file in the nearest folder above `path` that is there, write to it, remove it."""
    missing = [path.name]
    folder = path.parent
    while not os.path.lexists(folder):
        missing.append(folder.name)
        folder = folder.parent
    if not folder.is_dir():
        raise MergelibError(f"{path} cannot be written ({folder} is no folder): give another path")
    for name in missing:
        if len(os.fsencode(name)) > _longest(folder):
            raise OSError(errno.ENAMETOOLONG, "")
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"x")
        file.flush()


def _longest(folder: Path) -> int:
    """How many bytes a file's name may have there."""
    return os.pathconf(folder, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
