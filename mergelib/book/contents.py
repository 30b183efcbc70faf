"""What the book consists of: the pages of the table of contents and the files below a folder."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mergelib.core.errors import MergelibError
from mergelib.core.yaml_files import read_yaml

PICTURES = (".png", ".svg", ".jpg", ".gif")


def entries(source: Path) -> list[str]:
    """The pages of `_toc.yml` in reading order, root first, without suffix.

    Raises MergelibError if the file is missing, malformed, or names a page that does not exist.
    """
    path = Path(source) / "_toc.yml"
    if not path.is_file():
        raise MergelibError(f"{path} is missing: run this in the book's root folder")
    toc = read_yaml(path)
    if "root" not in toc:
        raise MergelibError(f"{path} names no `root` page: add one")
    names = [re.sub(r"\.(md|ipynb)$", "", name) for name in (str(toc["root"]), *_files(toc))]
    for name in names:
        if _page_source(Path(source), name) is None:
            raise MergelibError(f"{path} lists {name}, but there is no {name}.ipynb or {name}.md")
    return names


def _files(node: Any) -> Iterator[str]:
    """Every `file` of a table of contents, in order, however deep."""
    if isinstance(node, dict):
        if "file" in node:
            yield str(node["file"])
        for value in node.values():
            yield from _files(value)
    elif isinstance(node, list):
        for item in node:
            yield from _files(item)


def _page_source(source: Path, name: str) -> Path | None:
    paths = (source / f"{name}{suffix}" for suffix in (".ipynb", ".md"))
    return next((path for path in paths if path.is_file()), None)


def sources(source: Path, names: list[str]) -> list[Path]:
    return [path for name in names if (path := _page_source(source, name))]


def below(folder: Path) -> list[Path]:
    """Files below a folder in order of name, without caches and hidden ones."""
    found = sorted(file for file in folder.rglob("*") if file.is_file())
    parts = {file: file.relative_to(folder).parts for file in found}
    return [f for f in found if not any(p[0] == "." or p == "__pycache__" for p in parts[f])]
