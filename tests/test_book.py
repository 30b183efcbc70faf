"""The book's build, on throwaway books."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from mergelib.book import build, chapters, keys, notebooks, site
from mergelib.core.errors import MergelibError

ROOT = Path(__file__).resolve().parents[1]


def chapter(path: Path, *cells: str, parameters: str = "n = 1") -> None:
    """Write a chapter whose run is noted in `runs.log` beside the book."""
    note = f"print('ran', file=open('../{path.stem}.log', 'a'))"
    nodes = [new_markdown_cell(f"# {path.stem}\n\n**Question** Why?\n\n**Answer** So.")]
    nodes.append(new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    nodes += [new_code_cell(source) for source in (note, *cells)]
    nbformat.write(new_notebook(cells=nodes), path)


@pytest.fixture
def small(tmp_path) -> Path:
    """A book of an introduction and two chapters; the second needs what the first wrote."""
    source = tmp_path / "source"
    (source / "book" / "tables").mkdir(parents=True)
    shutil.copy(ROOT / "_config.yml", source)
    shutil.copytree(ROOT / "book" / "_static", source / "book" / "_static")
    (source / "_toc.yml").write_text(
        "format: jb-book\nroot: book/intro\n"
        "chapters:\n- file: book/b_first\n- file: book/a_second\n"
    )
    (source / "book" / "intro.md").write_text(
        "# Intro\n\n## Part\n\n[one](b_first), [here](#part), $x_1$\n"
    )
    (source / "book" / "tables" / "x.csv").write_text("value\n41\n")
    chapter(
        source / "book" / "b_first.ipynb",
        "import pathlib, os\nvalue = int(pathlib.Path(tables, 'x.csv').read_text().split()[1]) + 1",
        "pathlib.Path('../made').write_text(str(value))\nprint('value', value, os.getcwd())",
        parameters='tables = "tables"',
    )
    chapter(source / "book" / "a_second.ipynb", "print(open('../made').read(), n)")
    return source


def runs(source: Path, name: str) -> int:
    log = source / f"{name}.log"
    return len(log.read_text().split()) if log.exists() else 0


def text_of(path: Path) -> str:
    outputs = [o for cell in nbformat.read(path, 4).cells for o in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


@pytest.mark.slow
def test_builds_in_order_of_the_contents_then_only_what_changed(small, no_network):
    built = build.build(small)
    assert [page.stem for page in built] == ["intro", "b_first", "a_second"]
    assert (small / "_build" / "html" / "index.html").is_file()
    done = small / "_build" / "book" / "book"
    assert text_of(done / "b_first.ipynb") == "value 42 book\n"  # the machine's path is gone
    assert "value 42 book" in built[1].read_text()
    stamps = [page.stat().st_mtime_ns for page in built]
    needed = re.findall(r'<(?:script|link|img)\b[^>]* (?:src|href)="([^"?]+)', built[0].read_text())
    assert any("mathjax" in link for link in needed)  # the formula's; a reader may be offline
    assert [link for link in needed if not (built[0].parent / link).exists()] == []

    build.build(small)
    assert (runs(small, "b_first"), runs(small, "a_second")) == (1, 1)
    assert [page.stat().st_mtime_ns for page in built] == stamps

    other = small / "other"
    other.mkdir()
    (other / "x.csv").write_text("value\n6\n")
    built = build.build(small, tables=other)  # only the first declares `tables`
    assert "value 7 book" in built[1].read_text()
    assert (runs(small, "b_first"), runs(small, "a_second")) == (2, 1)


@pytest.mark.slow
def test_figures_land_in_the_chapter_whatever_backend_the_user_has_set(tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    path = tmp_path / "book" / "draws.ipynb"
    path.parent.mkdir()
    chapter(path, "from matplotlib import pyplot", "ax = pyplot.subplots()[1]")
    pictures = []
    for name in ("once", "again"):
        chapters.execute(path, tmp_path / f"{name}.ipynb", {}, tmp_path)
        outputs = nbformat.read(tmp_path / f"{name}.ipynb", 4).cells[-1].outputs
        pictures += [output.data["image/png"] for output in outputs]
    assert len(pictures) == 2
    assert pictures[0] == pictures[1]


def test_a_chapter_depends_on_its_source_data_parameters_and_nothing_else(small):
    path = small / "book" / "a_second.ipynb"

    def key(**values):
        keys.tree_digest.cache_clear()
        return keys.chapter_key(path, values)

    before = key()
    notebook = nbformat.read(path, 4)
    notebook.cells[1].outputs = [nbformat.v4.new_output("stream", text="old")]
    notebook.metadata["papermill"] = {"start_time": "now"}
    nbformat.write(notebook, path)
    (small / "book" / "intro.md").write_text("# Other prose\n")
    (small / "book" / "_static" / "other.css").write_text("p {}")
    assert key() == before
    assert key(n=2) != before
    (small / "book" / "tables" / "x.csv").write_text("value\n5\n")
    assert key() != before


def test_a_chapter_depends_on_the_modules_that_it_imports_however_far(small):
    path = small / "book" / "a_second.ipynb"
    studies = small / "book" / "studies"
    (studies / "deep").mkdir(parents=True)
    files = {
        studies / "__init__.py": "",
        studies / "near.py": "from studies import deep",
        studies / "deep" / "__init__.py": "from .far import x",
        studies / "deep" / "far.py": "from .. import beyond\nx = 1",
        studies / "beyond.py": "",
        studies / "unused.py": "",
    }
    for file, text in files.items():
        file.write_text(text)
    chapter(path, "%matplotlib inline\nimport studies.near as n", "import json")
    assert keys.modules(path) == sorted(set(files) - {studies / "unused.py"})
    before = keys.chapter_key(path, {})
    for file, changes in ((studies / "unused.py", False), (studies / "beyond.py", True)):
        file.write_text("x = 2")
        keys.tree_digest.cache_clear()
        assert (keys.chapter_key(path, {}) != before) == changes


def test_a_chapter_depends_on_the_whole_library(small, monkeypatch, tmp_path):
    package = tmp_path / "mergelib"
    (package / "metrics").mkdir(parents=True)
    monkeypatch.setattr(keys, "PACKAGE", package)
    found = []
    for text in ("x = 1", "x = 2"):
        (package / "metrics" / "angles.py").write_text(text)
        keys.tree_digest.cache_clear()
        found.append(keys.chapter_key(small / "book" / "a_second.ipynb", {}))
    assert len(set(found)) == 2


@pytest.mark.slow
def test_a_chapter_without_its_released_tables_is_shown_as_committed(small):
    path = small / "book" / "b_first.ipynb"
    chapter(path, "print(released)", parameters='released = "../released"')
    notebook = nbformat.read(path, 4)
    notebook.cells[3].outputs = [nbformat.v4.new_output("stream", text="as committed")]
    nbformat.write(notebook, path)
    chapter(small / "book" / "a_second.ipynb", "print(n)")
    assert chapters.lacks_released(path, {})
    page = build.build(small)[1].read_text()
    assert "as committed" in page
    assert site.AS_COMMITTED in page
    assert runs(small, "b_first") == 0

    (small / "checkout" / "results").mkdir(parents=True)
    page = build.build(small, released=small / "checkout")[1].read_text()
    assert "../checkout" in page
    assert site.AS_COMMITTED not in page
    assert runs(small, "b_first") == 1
    with pytest.raises(MergelibError, match="no checkout of the released tables"):
        build.build(small, released=small / "book")


@pytest.mark.slow
def test_a_failing_chapter_is_named_and_the_pages_that_stand_stay(small):
    out = small / "pages"
    out.mkdir()
    (out / "index.html").write_text("an earlier state")
    chapter(small / "book" / "a_second.ipynb", "x = 1", "print(x)\nraise ValueError('no\\nluck')")
    with pytest.raises(
        MergelibError, match=r"a_second\.ipynb.*cell \[4\].*print.*ValueError: luck"
    ):
        build.build(small, out=out)
    assert [(p.name, p.read_text()) for p in out.iterdir()] == [("index.html", "an earlier state")]
    assert not list(small.rglob("*.draft.ipynb"))
    assert (small / "book" / "a_second.ipynb").is_file()
    chapter(small / "book" / "a_second.ipynb", "x = 1")
    assert len(build.build(small, out=out)) == 3
    assert "an earlier state" not in (out / "index.html").read_text()
    assert runs(small, "b_first") == 1


@pytest.mark.slow
def test_editions_and_only_leave_other_copies_alone(small):
    built = build.build(small, passed={"n": 2}, edition="two")
    assert built[0] == small / "_build" / "editions" / "two" / "html" / "book" / "intro.html"
    texts = [page.read_text() for page in built]
    assert all("Edition: n = 2." in text for text in (texts[0], texts[2]))
    assert "n = 2 does not enter this page" in texts[1]
    assert all("(n = 2)</title>" in text.replace("\n", "") for text in texts)
    assert not (small / "_build" / "html").exists()

    built = build.build(small, only=["a_"], jobs=2)
    texts = [page.read_text() for page in built]
    assert not any("Edition:" in text for text in texts)
    assert [site.AS_COMMITTED in text for text in texts] == [False, True, False]
    assert (small / "_build" / "editions" / "two" / "html" / "index.html").is_file()
    stamp = built[0].stat().st_mtime_ns
    assert build.build(small, only=["a_"])[0].stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_chapters_run_two_at_a_time_with_the_same_outputs(small):
    names = ("b_first", "a_second")
    for name in names:
        chapter(small / "book" / f"{name}.ipynb", "print(n)")

    def run(key: str, jobs: int) -> list[bytes]:
        copies = [small / "copies" / f"{name}.ipynb" for name in names]
        chapters.run_changed(
            [
                chapters.Run(small / "book" / copy.name, copy, {"n": 2}, key, small)
                for copy in copies
            ],
            jobs,
        )
        return [copy.read_bytes() for copy in copies]

    assert run("once", jobs=1) == run("again", jobs=2)
    assert [runs(small, name) for name in names] == [2, 2]
    chapter(small / "book" / "a_second.ipynb", "1 / 0")
    with pytest.raises(MergelibError, match="a_second.*ZeroDivisionError"):
        run("third", jobs=2)


@pytest.mark.slow
def test_a_warning_of_the_renderer_is_an_error_and_nothing_half_made_stays(small):
    (small / "book" / "intro.md").write_text("# Intro\n\n[gone](no_such_page)\n")
    for name in ("a_second", "b_first"):
        chapter(small / "book" / f"{name}.ipynb")
    with pytest.raises(MergelibError, match="could not render.*intro.md.*no_such_page"):
        build.build(small)
    assert [path.name for path in (small / "_build").iterdir()] == ["book"]


def test_bad_input_is_one_clear_error(small, tmp_path):
    with pytest.raises(MergelibError, match="no folder of tables"):
        build.build(small, tables=tmp_path / "gone")
    with pytest.raises(MergelibError, match="commit-outputs"):
        build.build(small, passed={"n": 2}, commit=True)
    with pytest.raises(MergelibError, match="no chapter's name begins with '9'.* b_first, a_sec"):
        build.build(small, only=["9"])
    with pytest.raises(MergelibError, match="edition '../x' names a folder"):
        build.build(small, edition="../x")
    (small / "book" / "a_second.ipynb").write_text("not JSON")
    with pytest.raises(MergelibError, match="a_second.ipynb is no notebook"):
        build.build(small)
    (small / "book" / "a_second.ipynb").unlink()
    with pytest.raises(MergelibError, match="lists book/a_second, but there is no"):
        build.build(small)
    with pytest.raises(MergelibError, match="_toc.yml is missing"):
        build.build(tmp_path)


@pytest.mark.slow
def test_committed_outputs_are_the_same_each_time(small):
    path = small / "book" / "b_first.ipynb"
    before = nbformat.read(path, 4)
    for name in ("b_first", "a_second"):
        source = small / "book" / f"{name}.ipynb"
        chapters.execute(source, small / f"{name}.ipynb", {"n": 1, "tables": "tables"}, small)
        notebooks.commit_outputs(source, small / f"{name}.ipynb")
    first = path.read_bytes()
    after = nbformat.read(path, 4)
    assert [(c.id, c.source) for c in after.cells] == [(c.id, c.source) for c in before.cells]
    assert text_of(path) == "value 42 book\n"
    assert [c.execution_count for c in after.cells if c.cell_type == "code"] == [1, 2, 3, 4]
    held = json.loads(first)
    assert set(held["metadata"]) == {"kernelspec", "language_info"}
    assert all(set(cell["metadata"]) <= {"tags"} for cell in held["cells"])
    chapters.execute(path, small / "again.ipynb", {}, small)
    notebooks.commit_outputs(path, small / "again.ipynb")
    assert path.read_bytes() == first


def test_paths_of_the_machine_are_taken_out(tmp_path):
    hidden = f"{tmp_path}/book/x.csv in {tmp_path} of {sys.prefix}/lib, not {tmp_path}.old"
    assert notebooks.without_paths(hidden, tmp_path) == (
        f"book/x.csv in . of PYTHON/lib, not {tmp_path}.old"
    )


@pytest.mark.slow
def test_the_network_block_reaches_kernels_and_is_noticed(tmp_path, no_network):
    path = tmp_path / "book" / "calls_home.ipynb"
    path.parent.mkdir()
    call = "import socket\nsocket.create_connection(('192.0.2.1', 80), timeout=1)"
    chapter(path, call)
    with pytest.raises(MergelibError, match="calls_home.*the network is blocked"):
        chapters.execute(path, tmp_path / "done.ipynb", {}, tmp_path)
    assert "192.0.2.1" in no_network.read_text()
    no_network.write_text("")  # this attempt was meant


def test_the_module_loads_without_a_notebook_at_hand():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import mergelib.book.build, sys; print('papermill' in sys.modules)",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"


def test_a_chapter_finds_a_checkout_beside_its_repository(tmp_path, monkeypatch):
    monkeypatch.delenv("MERGELIB_RELEASED", raising=False)
    path = tmp_path / "repository" / "book" / "a.ipynb"
    path.parent.mkdir(parents=True)
    chapter(path, "print(1)", parameters='released: str = ""')
    assert chapters.lacks_released(path, {})
    (tmp_path / "demystifying-mergeability" / "results").mkdir(parents=True)
    assert not chapters.lacks_released(path, {})
    assert chapters.lacks_released(path, {"released": "elsewhere"})
    assert not chapters.lacks_released(path, {"released": tmp_path / "demystifying-mergeability"})
