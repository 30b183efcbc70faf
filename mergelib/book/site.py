"""The folder that Jupyter Book renders: pages as a reader is to see them, without the machinery."""

import html
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat
import yaml

from mergelib.book.contents import PICTURES, below
from mergelib.book.figures import with_captions
from mergelib.book.notebooks import INJECTED, clean, read_notebook, write_notebook
from mergelib.book.parameters import edition, parameters
from mergelib.core.errors import MergelibError
from mergelib.core.yaml_files import read_yaml

AS_COMMITTED = "Shown with the outputs that were committed with the repository, not run here."


def prepare(
    source: Path, pages: Mapping[Path, Path], site: Path, names: Sequence[str] = ()
) -> None:
    """Fill the folder `site` with what Jupyter Book needs.

    `pages` maps each page of `source` to the file that is shown for it: a chapter's executed copy,
    or the page itself. Every page says where its parameters differ from the defaults. Of one of
    `names` the book is that page alone.
    Raises MergelibError if the configuration is missing or no YAML.
    """
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(parents=True)
    if not (source / "_toc.yml").is_file():
        raise MergelibError(f"{source / '_toc.yml'} is missing: run this in the book's root folder")
    shutil.copy(source / "_toc.yml", site)
    if len(names) == 1:
        (site / "_toc.yml").write_text(f"format: jb-book\nroot: {names[0]}\n", encoding="utf-8")
    shown = {
        path: clean(read_notebook(held), source, path.name)
        for path, held in pages.items()
        if path.suffix == ".ipynb"
    }
    differs = {path: edition(notebook, path.parent) for path, notebook in shown.items()}
    whole = {name: value for held in differs.values() for name, value in held.items()}
    _write_configuration(source / "_config.yml", site / "_config.yml", whole)
    for path in pages:
        target = site / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path in shown:
            notes = [edition_line(differs[path], whole, parameters(shown[path]))]
            if pages[path] == path:
                notes.append(AS_COMMITTED)
            write_notebook(target, page_of(shown[path], notes, differs[path]))
        else:
            text = path.read_text(encoding="utf-8")
            target.write_text(with_notes(text, [edition_line(whole, whole)]), encoding="utf-8")
    for folder in {path.parent for path in pages}:
        for file in below(folder):
            if file.suffix in PICTURES or "_static" in file.relative_to(folder).parts:
                target = site / file.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target)


def _write_configuration(path: Path, target: Path, differs: Mapping[str, str]) -> None:
    """Copy the configuration: the edition goes into the title, the version where `{version}` is."""
    if not path.is_file():
        raise MergelibError(f"{path} is missing: Jupyter Book 1.x needs it")
    held: dict[str, Any] = read_yaml(path, {"{version}": version("mergelib")})
    if differs:
        held["title"] = f"{held.get('title', '')} ({_listed(differs)})"
    target.write_text(yaml.safe_dump(held, sort_keys=False, allow_unicode=True), encoding="utf-8")


def edition_line(
    differs: Mapping[str, str], whole: Mapping[str, str], declared: Collection[str] = ()
) -> str:
    """What a page says of its edition; nothing where the whole book has its defaults.

    `differs` is the page's own, `whole` the book's, `declared` the names of the page's parameters.
    """
    if differs or not whole:
        return f"Edition: {_listed(differs)}." if differs else ""
    if any(name in declared for name in whole):
        return f"Edition: the defaults, not {_listed(whole)}."
    return f"Edition: the defaults; {_listed(whole)} does not enter this page."


def _listed(differs: Mapping[str, str]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in differs.items())


def with_notes(text: str, notes: list[str]) -> str:
    """A page's text with notes below its title."""
    told = [f'<p class="ml-edition">{html.escape(note)}</p>' for note in notes if note]
    title = re.search(r"^# .*$", text, flags=re.MULTILINE)
    if not told or not title:
        return text
    return f"{text[: title.end()]}\n\n{''.join(told)}\n{text[title.end() :]}"


def page_of(
    notebook: nbformat.NotebookNode, notes: list[str], differs: Mapping[str, str]
) -> nbformat.NotebookNode:
    """A chapter as its page shows it.

    `notes` below the title; the cell of passed parameters hidden, with those alone that make the
    edition (the others are paths of a machine); pictures with their alt text and caption.
    """
    cells = []
    for cell in notebook.cells:
        if INJECTED in cell.metadata.get("tags", []):
            lines = [x for x in cell.source.splitlines() if x.partition(" = ")[0] in differs]
            if not lines:
                continue
            cell.source = "\n".join(["# Parameters", *lines])
            cell.metadata["tags"] = [*cell.metadata["tags"], "remove-cell"]
        cells.append(cell)
    cells[0].source = with_notes(cells[0].source, notes)
    notebook.cells = cells
    return with_captions(notebook)
