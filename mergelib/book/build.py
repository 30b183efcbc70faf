"""The book: chapters run in order with papermill, rendered by Jupyter Book, then checked.

Running and rendering are kept apart. A chapter runs again when anything its numbers depend on has
changed (its own source, this library, its parameters, the tables, the versions of what computes);
Jupyter Book's own cache knows the notebook alone and would leave stale numbers standing.
"""

import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mergelib.book.chapters import Run, lacks_released, run_changed
from mergelib.book.contents import entries, sources
from mergelib.book.keys import chapter_key, tree_digest
from mergelib.book.notebooks import commit_outputs, read_notebook
from mergelib.book.pages import check_links, check_pages, recover, render, swap
from mergelib.book.parameters import check, parameters
from mergelib.book.site import prepare
from mergelib.core.errors import MergelibError
from mergelib.core.store import digest

RENDERS = ("jupyter-book", "sphinx", "myst-nb", "sphinx-book-theme", "sphinx-mathjax-offline")
STATE = ".state"  # in the folder of the pages: what they were rendered from


def build(
    source: Path,
    tables: Path | None = None,
    out: Path | None = None,
    passed: Mapping[str, Any] | None = None,
    commit: bool = False,
    released: Path | None = None,
    only: Sequence[str] = (),
    edition: str = "",
    jobs: int = 1,
    alone: str = "",
) -> list[Path]:
    """Run the chapters of `source` in order, render and check them; returns the pages.

    `tables` and `released` are handed to each chapter that declares a parameter of that name,
    relative to the chapter's folder; `passed` likewise by name, once every value is checked. A
    chapter that needs the released tables is shown with its committed outputs where they are not
    at hand. With `only` (beginnings of chapters' names) the others keep the outputs of their last
    run, or the committed ones. The book may be one page `alone`, named as the table of contents
    names it. `jobs` chapters run at a time. With `commit` the outputs also go
    into the chapters' own files; they must then run with their defaults.

    Pages go to `out`: by default `source/_build/html`, or `source/_build/editions/NAME/html` for a
    named `edition`, which has its own executed copies. What stood there stays until the new pages
    are rendered and checked, and for good if anything fails.

    Raises MergelibError for a parameter that no chapter can take, before anything runs; if a
    chapter fails, a page is missing, or a link is broken.
    """
    source = Path(source).resolve()
    base = source / "_build" / "editions" / _edition_name(edition) if edition else source / "_build"
    out = (Path(out) if out else base / "html").resolve()
    if commit and (tables or passed or released or edition):
        raise MergelibError("--commit-outputs keeps what the defaults give: leave the others out")
    _check_folders(tables, released)
    tree_digest.cache_clear()
    names = [alone] if alone else entries(source)
    pages = sources(source, names)
    chapters = [path for path in pages if path.suffix == ".ipynb"]
    named = _named(chapters, only)
    folders = {"tables": tables, "released": released}
    runs = _plan(source, base, named, folders, passed or {})
    run_changed(runs, jobs)
    if commit:
        for run in runs:
            commit_outputs(run.path, run.target)
    shown = {path: _shown(path, _copy(path, source, base)) for path in pages}
    _publish(source, shown, base / "render", out, names)
    return check_pages(out, names)


def _edition_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise MergelibError(f"edition {name!r} names a folder: letters, digits, - and _ only")
    return name


def _check_folders(tables: Path | None, released: Path | None) -> None:
    if tables and not Path(tables).is_dir():
        raise MergelibError(f"there is no folder of tables {tables}: write it with `mergelib run`")
    if released and not (Path(released) / "results").is_dir():
        raise MergelibError(f"{released} is no checkout of the released tables: see the README")


def _named(chapters: list[Path], only: Sequence[str]) -> list[Path]:
    """The chapters that run: all, or those whose names begin with one of `only`."""
    for start in only:
        if not any(path.stem.startswith(start) for path in chapters):
            known = ", ".join(path.stem for path in chapters)
            raise MergelibError(f"no chapter's name begins with {start!r}: there are {known}")
    return [path for path in chapters if not only or path.stem.startswith(tuple(only))]


def _plan(
    source: Path,
    base: Path,
    named: list[Path],
    folders: Mapping[str, Path | None],
    passed: Mapping[str, Any],
) -> list[Run]:
    """The chapters to run, once all that they are passed is found right."""
    declared = {path: parameters(read_notebook(path)) for path in named}
    check(declared, passed)
    runs = []
    for path in named:
        values = _values(path, declared[path], folders, passed)
        target = _copy(path, source, base)
        if lacks_released(path, values):
            print(f"{path.stem}: as committed, the released tables are not here", file=sys.stderr)
            target.with_suffix(".key").unlink(missing_ok=True)
        else:
            runs.append(Run(path, target, values, chapter_key(path, values), source))
    return runs


def _values(
    path: Path,
    declared: Mapping[str, Any],
    folders: Mapping[str, Path | None],
    passed: Mapping[str, Any],
) -> dict[str, Any]:
    """What this chapter is passed of the parameters; `folders` as seen from its own."""
    wanted = dict(passed)
    for name, folder in folders.items():
        if folder:
            wanted[name] = Path(os.path.relpath(Path(folder).resolve(), path.parent)).as_posix()
    return {name: value for name, value in wanted.items() if name in declared}


def _copy(path: Path, source: Path, base: Path) -> Path:
    """Where a chapter's executed copy lies."""
    return base / "book" / path.relative_to(source)


def _shown(path: Path, copy: Path) -> Path:
    """What the page shows: the executed copy if it is whole, else the page as committed."""
    return copy if copy.is_file() and copy.with_suffix(".key").is_file() else path


def _publish(
    source: Path, shown: Mapping[Path, Path], work: Path, out: Path, names: list[str]
) -> None:
    """Render the pages and put them at `out`, unless those of the same content stand there."""
    recover(out)
    site = work / "site"
    try:
        shutil.rmtree(work, ignore_errors=True)
        prepare(source, shown, site, names)
        tree_digest.cache_clear()
        state = digest(tree_digest(site), [version(name) for name in RENDERS])
        stamp = out / STATE
        if stamp.is_file() and stamp.read_text() == state:
            return
        rendered = render(site, work)
        check_pages(rendered, names)
        check_links(rendered)
        (rendered / STATE).write_text(state)
        swap(rendered, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
