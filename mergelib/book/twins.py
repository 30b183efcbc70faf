"""Chapters rendered twice."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat

from mergelib.book.notebooks import declared, read_notebook, write_notebook
from mergelib.core.errors import MergelibError
from mergelib.pairs.tables import BENCHMARK

RELEASED = "_released"  # ends the name of a chapter's twin
TWIN = "ViT-B-16_AdamW"  # its source: the setting of the published headline numbers


# ---- Chapters on the released tables ----------------------------------------------------------


def needs_released(path: Path) -> bool:
    """Whether a chapter, with its defaults, reads a checkout of the released tables.

    It declares `released`, and no `source` or one that is not the benchmark.
    """
    values = declared(read_notebook(path))
    return "released" in values and values.get("source", "") != BENCHMARK


def lacks_released(path: Path, passed: Mapping[str, Any]) -> bool:
    """Whether it reads them and they are not where it looks."""
    if not needs_released(path):
        return False
    folder = passed.get("released", declared(read_notebook(path))["released"])
    return not (path.parent / str(folder) / "results").is_dir()


def sync_twin(path: Path) -> Path:
    """Give a chapter's twin on the released tables the chapter's cells; returns the twin.

    The twin NAME_released.ipynb lies beside NAME.ipynb. It differs in the title and in the default
    of `source`: that of the twin, or TWIN where there is none yet. Outputs of cells that stay as
    they were are kept. Raises MergelibError if the chapter's parameters have no source.
    """
    notebook = read_notebook(path)
    if declared(notebook).get("source") != BENCHMARK:
        raise MergelibError(f"{path} has no parameter `source` with the default {BENCHMARK!r}")
    target = path.with_stem(f"{path.stem}{RELEASED}")
    before = read_notebook(target) if target.is_file() else nbformat.v4.new_notebook()
    setting = declared(before).get("source", TWIN)
    outputs = {cell.source: cell.outputs for cell in before.cells if cell.cell_type == "code"}
    for k, cell in enumerate(notebook.cells):
        if k == 0:
            title, _, rest = cell.source.partition("\n")
            cell.source = f"{title}, on the released tables\n{rest}"
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = re.sub(
                rf"^(source\b.*?=\s*)(['\"]){BENCHMARK}\2",
                lambda found: f'{found[1]}"{setting}"',
                cell.source,
                flags=re.MULTILINE,
            )
        if cell.cell_type == "code":
            cell.outputs = outputs.get(cell.source, [])
    write_notebook(target, notebook)
    return target
