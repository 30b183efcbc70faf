"""The book: chapters run in order with papermill, rendered by Jupyter Book, then checked.

Running and rendering are kept apart. A chapter runs again when anything its numbers depend on has
changed (its own source, this library, its parameters, the tables, the versions of what computes);
Jupyter Book's own cache knows the notebook alone and would leave stale numbers standing.
"""

import os
import shutil
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mergelib.book.chapters import beside, chapter_key, contents, execute_if_changed
from mergelib.book.contents import entries, sources
from mergelib.book.notebooks import clean, commit_outputs, declared, read_notebook, write_notebook
from mergelib.book.pages import check_links, check_pages, render
from mergelib.book.twins import RELEASED, lacks_released, sync_twin
from mergelib.core.errors import MergelibError
from mergelib.core.store import digest, write_atomic

RENDERS = ("jupyter-book", "sphinx", "myst-nb", "sphinx-book-theme", "sphinx-mathjax-offline")


# ---- The whole --------------------------------------------------------------------------------


def build(
    source: Path,
    tables: Path | None = None,
    out: Path | None = None,
    parameters: Mapping[str, Any] | None = None,
    commit: bool = False,
    released: Path | None = None,
) -> list[Path]:
    """Run the chapters of `source` in order, render and check them; returns the pages.

    `tables` and `released` are handed to each chapter that declares a parameter of that name,
    relative to the chapter's folder; `parameters` likewise by name. A chapter that reads the
    released tables is shown with its committed outputs where they are not at hand. While anything
    is wrong there is no `out` (default `source/_build/html`): a reader never meets a page of an
    earlier state. With `commit` twins follow their chapters, and the outputs also go into the
    chapters' own files; they must then run with their defaults.

    Raises MergelibError if a chapter fails, a page is missing, or a link is broken.
    """
    source = Path(source).resolve()
    out = (Path(out) if out else source / "_build" / "html").resolve()
    executed = source / "_build" / "book"
    if commit and (tables or parameters or released):
        raise MergelibError("--commit-outputs keeps what the defaults give: leave the others out")
    if tables and not Path(tables).is_dir():
        raise MergelibError(f"there is no folder of tables {tables}: write it with `mergelib run`")
    if released and not (Path(released) / "results").is_dir():
        raise MergelibError(f"{released} is no checkout of the released tables: see the README")
    contents.cache_clear()
    names = entries(source)
    chapters = [path for path in sources(source, names) if path.suffix == ".ipynb"]
    if commit:
        for path in chapters:
            if path.with_stem(f"{path.stem}{RELEASED}").is_file():
                sync_twin(path)
    folders = {"tables": tables, "released": released}
    plan = {p: _passed(p, folders, parameters or {}) for p in chapters}
    _refuse_unknown(parameters or {}, plan)
    keys = {path: chapter_key(path, passed) for path, passed in plan.items()}
    stamp = executed / "html.key"
    state = digest(str(out), _site_key(source, names, keys))
    done = out.is_dir() and stamp.is_file() and stamp.read_text() == state
    if not done:
        shutil.rmtree(out, ignore_errors=True)
        stamp.unlink(missing_ok=True)
    for path, passed in plan.items():
        target = executed / path.relative_to(source)
        if lacks_released(path, passed):
            print(f"{path.stem}: as committed, the released tables are not here", file=sys.stderr)
            write_notebook(target, clean(read_notebook(path), source, path.name))
            target.with_suffix(".key").unlink(missing_ok=True)
            continue
        execute_if_changed(path, target, passed, keys[path], source)
        if commit:
            commit_outputs(path, target)
    if not done:
        rendered = render(source, executed, executed.with_name("render"))
        check_pages(rendered, names)
        check_links(rendered)
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(rendered, out)
        write_atomic(stamp, state.encode())
    return check_pages(out, names)


def _passed(
    path: Path, folders: Mapping[str, Path | None], parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """The parameters that this chapter declares, `folders` seen from its own."""
    wanted = dict(parameters)
    for name, folder in folders.items():
        if folder:
            wanted[name] = Path(os.path.relpath(Path(folder).resolve(), path.parent)).as_posix()
    names = declared(read_notebook(path))
    return {name: value for name, value in wanted.items() if name in names}


def _refuse_unknown(parameters: Mapping[str, Any], plan: Mapping[Path, Mapping[str, Any]]) -> None:
    known = set().union(*plan.values()) if plan else set()
    unknown = [name for name in parameters if name not in known]
    if unknown:
        raise MergelibError(
            f"no chapter has a parameter {', '.join(unknown)}: see the cells tagged `parameters`"
        )


def _site_key(source: Path, names: list[str], keys: Mapping[Path, str]) -> str:
    """Digest of all that the rendered pages depend on."""
    prose = [path for path in sources(source, names) if path.suffix == ".md"]
    files = [p for p in (source / "_config.yml", source / "_toc.yml", *prose) if p.is_file()]
    folders = {path.parent for path in (*prose, *keys)}
    return digest(
        [contents(path) for path in files],
        [beside(folder) for folder in sorted(folders)],
        list(keys.values()),
        [version(name) for name in RENDERS],
    )
