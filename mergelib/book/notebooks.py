"""Notebooks as files: read, cleaned of what changes from run to run, written."""

import re
import sys
from pathlib import Path

import nbformat

from mergelib.book.figures import told
from mergelib.core.errors import MergelibError
from mergelib.core.store import write_atomic

INJECTED = "injected-parameters"


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """Read a notebook. Raises MergelibError if it is none."""
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises whatever JSON and its schema raise
        raise MergelibError(f"{path} is no notebook ({error}): write it again") from None


def clean(notebook: nbformat.NotebookNode, root: Path, name: str = "") -> nbformat.NotebookNode:
    """Leave what a reader sees: no times, no machine's paths, no stderr, streams in one piece.

    What a chapter wrote to stderr is shown on ours, since a page is no place for raw warnings.
    """
    count = 0
    for cell in notebook.cells:
        tags = list(cell.metadata.get("tags", []))
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if cell.cell_type != "code":
            continue
        if INJECTED in tags:
            cell["id"] = INJECTED  # papermill draws one at random
        else:
            count += 1
        cell.execution_count = count
        cell.outputs = _clean_outputs(cell, root, name)
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    return notebook


def _clean_outputs(cell: nbformat.NotebookNode, root: Path, name: str) -> list:
    outputs: list = []
    for output in cell.outputs:
        if output.output_type == "stream" and output.name == "stderr":
            if "\r" not in output.text:  # a progress bar is no message
                print(f"{name}: {output.text.rstrip()}", file=sys.stderr)
            continue
        if output.output_type == "stream":
            output.text = without_paths(output.text, root)
            if outputs and outputs[-1].output_type == "stream":
                outputs[-1].text += output.text
                continue
        elif "data" in output:
            for kind, value in output.data.items():
                if isinstance(value, str) and not kind.startswith(("image/png", "image/jpeg")):
                    output.data[kind] = without_paths(value, root)
            said = told(output.get("metadata", {}))
            output.metadata = nbformat.from_dict({"image/png": said} if said else {})
        if output.output_type == "execute_result":
            output.execution_count = cell.execution_count
        outputs.append(output)
    return outputs


def without_paths(text: str, root: Path) -> str:
    """Make paths below `root` relative to it, and hide where Python and the user live."""
    homes = {root.resolve(): ".", Path(sys.prefix): "PYTHON", Path.home(): "~"}
    for folder, instead in homes.items():
        if len(folder.parts) < 2:
            continue
        start = rf"(?<![\w.~]){re.escape(str(folder))}"
        if instead == ".":
            text = re.sub(rf"{start}/(?=\w)", "", text)
        text = re.sub(rf"{start}(?![\w.-])", instead, text)
    return text


def write_notebook(path: Path, notebook: nbformat.NotebookNode) -> None:
    """Write a notebook atomically."""
    write_atomic(path, (nbformat.writes(notebook).rstrip("\n") + "\n").encode())


def commit_outputs(path: Path, executed: Path) -> None:
    """Put the outputs of an executed copy into the chapter itself; cells and their ids stay."""
    ran = [
        cell
        for cell in read_notebook(executed).cells
        if cell.cell_type == "code" and INJECTED not in cell.metadata.get("tags", [])
    ]
    notebook = read_notebook(path)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell, done in zip(cells, ran, strict=True):
        cell.outputs = done.outputs
    write_notebook(path, clean(notebook, path.parent))
