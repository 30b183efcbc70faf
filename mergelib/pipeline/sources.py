"""The source files behind a computation, found in the import graph of the package.

An artifact is kept under a key that holds a digest of the code that computed it: the file of its
unit and every file of mergelib which that one imports, directly or indirectly, inside functions
too. So a changed formula is never answered from before, however far away it stands.

Two kinds of import are not followed. A package's own `__init__` counts only where something is
imported from it by name: those of the registries import every metric, method and task, to register
them, and a merge by one method has nothing to do with the others. And `PLUMBING` decides which
artifact is made and where it lies; what it passes on is in the key by value.
"""

import importlib.util
import inspect
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import grimp

from mergelib.core.errors import MergelibError
from mergelib.core.store import digest, file_digest

PACKAGE = "mergelib"
PLUMBING = frozenset(f"{PACKAGE}.pipeline.{name}" for name in ("keys", "params", "sources"))


@lru_cache
def _graph() -> grimp.ImportGraph:
    """The imports of the package, without the plumbing. Reading them takes a tenth of a second."""
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    for module in PLUMBING:
        graph.remove_module(module)
    return graph


@lru_cache
def modules_behind(*entries: str) -> tuple[str, ...]:
    """The modules named, and all of mergelib that they import, directly or indirectly; sorted."""
    found = set(entries)
    for entry in entries:
        found |= _graph().find_upstream_modules(entry)
    return tuple(sorted(found))


@lru_cache
def code_behind(*entries: str) -> str:
    """Digest of the source files of `modules_behind`."""
    return digest([(module, _file_digest(module)) for module in modules_behind(*entries)])


def code_of(function: Callable) -> str:
    """Digest of what a registered function computes with, be it ours or a plug-in's.

    Ours: `code_behind` its module. From another installed package: all sources of that package.
    From a script or a notebook: the function's own text. Raises MergelibError if that is not to be
    found.
    """
    while isinstance(function, partial):
        function = function.func
    function = inspect.unwrap(function)
    module = function.__module__
    if module in _graph().modules:
        return code_behind(module)
    top = sys.modules.get(module.partition(".")[0])
    folders = [Path(folder) for folder in getattr(top, "__path__", ())]
    if folders:
        return digest(module, [_tree_digest(folder) for folder in folders])
    try:
        return digest(module, inspect.getsource(function))
    except OSError:
        raise MergelibError(
            f"the source of {function.__qualname__} is not to be found, so what it computes cannot "
            "be kept: define it in a file"
        ) from None


@lru_cache
def _tree_digest(folder: Path) -> str:
    files = sorted(folder.rglob("*.py"))
    return digest([(file.relative_to(folder).as_posix(), file_digest(file)) for file in files])


@lru_cache
def _file_digest(module: str) -> str:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise MergelibError(f"module {module} has no source file: install mergelib as files")
    return file_digest(Path(spec.origin))
