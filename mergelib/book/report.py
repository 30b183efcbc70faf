"""A chapter run on a user's own files, as one HTML file that opens anywhere, without a network."""

import html
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mergelib.book.chapters import execute
from mergelib.book.figures import told
from mergelib.book.keys import PACKAGE
from mergelib.book.notebooks import INJECTED, read_notebook
from mergelib.core.errors import MergelibError
from mergelib.core.store import write_atomic
from mergelib.forecasting.answer import Answer
from mergelib.forecasting.ask import Question
from mergelib.forecasting.words import as_words

CHAPTER = "15_will_these_merge.ipynb"
SHOWN = ("text/html", "text/markdown", "image/png", "text/plain")  # of an output, the first there
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }}
img {{ max-width: 100%; }}
main {{ counter-reset: ml-table; }}
table {{ border-collapse: collapse; }}
td, th {{ padding: 0.2rem 0.6rem; border-bottom: 1px solid #ccc; text-align: left; }}
pre {{ overflow-x: auto; }}
{style}
</style></head>
<body><main>
{body}
</main>
<footer><p>mergelib {version}</p></footer></body></html>
"""


def chapter(name: str = CHAPTER) -> Path:
    """A chapter's file, in the book beside the package or below the working folder.

    Raises MergelibError where neither has it.
    """
    roots = (PACKAGE.parent, Path.cwd())
    for root in roots:
        if (root / "book" / name).is_file():
            return root / "book" / name
    instead = ", or leave out --report" if name == CHAPTER else ""
    raise MergelibError(
        f"the page is the book's chapter {name}, which is not beside this installation: run in "
        f"a checkout of mergelib{instead}"
    )


def values_of(question: Question) -> dict[str, Any]:
    """A question as parameters of the chapter.

    Raises MergelibError for models in memory, and as `chapter` does.
    """
    chapter()
    if not isinstance(question.base, str | Path):
        raise MergelibError("a report asks for models on disk: give the path of the base")
    by_task = ("models", "images", "labels", "heads", "classes")
    words = {name: as_words(getattr(question, name) or {}) for name in by_task}
    known = question.known if isinstance(question.known, str | Path) else ""
    return {
        "base": os.path.abspath(question.base),
        **words,
        "known": os.path.abspath(known) if known else "",
        "methods": ",".join(question.methods),
        "n": question.n,
        "seed": question.seed,
        "backbone": question.backbone,
    }


def write_report(question: Question, answer: Answer, path: Path) -> None:
    """Run the chapter on a question and the answer that it has, and write the page.

    The file is written whole or not at all. Raises MergelibError as `chapter`, `values_of` and
    `mergelib.book.chapters.execute` do.
    """
    source, values = chapter(), values_of(question)
    with tempfile.TemporaryDirectory(prefix="mergelib-report-") as work:
        answered = Path(work, "answer.json")
        answered.write_text(json.dumps(answer.as_json()), encoding="utf-8")
        write_page(source, {**values, "answered": str(answered)}, path)


def write_page(source: Path, values: Mapping[str, Any], path: Path) -> None:
    """Run a chapter with these parameters and write it as one page, whole or not at all.

    Raises MergelibError as `mergelib.book.chapters.execute` does.
    """
    style = source.parent / "_static" / "custom.css"
    with tempfile.TemporaryDirectory(prefix="mergelib-report-") as work:
        executed = Path(work, source.name)
        execute(source, executed, values, source.parent)
        text = page(executed, style.read_text(encoding="utf-8") if style.is_file() else "")
    write_atomic(path, text.encode())


def page(notebook: Path, style: str = "") -> str:
    """An executed chapter as one HTML page: its text and outputs, without code."""
    held = read_notebook(notebook)
    title = held.cells[0].source.splitlines()[0].lstrip("# ")
    body = "\n".join(part for cell in held.cells for part in _parts(cell))
    return PAGE.format(
        title=html.escape(title), style=style, body=body, version=version("mergelib")
    )


def _parts(cell: Any) -> Iterator[str]:
    if cell.cell_type == "markdown":
        yield _of_markdown(cell.source)
    if cell.cell_type != "code" or INJECTED in cell.metadata.get("tags", []):
        return
    for output in cell.outputs:
        if output.output_type == "stream":
            yield f"<pre>{html.escape(output.text)}</pre>"
        for kind in SHOWN:
            if kind in output.get("data", {}):
                yield _shown(kind, output.data[kind], told(output.get("metadata", {})))
                break


def _shown(kind: str, value: str, said: Mapping[str, str]) -> str:
    if kind == "text/html":
        return value
    if kind == "text/markdown":
        return _of_markdown(value)
    if kind == "image/png":
        alt, caption = (html.escape(said.get(key, "")) for key in ("alt", "caption"))
        picture = f'<img alt="{alt}" src="data:image/png;base64,{value.strip()}">'
        return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"
    return f"<pre>{html.escape(value)}</pre>"


def _of_markdown(text: str) -> str:
    from markdown_it import MarkdownIt  # comes with Jupyter Book

    return MarkdownIt("commonmark").enable("table").render(text)
