"""What a chapter's outputs depend on, as one digest."""

import ast
import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mergelib.book.contents import PICTURES, below
from mergelib.book.notebooks import read_notebook
from mergelib.book.parameters import parameters
from mergelib.core.store import digest, file_digest

PACKAGE = Path(__file__).resolve().parents[1]  # the library, whole
COMPUTES = ("numpy", "pandas", "scikit-learn", "torch", "matplotlib", "seaborn", "papermill")


def chapter_key(path: Path, values: Mapping[str, Any]) -> str:
    """Digest of all that a chapter's outputs depend on, with these values of its parameters.

    Its cells; the library; the modules beside it that it imports, directly or not; the tables
    beside it; the versions of what computes. A string parameter that names a file or folder (seen
    from the chapter's folder) counts with its contents, passed or default.
    """
    notebook = read_notebook(path)
    defaults = {name: held.default for name, held in parameters(notebook).items()}
    named = {
        name: tree_digest((path.parent / value).resolve())
        for name, value in sorted((defaults | dict(values)).items())
        if isinstance(value, str) and value and (path.parent / value).exists()
    }
    cells = [[c.cell_type, c.source, list(c.metadata.get("tags", []))] for c in notebook.cells]
    return digest(
        cells,
        {name: repr(value) for name, value in sorted(values.items())},
        named,
        [_named(file, path.parent) for file in (*data_beside(path.parent), *modules(path))],
        [_named(file, PACKAGE) for file in below(PACKAGE)],
        platform.python_version(),
        [version(name) for name in COMPUTES],
    )


def _named(file: Path, folder: Path) -> list[str]:
    return [file.relative_to(folder).as_posix(), tree_digest(file)]


@cache
def tree_digest(path: Path) -> str:
    """Digest of a file, or of all files below a folder with their names; kept while we run."""
    if path.is_file():
        return file_digest(path)
    return digest([[file.relative_to(path).as_posix(), file_digest(file)] for file in below(path)])


def data_beside(folder: Path) -> list[Path]:
    """The tables in a chapter's folder: not prose, code, pictures or what the pages look like."""
    others = {".ipynb", ".md", ".py", *PICTURES}
    return [
        file
        for file in below(folder)
        if file.suffix not in others and "_static" not in file.relative_to(folder).parts
    ]


def modules(path: Path) -> list[Path]:
    """The modules in a chapter's folder that it imports, directly or through each other."""
    found: set[Path] = set()
    waiting: list[tuple[str, tuple[str, ...]]] = [
        (_without_magics(cell.source), ())
        for cell in read_notebook(path).cells
        if cell.cell_type == "code"
    ]
    while waiting:
        for name in _imports(*waiting.pop()):
            new = _files(path.parent, name) - found
            found |= new
            waiting += [
                (file.read_text(encoding="utf-8"), file.parent.relative_to(path.parent).parts)
                for file in new
            ]
    return sorted(found)


def _without_magics(source: str) -> str:
    return "\n".join(line for line in source.splitlines() if not line.lstrip().startswith("%"))


def _imports(source: str, package: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Names that may be modules, in parts: `from a import b` gives a and a.b."""
    names: list[tuple[str, ...]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            around = package[: len(package) - node.level + 1] if node.level else ()
            start = (*around, *(node.module.split(".") if node.module else ()))
            names += [start, *((*start, alias.name) for alias in node.names)]
    return names


def _files(folder: Path, name: tuple[str, ...]) -> set[Path]:
    """The files of a name below a folder: the module and the packages around it."""
    heads = [folder.joinpath(*name[: k + 1]) for k in range(len(name))]
    paths = [path for head in heads for path in (head.with_suffix(".py"), head / "__init__.py")]
    return {path for path in paths if path.is_file()}
