"""The chapter that speaks of any run's tables, where the others speak of the benchmark's."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergelib.book.notebooks import read_notebook
from mergelib.book.parameters import check, parameters
from mergelib.book.report import chapter, write_page
from mergelib.core.errors import MergelibError
from mergelib.core.store import read_table
from mergelib.pairs.tables import MERGE_COLUMNS, need

PAGE = "book/16_your_run"  # as the table of contents has it
BENCHMARK = Path("book/tables/glyph20")  # what the other chapters speak of
COLUMNS = {"merges": MERGE_COLUMNS, "tasks": ["task", "n_test", "zero_shot", "fine_tuned"]}


def check_tables(folder: Path) -> None:
    """Raise MergelibError unless a folder holds the merges and the tasks of a run."""
    for name, columns in COLUMNS.items():
        file = folder / f"{name}.csv"
        need(table := read_table(file), columns, str(file))
        if not len(table):
            raise MergelibError(f"{file} has no row: make it with `mergelib run`")


def left_out(source: Path, tables: Path) -> str:
    """Why tables are not what a book's other chapters speak of; empty if they are.

    That is, if they have all of the benchmark's tasks and no other, and its methods. A book without
    the benchmark's tables or the chapter on any run speaks of whatever it is given.
    """
    if not (source / f"{PAGE}.ipynb").is_file() or not (source / BENCHMARK).is_dir():
        return ""
    (ours, our_methods), (theirs, their_methods) = map(_held, (source / BENCHMARK, tables))
    if theirs != ours:
        return f"its tasks are {len(theirs)}, and not the benchmark's {len(ours)}"
    lacking = ", ".join(sorted(our_methods - their_methods))
    return f"it lacks a method of the benchmark, {lacking}" if lacking else ""


def _held(folder: Path) -> tuple[set, set]:
    """The tasks and the methods of tables."""
    tasks, merges = (read_table(folder / f"{name}.csv") for name in ("tasks", "merges"))
    return set(tasks["task"]), set(merges["method"])


def edition_of(tables: Path) -> str:
    """The name of the edition that a folder of tables gives."""
    return "run-" + re.sub(r"[^\w.-]", "_", tables.resolve().name)


def write_own(tables: Path, path: Path, passed: Mapping[str, Any]) -> None:
    """Run the chapter on a run's tables and write it as one page that needs no network.

    The file is written whole or not at all. Raises MergelibError as `check_tables`, `chapter` and
    `write_page` do, and for parameters that the chapter does not have.
    """
    check_tables(tables)
    source = chapter(f"{Path(PAGE).name}.ipynb")
    check({source: parameters(read_notebook(source))}, passed)
    write_page(source, {**passed, "tables": os.path.abspath(tables)}, path)
