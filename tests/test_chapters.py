"""The form of the chapters that are committed."""

from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from mergelib.book import contents, notebooks

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted((ROOT / "book").glob("*.ipynb"))


def read(cells: list) -> Iterator[str]:
    """What a reader reads of cells: their text, typed or computed."""
    for cell in cells:
        if cell.cell_type == "markdown":
            yield cell.source
        for output in cell.get("outputs", []):
            yield output.get("data", {}).get("text/markdown", "")


@pytest.mark.skipif(not CHAPTERS, reason="no chapters are written yet")
def test_contents_list_every_chapter():
    names = [Path(name).stem for name in contents.entries(ROOT)]
    assert names == ["intro", *(path.stem for path in CHAPTERS)]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_form(path):
    notebook = notebooks.read_notebook(path)
    first = notebook.cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    assert "question" in first.source.lower()
    assert any("answer" in text.lower() for text in read(notebook.cells[:6])), "answer early"
    tagged = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1, "one cell is tagged `parameters`"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert any(cell.outputs for cell in code), "commit the outputs: mergelib book --commit-outputs"
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1)), "run it in order"
    # nbval's kernel shows the value all the same, so the outputs would differ.
    assert not any(c.source.rstrip().endswith(";") for c in code), "assign instead of `;`"
    outputs = [output for cell in code for output in cell.outputs]
    kinds = {output.output_type for output in outputs}
    assert "error" not in kinds
    assert not any(output.get("name") == "stderr" for output in outputs), "raw warnings"
    assert "papermill" not in notebook.metadata
    cleaned = notebooks.clean(notebooks.read_notebook(path), ROOT, path.name)
    assert nbformat.writes(cleaned) == nbformat.writes(notebook), (
        "not as --commit-outputs leaves it"
    )
