"""The two reference pages name every metric and every method that the registries hold."""

from mergelib.book import notebooks
from mergelib.merging.registry import METHODS
from mergelib.metrics.registry import METRICS


def prose(root, name: str) -> str:
    cells = notebooks.read_notebook(root / "book" / f"{name}.ipynb").cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def test_every_metric_has_its_formula(root):
    text = prose(root, "12_metrics_reference")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert not [n for n in METRICS if not any(f"`{n}`" in row for row in rows)]


def test_every_method_has_its_formula(root):
    text = prose(root, "13_methods_reference")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(METHODS)
