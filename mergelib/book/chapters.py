"""Chapters run with papermill, each again only when something that it depends on has changed."""

import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergelib.book.notebooks import clean, read_notebook, write_notebook
from mergelib.book.parameters import parameters
from mergelib.core.errors import MergelibError
from mergelib.core.interrupts import exit_on_interrupt
from mergelib.core.store import write_atomic
from mergelib.published.released import find_checkout

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Run:
    """A chapter to run: its file, where its executed copy goes, what is passed, its key."""

    path: Path
    target: Path
    values: Mapping[str, Any]
    key: str
    root: Path  # of the book; paths in outputs are seen from there

    @property
    def stamp(self) -> Path:
        """The file that holds the key of the executed copy."""
        return self.target.with_suffix(".key")


def lacks_released(path: Path, values: Mapping[str, Any]) -> bool:
    """Whether a chapter needs a checkout of the released tables that is not where it looks.

    Such a chapter declares a parameter `released`; empty, `find_checkout` looks beside the book's
    repository.
    """
    held = parameters(read_notebook(path))
    if "released" not in held:
        return False
    given = str(values.get("released", held["released"].default) or "")
    try:
        find_checkout(path.parent / given if given else "", path.resolve().parents[1])
    except MergelibError:
        return True
    return False


def run_changed(runs: Iterable[Run], jobs: int = 1) -> None:
    """Run the chapters whose key is new, in order, `jobs` at a time.

    The first failure is raised; chapters that have not begun by then are left.
    """
    changed = []
    for run in runs:
        if run.target.is_file() and run.stamp.is_file() and run.stamp.read_text() == run.key:
            print(f"{run.path.stem}: unchanged", file=sys.stderr)
        else:
            changed.append(run)
    if jobs == 1 or len(changed) < 2:
        for run in changed:
            _run(run)
        return
    # Processes: a kernel's client wants the main thread, where an interrupt reaches it.
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), exit_on_interrupt)
    try:
        for done in [pool.submit(_run, run) for run in changed]:
            done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _run(run: Run) -> None:
    run.stamp.unlink(missing_ok=True)
    start = time.perf_counter()
    execute(run.path, run.target, run.values, run.root)
    write_atomic(run.stamp, run.key.encode())
    print(f"{run.path.stem}: run in {time.perf_counter() - start:.0f} s", file=sys.stderr)


def execute(path: Path, target: Path, values: Mapping[str, Any], root: Path) -> None:
    """Run a chapter in its own folder; write it with clean outputs to `target`.

    Raises MergelibError naming the chapter, the cell and the exception; then nothing is written.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    draft = target.with_suffix(".draft.ipynb")
    draft.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _kernel_environment():
            papermill.execute_notebook(
                str(path),
                str(draft),
                parameters=dict(values),
                kernel_name="python3",
                language="python",
                cwd=str(path.parent),
                progress_bar=False,
                extra_arguments=["--log-level=40"],  # it remarks on its loopback transport
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


@contextmanager
def _kernel_environment() -> Iterator[None]:
    """What a kernel inherits from us, put back afterwards.

    No backend, which would keep its figures out of the chapter; one thread unless the user says
    otherwise, so that numbers do not depend on how many chapters run at a time.
    """
    touched = ("MPLBACKEND", "PYDEVD_DISABLE_FILE_VALIDATION", *THREADS)
    before = {name: os.environ[name] for name in touched if name in os.environ}
    os.environ.pop("MPLBACKEND", None)
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    for name in THREADS:
        os.environ.setdefault(name, "1")
    try:
        yield
    finally:
        for name in touched:
            os.environ.pop(name, None)
        os.environ.update(before)


def _line(text: str, which: int) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[which] if lines else ""
