"""What is given model by model in words: NAME=PATH, or paths in the models' order."""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from mergelib.checkpoints.names import names_of_paths
from mergelib.core.errors import MergelibError

FOLDERS = "folders"  # in place of a file of class names: those of the folders of classes


def models_of(words: Sequence[str]) -> dict[str, Path]:
    """Models by name: as given, or what tells their paths apart.

    Raises MergelibError for a name or a file that comes twice.
    """
    pairs = [_parted(word) for word in words]
    paths = [Path(path) for _, path in pairs]
    found = names_of_paths(paths)
    names = [name or own for (name, _), own in zip(pairs, found, strict=True)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise MergelibError(f"two models are named {twice!r}: give each a name of its own")
    return dict(zip(names, paths, strict=True))


def by_name(
    words: Sequence[str] | None, models: Mapping[str, object], what: str
) -> dict[str, str] | None:
    """What is given a model, by the models' names; of `classes` without a file, the folders' names.

    Raises MergelibError for another number than of models, and for a name that comes twice.
    """
    if what == "classes" and words is not None and not words:
        return dict.fromkeys(models, FOLDERS)
    if not words:
        return None
    pairs = [_parted(word) for word in words]
    named = [name for name, _ in pairs if name]
    if not named:
        if len(pairs) != len(models):
            raise MergelibError(
                f"{len(models)} models and {len(pairs)} of --{what}: give one a model, in their "
                f"order, or by name ({next(iter(models))}=PATH)"
            )
        return dict(zip(models, (path for _, path in pairs), strict=True))
    if len(named) < len(pairs):
        raise MergelibError(f"--{what}: give all with a name, or all in the models' order")
    if len(set(named)) < len(named):
        twice = next(name for name in named if named.count(name) > 1)
        raise MergelibError(f"--{what} of {twice!r} is given twice: give each once")
    return {name: path for name, path in pairs if name}


def as_words(given: Mapping[str, object]) -> str:
    """What is given model by model, in words that a shell, or `in_shell`, takes apart again.

    Paths are made absolute. Raises MergelibError for a model in memory.
    """
    for name, each in given.items():
        if not isinstance(each, str | Path):
            raise MergelibError(f"a report asks for models on disk: give the path of {name!r}")
    return shlex.join(f"{name}={_absolute(str(each))}" for name, each in given.items())


def _absolute(path: str) -> str:
    return path if path == FOLDERS else os.path.abspath(path)


def in_shell(words: str) -> list[str]:
    """Words as a shell takes them apart. Raises MergelibError where a quotation is left open."""
    try:
        return shlex.split(words)
    except ValueError as error:
        raise MergelibError(f"{words!r}: {error}: close the quotation") from None


def _parted(word: str) -> tuple[str, str]:
    """Name and path of NAME=PATH; a path that is there may have a sign of its own."""
    name, sign, path = word.partition("=")
    if not sign or Path(word).exists():
        return "", word
    if not name or not path:
        raise MergelibError(f"{word!r} is no NAME=PATH")
    return name, path
