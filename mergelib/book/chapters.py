"""Chapters run with papermill, each again only when something that it depends on has changed."""

import os
import platform
import sys
import time
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mergelib.book.contents import below
from mergelib.book.notebooks import clean, declared, read_notebook, write_notebook
from mergelib.core.errors import MergelibError
from mergelib.core.store import digest, file_digest, write_atomic

COMPUTES = ("numpy", "pandas", "scikit-learn", "torch", "matplotlib", "seaborn", "papermill")


# ---- What a chapter depends on ----------------------------------------------------------------


@cache
def contents(path: Path) -> str:
    """Digest of a file, or of all files below a folder with their names."""
    if path.is_file():
        return file_digest(path)
    return digest([[file.relative_to(path).as_posix(), file_digest(file)] for file in below(path)])


def beside(folder: Path) -> list[list[str]]:
    """Data that lies in the chapters' folder: tables and modules, not prose."""
    return [
        [file.relative_to(folder).as_posix(), contents(file)]
        for file in below(folder)
        if file.suffix not in (".ipynb", ".md")
    ]


def chapter_key(path: Path, parameters: Mapping[str, Any]) -> str:
    """Digest of all that a chapter's outputs depend on.

    A string parameter that names a file or folder (seen from the chapter's folder) counts with its
    contents, whether it was passed or is the chapter's default.
    """
    notebook = read_notebook(path)
    values = declared(notebook) | dict(parameters)
    named = {
        name: contents((path.parent / value).resolve())
        for name, value in sorted(values.items())
        if isinstance(value, str) and value and (path.parent / value).exists()
    }
    cells = [[c.cell_type, c.source, list(c.metadata.get("tags", []))] for c in notebook.cells]
    return digest(
        cells,
        {name: repr(value) for name, value in sorted(parameters.items())},
        named,
        beside(path.parent),
        contents(Path(__file__).parent),
        platform.python_version(),
        [version(name) for name in COMPUTES],
    )


# ---- Running a chapter ------------------------------------------------------------------------


def execute(path: Path, target: Path, parameters: Mapping[str, Any], root: Path) -> None:
    """Run a chapter in its own folder; write it with clean outputs to `target`.

    Raises MergelibError naming the chapter, the cell and the exception; then nothing is written.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    draft = target.with_suffix(".draft.ipynb")
    draft.parent.mkdir(parents=True, exist_ok=True)
    try:
        _settle_environment()
        papermill.execute_notebook(
            str(path),
            str(draft),
            parameters=dict(parameters),
            kernel_name="python3",
            language="python",
            cwd=str(path.parent),
            progress_bar=False,
            extra_arguments=["--log-level=40"],  # the kernel remarks on its loopback transport
        )
        notebook = read_notebook(draft)
    except PapermillExecutionError as error:
        raise MergelibError(
            f"chapter {path.name} failed in cell [{error.exec_count}] "
            f"`{_line(error.source, 0)}`: {error.ename}: {_line(error.evalue, -1)}"
        ) from None
    except RuntimeError as error:
        raise MergelibError(f"chapter {path.name}: its kernel stopped ({error})") from None
    finally:
        draft.unlink(missing_ok=True)
    write_notebook(target, clean(notebook, root, path.name))


def _settle_environment() -> None:
    """A kernel inherits ours: a backend set there would keep its figures out of the chapter."""
    os.environ.pop("MPLBACKEND", None)
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")


def _line(text: str, which: int) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[which] if lines else ""


def execute_if_changed(
    path: Path, target: Path, passed: Mapping[str, Any], key: str, root: Path
) -> None:
    stamp = target.with_suffix(".key")
    if target.is_file() and stamp.is_file() and stamp.read_text() == key:
        print(f"{path.stem}: unchanged", file=sys.stderr)
        return
    stamp.unlink(missing_ok=True)
    start = time.perf_counter()
    execute(path, target, passed, root)
    write_atomic(stamp, key.encode())
    print(f"{path.stem}: run in {time.perf_counter() - start:.0f} s", file=sys.stderr)
