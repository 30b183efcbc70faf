"""The book: chapters run in order with papermill, rendered by Jupyter Book, then checked.

Running and rendering are kept apart. A chapter runs again when anything its numbers depend on has
changed (its own source, this library, its parameters, the tables, the versions of what computes);
Jupyter Book's own cache knows the notebook alone and would leave stale numbers standing.
"""

import argparse
import ast
import html.parser
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat
import yaml

from mergelib.errors import MergelibError
from mergelib.sources import BENCHMARK
from mergelib.store import digest, file_digest, write_atomic

COMPUTES = ("numpy", "pandas", "scikit-learn", "torch", "matplotlib", "seaborn", "papermill")
RENDERS = ("jupyter-book", "sphinx", "myst-nb", "sphinx-book-theme", "sphinx-mathjax-offline")
INJECTED = "injected-parameters"
PICTURES = (".png", ".svg", ".jpg", ".gif")
RELEASED = "_released"  # ends the name of a chapter's twin
TWIN = "ViT-B-16_AdamW"  # its source: the setting of the published headline numbers


def entries(source: Path) -> list[str]:
    """The pages of `_toc.yml` in reading order, root first, without suffix.

    Raises MergelibError if the file is missing, malformed, or names a page that does not exist.
    """
    path = Path(source) / "_toc.yml"
    try:
        toc = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MergelibError(f"{path} is missing: run this in the book's root folder") from None
    except yaml.YAMLError as error:
        raise MergelibError(f"{path} is not YAML ({error}): mend it") from None
    if not isinstance(toc, dict) or "root" not in toc:
        raise MergelibError(f"{path} names no `root` page: add one")
    names = [re.sub(r"\.(md|ipynb)$", "", name) for name in (str(toc["root"]), *_files(toc))]
    for name in names:
        if _page_source(Path(source), name) is None:
            raise MergelibError(f"{path} lists {name}, but there is no {name}.ipynb or {name}.md")
    return names


def _files(node: Any) -> Iterator[str]:
    """Every `file` of a table of contents, in order, however deep."""
    if isinstance(node, dict):
        if "file" in node:
            yield str(node["file"])
        for value in node.values():
            yield from _files(value)
    elif isinstance(node, list):
        for item in node:
            yield from _files(item)


def _page_source(source: Path, name: str) -> Path | None:
    paths = (source / f"{name}{suffix}" for suffix in (".ipynb", ".md"))
    return next((path for path in paths if path.is_file()), None)


def _sources(source: Path, names: list[str]) -> list[Path]:
    return [path for name in names if (path := _page_source(source, name))]


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """Read a notebook. Raises MergelibError if it is none."""
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises whatever JSON and its schema raise
        raise MergelibError(f"{path} is no notebook ({error}): write it again") from None


def declared(notebook: nbformat.NotebookNode) -> dict[str, Any]:
    """Names and default values of the cell tagged `parameters` (None where not a literal)."""
    found: dict[str, Any] = {}
    for cell in notebook.cells:
        if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", []):
            for node in ast.parse(cell.source).body:
                if isinstance(node, ast.AnnAssign) and node.value is not None:
                    targets = [node.target]
                elif isinstance(node, ast.Assign):
                    targets = node.targets
                else:
                    continue
                try:
                    value = ast.literal_eval(node.value)
                except ValueError:
                    value = None
                found |= {target.id: value for target in targets if isinstance(target, ast.Name)}
    return found


# ---- What a chapter depends on ----------------------------------------------------------------


@cache
def _contents(path: Path) -> str:
    """Digest of a file, or of all files below a folder with their names."""
    if path.is_file():
        return file_digest(path)
    return digest([[file.relative_to(path).as_posix(), file_digest(file)] for file in _below(path)])


def _below(folder: Path) -> list[Path]:
    """Files below a folder in order of name, without caches and hidden ones."""
    found = sorted(file for file in folder.rglob("*") if file.is_file())
    parts = {file: file.relative_to(folder).parts for file in found}
    return [f for f in found if not any(p[0] == "." or p == "__pycache__" for p in parts[f])]


def _beside(folder: Path) -> list[list[str]]:
    """Data that lies in the chapters' folder: tables and modules, not prose."""
    return [
        [file.relative_to(folder).as_posix(), _contents(file)]
        for file in _below(folder)
        if file.suffix not in (".ipynb", ".md")
    ]


def chapter_key(path: Path, parameters: Mapping[str, Any]) -> str:
    """Digest of all that a chapter's outputs depend on.

    A string parameter that names a file or folder (seen from the chapter's folder) counts with its
    contents, whether it was passed or is the chapter's default.
    """
    notebook = read_notebook(path)
    values = declared(notebook) | dict(parameters)
    named = {
        name: _contents((path.parent / value).resolve())
        for name, value in sorted(values.items())
        if isinstance(value, str) and value and (path.parent / value).exists()
    }
    cells = [[c.cell_type, c.source, list(c.metadata.get("tags", []))] for c in notebook.cells]
    return digest(
        cells,
        {name: repr(value) for name, value in sorted(parameters.items())},
        named,
        _beside(path.parent),
        _contents(Path(__file__).parent),
        platform.python_version(),
        [version(name) for name in COMPUTES],
    )


# ---- Running a chapter ------------------------------------------------------------------------


def execute(path: Path, target: Path, parameters: Mapping[str, Any], root: Path) -> None:
    """Run a chapter in its own folder; write it with clean outputs to `target`.

    Raises MergelibError naming the chapter, the cell and the exception; then nothing is written.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    draft = target.with_suffix(".draft.ipynb")
    draft.parent.mkdir(parents=True, exist_ok=True)
    try:
        _settle_environment()
        papermill.execute_notebook(
            str(path),
            str(draft),
            parameters=dict(parameters),
            kernel_name="python3",
            language="python",
            cwd=str(path.parent),
            progress_bar=False,
            extra_arguments=["--log-level=40"],  # the kernel remarks on its loopback transport
        )
        notebook = read_notebook(draft)
    except PapermillExecutionError as error:
        raise MergelibError(
            f"chapter {path.name} failed in cell [{error.exec_count}] "
            f"`{_line(error.source, 0)}`: {error.ename}: {_line(error.evalue, -1)}"
        ) from None
    except RuntimeError as error:
        raise MergelibError(f"chapter {path.name}: its kernel stopped ({error})") from None
    finally:
        draft.unlink(missing_ok=True)
    write_notebook(target, clean(notebook, root, path.name))


def _settle_environment() -> None:
    """A kernel inherits ours: a backend set there would keep its figures out of the chapter."""
    os.environ.pop("MPLBACKEND", None)
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")


def _line(text: str, which: int) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[which] if lines else ""


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
        if INJECTED not in tags:
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
            output.metadata = nbformat.from_dict({})
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


# ---- Rendering --------------------------------------------------------------------------------


def render(source: Path, executed: Path, work: Path) -> Path:
    """Render the executed chapters with Jupyter Book, every warning an error; returns the folder.

    Raises MergelibError with the first warnings.
    """
    site = work / "site"
    shutil.rmtree(work, ignore_errors=True)
    site.mkdir(parents=True)
    for name in ("_config.yml", "_toc.yml"):
        if not (source / name).is_file():
            raise MergelibError(f"{source / name} is missing: Jupyter Book 1.x needs it")
        shutil.copy(source / name, site / name)
    pages = _sources(source, entries(source))
    pictures = {file for page in pages for file in _below(page.parent) if file.suffix in PICTURES}
    for file in (*pages, *sorted(pictures)):
        target = site / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        ran = file.suffix == ".ipynb"
        shutil.copy(executed / file.relative_to(source) if ran else file, target)
    start = "from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", start, "build", str(site), "--path-output", str(work)]
    done = subprocess.run(
        [*command, "--all", "--warningiserror", "--keep-going"],
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=os.environ | {"NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"},
    )
    if done.returncode:
        lines = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr).splitlines()
        told = [line for line in lines if re.search(r"WARNING|ERROR|Error", line)] or lines[-3:]
        raise MergelibError(
            "Jupyter Book could not render the chapters: "
            + " | ".join(line.strip().replace(f"{site.resolve()}/", "") for line in told[:5])
        )
    return work / "_build" / "html"


class _Page(html.parser.HTMLParser):
    """Ids, links and the amount of text of one HTML page."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.letters = 0
        self._inside = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        held = {name: value or "" for name, value in attrs}
        self.ids.update(held[name] for name in ("id", "name") if name in held)
        self.links += [held[name] for name in ("href", "src") if name in held]
        self._inside += tag == "article"

    def handle_endtag(self, tag: str) -> None:
        self._inside -= tag == "article"

    def handle_data(self, data: str) -> None:
        if self._inside > 0:
            self.letters += len(data.strip())


def _parse(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def check_pages(folder: Path, names: list[str]) -> list[Path]:
    """The pages of these table of contents entries; MergelibError if one is missing or empty."""
    paths = []
    for name in names:
        path = folder / f"{name}.html"
        if not path.is_file() or _parse(path).letters == 0:
            raise MergelibError(
                f"chapter {name} has no page, or an empty one, in {folder}: "
                "is jupyter-book older than 2 installed?"
            )
        paths.append(path)
    if not (folder / "index.html").is_file():
        raise MergelibError(f"{folder} has no index.html: is jupyter-book older than 2 installed?")
    return paths


def check_links(folder: Path) -> None:
    """Follow every link and picture within the book. Raises MergelibError listing the broken."""
    folder = folder.resolve()
    files = [p for p in sorted(folder.rglob("*.html")) if "_static" not in p.parts]
    pages = {path: _parse(path) for path in files}
    broken = [
        f"{path.relative_to(folder)}: {link}"
        for path, page in pages.items()
        for link in dict.fromkeys(page.links)
        if not _leads_somewhere(link, path, pages)
    ]
    if broken:
        raise MergelibError(f"broken links in the book: {'; '.join(broken[:10])}")


def _leads_somewhere(link: str, path: Path, pages: Mapping[Path, _Page]) -> bool:
    parts = urllib.parse.urlsplit(link)
    if parts.scheme or parts.netloc:  # out of the book, or data in the link itself
        return True
    target = (path.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else path
    if not target.exists():
        return False
    anchor = urllib.parse.unquote(parts.fragment)
    return not anchor or target not in pages or anchor in pages[target].ids


# ---- The whole --------------------------------------------------------------------------------


def build(
    source: Path,
    tables: Path | None = None,
    out: Path | None = None,
    parameters: Mapping[str, Any] | None = None,
    commit: bool = False,
    released: Path | None = None,
) -> list[Path]:
    """Run the chapters of `source` in order, render and check them; returns the pages.

    `tables` and `released` are handed to each chapter that declares a parameter of that name,
    relative to the chapter's folder; `parameters` likewise by name. A chapter that reads the
    released tables is shown with its committed outputs where they are not at hand. While anything
    is wrong there is no `out` (default `source/_build/html`): a reader never meets a page of an
    earlier state. With `commit` twins follow their chapters, and the outputs also go into the
    chapters' own files; they must then run with their defaults.

    Raises MergelibError if a chapter fails, a page is missing, or a link is broken.
    """
    source = Path(source).resolve()
    out = (Path(out) if out else source / "_build" / "html").resolve()
    executed = source / "_build" / "book"
    if commit and (tables or parameters or released):
        raise MergelibError("--commit-outputs keeps what the defaults give: leave the others out")
    if tables and not Path(tables).is_dir():
        raise MergelibError(f"there is no folder of tables {tables}: write it with `mergelib run`")
    if released and not (Path(released) / "results").is_dir():
        raise MergelibError(f"{released} is no checkout of the released tables: see the README")
    _contents.cache_clear()
    names = entries(source)
    chapters = [path for path in _sources(source, names) if path.suffix == ".ipynb"]
    if commit:
        for path in chapters:
            if path.with_stem(f"{path.stem}{RELEASED}").is_file():
                sync_twin(path)
    folders = {"tables": tables, "released": released}
    plan = {p: _passed(p, folders, parameters or {}) for p in chapters}
    _refuse_unknown(parameters or {}, plan)
    keys = {path: chapter_key(path, passed) for path, passed in plan.items()}
    stamp = executed / "html.key"
    state = digest(str(out), _site_key(source, names, keys))
    done = out.is_dir() and stamp.is_file() and stamp.read_text() == state
    if not done:
        shutil.rmtree(out, ignore_errors=True)
        stamp.unlink(missing_ok=True)
    for path, passed in plan.items():
        target = executed / path.relative_to(source)
        if lacks_released(path, passed):
            print(f"{path.stem}: as committed, the released tables are not here", file=sys.stderr)
            write_notebook(target, clean(read_notebook(path), source, path.name))
            target.with_suffix(".key").unlink(missing_ok=True)
            continue
        _execute_if_changed(path, target, passed, keys[path], source)
        if commit:
            commit_outputs(path, target)
    if not done:
        rendered = render(source, executed, executed.with_name("render"))
        check_pages(rendered, names)
        check_links(rendered)
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(rendered, out)
        write_atomic(stamp, state.encode())
    return check_pages(out, names)


def _passed(
    path: Path, folders: Mapping[str, Path | None], parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """The parameters that this chapter declares, `folders` seen from its own."""
    wanted = dict(parameters)
    for name, folder in folders.items():
        if folder:
            wanted[name] = Path(os.path.relpath(Path(folder).resolve(), path.parent)).as_posix()
    names = declared(read_notebook(path))
    return {name: value for name, value in wanted.items() if name in names}


def _refuse_unknown(parameters: Mapping[str, Any], plan: Mapping[Path, Mapping[str, Any]]) -> None:
    known = set().union(*plan.values()) if plan else set()
    unknown = [name for name in parameters if name not in known]
    if unknown:
        raise MergelibError(
            f"no chapter has a parameter {', '.join(unknown)}: see the cells tagged `parameters`"
        )


def _execute_if_changed(
    path: Path, target: Path, passed: Mapping[str, Any], key: str, root: Path
) -> None:
    stamp = target.with_suffix(".key")
    if target.is_file() and stamp.is_file() and stamp.read_text() == key:
        print(f"{path.stem}: unchanged", file=sys.stderr)
        return
    stamp.unlink(missing_ok=True)
    start = time.perf_counter()
    execute(path, target, passed, root)
    write_atomic(stamp, key.encode())
    print(f"{path.stem}: run in {time.perf_counter() - start:.0f} s", file=sys.stderr)


def _site_key(source: Path, names: list[str], keys: Mapping[Path, str]) -> str:
    """Digest of all that the rendered pages depend on."""
    prose = [path for path in _sources(source, names) if path.suffix == ".md"]
    files = [p for p in (source / "_config.yml", source / "_toc.yml", *prose) if p.is_file()]
    folders = {path.parent for path in (*prose, *keys)}
    return digest(
        [_contents(path) for path in files],
        [_beside(folder) for folder in sorted(folders)],
        list(keys.values()),
        [version(name) for name in RENDERS],
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `mergelib book`."""
    parser.add_argument("--source", type=Path, default=Path("."), help="folder of _toc.yml")
    parser.add_argument("--tables", type=Path, help="tables that the chapters read")
    parser.add_argument("--released", type=Path, help="checkout of the released tables")
    parser.add_argument("--out", type=Path, help="folder of the pages (default: _build/html)")
    parser.add_argument(
        "-f", dest="files", action="append", default=[], metavar="FILE", help="YAML of parameters"
    )
    parser.add_argument(
        "-p",
        dest="pairs",
        action="append",
        default=[],
        nargs=2,
        metavar=("NAME", "VALUE"),
        help="one parameter; stands above -f",
    )
    parser.add_argument(
        "--commit-outputs",
        action="store_true",
        help="also write the outputs into the chapters themselves",
    )


def _read_parameters(files: list[str], pairs: list[list[str]]) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    for file in files:
        try:
            held = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise MergelibError(f"{file} cannot be read as YAML: {error}") from None
        if not isinstance(held, dict):
            raise MergelibError(f"{file} holds no `name: value` lines")
        parameters |= held
    return parameters | {name: yaml.safe_load(value) for name, value in pairs}


def run(args: argparse.Namespace) -> int:
    """Build the book as the command line says; prints the page to open."""
    parameters = _read_parameters(args.files, args.pairs)
    pages = build(
        args.source, args.tables, args.out, parameters, args.commit_outputs, args.released
    )
    out = args.out or args.source / "_build" / "html"
    print(f"{len(pages)} pages; open {out / 'index.html'}")
    return 0
