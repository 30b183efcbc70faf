"""Parameters of chapters: checked before anything runs, and told on every page."""

import argparse
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from mergelib.book import notebooks, parameters, site
from mergelib.book.parameters import Parameter
from mergelib.commands import book as command
from mergelib.core.errors import MergelibError

CELL = """from typing import Literal

tables = 'a'
n: int = 3
big = 2 * 1000
rate: float = 0.5
fast: bool = True
target: Literal["raw", "normalized"] = "normalized"  # a comment
"""


def notebook(source: str = CELL, injected: str = "") -> nbformat.NotebookNode:
    cells = [new_code_cell("hidden = 1"), new_code_cell(source, metadata={"tags": ["parameters"]})]
    if injected:
        tags = {"tags": [notebooks.INJECTED]}
        cells.append(new_code_cell(f"# Parameters\n{injected}", metadata=tags))
    return new_notebook(cells=[new_markdown_cell("# Title\n\nText."), *cells])


def test_parameters_are_read_without_running_anything():
    assert list(parameters.parameters(notebook()).values()) == [
        Parameter("tables", "a", "str"),
        Parameter("n", 3, "int"),
        Parameter("big", None, ""),
        Parameter("rate", 0.5, "float"),
        Parameter("fast", True, "bool"),
        Parameter("target", "normalized", "str", ("raw", "normalized")),
    ]


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("n", 4, ""),
        ("n", "abc", "must be of type int, not str"),
        ("n", 1.5, "must be of type int, not float"),
        ("n", True, "must be of type int, not bool"),
        ("rate", 1, ""),
        ("rate", False, "must be of type float, not bool"),
        ("fast", False, ""),
        ("fast", 1, "must be of type bool, not int"),
        ("tables", False, "must be of type str, not bool: put it in quotes"),
        ("target", "raw", ""),
        ("target", "nonsense", "must be one of raw, normalized"),
        ("target", 1, "must be one of raw, normalized"),
        ("big", "anything", ""),
    ],
)
def test_a_value_has_the_type_and_is_one_of_the_choices(name, value, fault):
    assert parameters.parameters(notebook())[name].fault(value) == fault


def test_a_refusal_names_chapter_parameter_value_and_choices():
    held = {Path("book/04_fits.ipynb"): parameters.parameters(notebook())}
    parameters.check(held, {"n": 4, "target": "raw"})
    with pytest.raises(
        MergelibError, match="^04_fits: parameter target = 'x' must be one of raw, normalized$"
    ):
        parameters.check(held, {"target": "x"})
    with pytest.raises(MergelibError, match="no chapter .* a parameter targt.*mean 'target'"):
        parameters.check(held, {"targt": "raw"})


@pytest.fixture
def book_with_choices(tmp_path) -> Path:
    (tmp_path / "book").mkdir()
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: book/one\n")
    nbformat.write(notebook(), tmp_path / "book" / "one.ipynb")
    (tmp_path / "_build" / "html").mkdir(parents=True)
    (tmp_path / "_build" / "html" / "index.html").write_text("standing")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-p", "target", "x"], "one: parameter target = 'x' must be one of raw, normalized"),
        (["-p", "n", "x"], "one: parameter n = 'x' must be of type int"),
        (["-f", "FILE"], "no chapter that is to run has a parameter epochs"),
    ],
)
def test_the_command_refuses_before_anything_runs(book_with_choices, words, message):
    file = book_with_choices / "other.yaml"
    file.write_text("epochs: 3\nn: 4\n")
    words = [str(file) if word == "FILE" else word for word in words]
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    before = sorted(book_with_choices.rglob("*"))
    with pytest.raises(MergelibError, match=message):
        command.run(parser.parse_args(["--source", str(book_with_choices), *words]))
    assert sorted(book_with_choices.rglob("*")) == before
    assert (book_with_choices / "_build" / "html" / "index.html").read_text() == "standing"


def test_jobs_are_a_number():
    parser = argparse.ArgumentParser(exit_on_error=False)
    command.add_arguments(parser)
    assert parser.parse_args(["--jobs", "2"]).jobs == 2
    for wrong in ("0", "-1", "two"):
        with pytest.raises(argparse.ArgumentError):
            parser.parse_args([f"--jobs={wrong}"])


def test_the_edition_is_what_differs_from_the_defaults(tmp_path):
    (tmp_path / "elsewhere" / "a").mkdir(parents=True)
    (tmp_path / "elsewhere" / "glyph8").mkdir()
    source = "tables: str = 'a'\nreleased: str = 'r'\nn: int = 3\nm: int = 1"
    (tmp_path / "a").mkdir()
    same = "tables = 'elsewhere/a'\nreleased = '../../other'\nn = 3"
    assert parameters.edition(notebook(source, same), tmp_path) == {}
    other = "tables = 'elsewhere/glyph8'\nn = 4"
    assert parameters.edition(notebook(source, other), tmp_path) == {"tables": "glyph8", "n": "4"}


def test_a_page_tells_its_edition_and_shows_no_path():
    held = notebook(injected="target = 'raw'\ntables = '../x/y'")
    page = site.page_of(held, ["Edition: target = raw."], {"target": "raw"})
    assert page.cells[0].source.startswith(
        '# Title\n\n<p class="ml-edition">Edition: target = raw.</p>\n'
    )
    assert page.cells[3].source == "# Parameters\ntarget = 'raw'"
    assert "remove-cell" in page.cells[3].metadata["tags"]
    assert len(site.page_of(notebook(injected="tables = '../x'"), [], {}).cells) == 3


def test_pages_that_the_edition_does_not_touch_say_so():
    assert site.edition_line({}, {}) == ""
    assert site.edition_line({"n": "2"}, {"n": "2", "m": "1"}) == "Edition: n = 2."
    assert "n = 2 does not enter this page" in site.edition_line({}, {"n": "2"}, ["m"])
    assert site.edition_line({}, {"n": "2"}, ["n"]) == "Edition: the defaults, not n = 2."


def test_a_picture_is_shown_with_its_words():
    held = notebook()
    held.cells[1].outputs = [
        new_output(
            "display_data",
            data={"image/png": "AAAA\n"},
            metadata={"image/png": {"alt": 'a "line" & <dot>', "caption": "r < 1"}, "x": 1},
        )
    ]
    kept = notebooks.clean(held, Path("."))
    assert kept.cells[1].outputs[0].metadata == {
        "image/png": {"alt": 'a "line" & <dot>', "caption": "r < 1"}
    }
    (cell,) = [c for c in site.page_of(kept, [], {}).cells if "mystnb" in c.metadata]
    assert cell.metadata["mystnb"] == {
        "image": {"alt": 'a "line" & <dot>'},
        "figure": {"caption": "r < 1"},
    }
