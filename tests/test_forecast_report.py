"""The report of a forecast: the chapter on a user's files, one page that needs no network."""

import html.parser
import json
import shutil

import nbformat
import pytest
from test_forecast_command import IMAGES, PAIR, made, user  # noqa: F401 - fixtures

from mergelib import cli
from mergelib.book.report import page
from mergelib.forecasting.answer import from_json
from mergelib.forecasting.words import as_words, by_name, in_shell, models_of


class Page(html.parser.HTMLParser):
    """Tags, what they point to, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.points: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.points += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data):
        self.text += data


def test_a_page_is_text_and_outputs_without_code(tmp_path):
    cells = [
        nbformat.v4.new_markdown_cell("# Title & more\n\ntext"),
        nbformat.v4.new_code_cell(
            "secret = 1",
            outputs=[
                nbformat.v4.new_output("stream", name="stdout", text="a < b"),
                nbformat.v4.new_output(
                    "display_data",
                    data={"text/plain": "plain", "text/html": "<b>whole</b>"},
                ),
                nbformat.v4.new_output(
                    "display_data",
                    data={"image/png": "AAAA\n", "text/plain": "picture"},
                    metadata={"image/png": {"alt": 'a "line"', "caption": "what it shows"}},
                ),
            ],
        ),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "c.ipynb")
    text = page(tmp_path / "c.ipynb", "p { color: red }")
    found = Page(text)
    assert "<title>Title &amp; more</title>" in text and "p { color: red }" in text
    assert "secret" not in text and "plain" not in found.text
    assert "<b>whole</b>" in text and "a &lt; b" in text
    assert found.points == ["data:image/png;base64,AAAA"]
    assert 'alt="a &quot;line&quot;"' in text and "what it shows" in found.text


def test_words_of_a_question_come_back_from_the_shells_way(tmp_path):
    paths = {"a": tmp_path / "one model.pt", "b": tmp_path / "it's.pt"}
    assert models_of(in_shell(as_words(paths))) == paths
    folders = as_words({"a": "folders", "b": "folders"})
    assert by_name(in_shell(folders), paths, "classes") == {"a": "folders", "b": "folders"}


@pytest.mark.slow
def test_the_report_says_what_the_command_says(user, capsys, monkeypatch):  # noqa: F811
    assert cli.main(f"{PAIR} {IMAGES} --classes --json --report r.html".split()) == 0
    held = json.loads(capsys.readouterr().out)
    text = (user / "r.html").read_text(encoding="utf-8")
    found = Page(text)
    assert "script" not in found.tags and "link" not in found.tags
    outward = [each for each in found.points if not each.startswith(("data:", "#"))]
    assert outward == []
    best = held["methods"][held["recommended"]]
    assert f"{best['mean']:.0%}".replace("%", " %") in found.text
    assert best["verdict"] in found.text
    assert from_json(held).as_json() == held
    shutil.rmtree(user / "cars_images")  # a report that fails leaves the old one
    assert cli.main(f"{PAIR} {IMAGES} --classes --report r.html".split()) == 2
    assert (user / "r.html").read_text(encoding="utf-8") == text
    assert not list(user.glob(".*"))
