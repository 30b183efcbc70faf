"""No result is typed: decimals in the chapters' text are citations or settings, named here."""

import re
from pathlib import Path

import nbformat
import pytest

CHAPTERS = sorted((Path(__file__).parents[1] / "book").glob("*.ipynb"))
# Printed by others, or settings that the sentence explains: not what a cell can give.
CITED: dict[str, tuple[str, ...]] = {
    "01_tasks_and_models": ("99.5",),  # the upper end of the range that was aimed at, in percent
}
DECIMAL = re.compile(r"[−-]?\d+\.\d+")
# Code, formulas, addresses, and names of papers and versions hold numbers that are no results.
NO_PROSE = (
    r"```.*?```", r"`[^`]*`", r"\$\$.*?\$\$", r"\$[^$]*\$", r"\]\([^)]*\)", r"https?://\S+",
    r"arXiv[:\s]+\d{4}\.\d{5}(v\d+)?",
)  # fmt: skip


def decimals(text: str) -> list[str]:
    """The decimals of a Markdown text that a reader takes for results."""
    for pattern in NO_PROSE:
        text = re.sub(pattern, " ", text, flags=re.DOTALL)
    return DECIMAL.findall(text)


def test_what_counts_as_a_typed_number():
    assert decimals("r is 0.40, then −1.5") == ["0.40", "−1.5"]
    assert not decimals("`0.4`, $x = 0.4$, arXiv 2601.22285, [a](b_0.4)\n```\n0.4\n```")


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_no_result_is_typed(path):
    texts = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown"]
    typed = [found for text in texts for found in decimals(text)]
    allowed = list(CITED.get(path.stem, ()))
    assert sorted(typed) == sorted(allowed), "compute it in a cell (studies.display), or cite it"
