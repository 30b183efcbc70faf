"""Pages rendered by Jupyter Book, then checked: each is there, every link leads somewhere."""

import html.parser
import os
import re
import shutil
import subprocess
import sys
import urllib.parse
from collections.abc import Mapping
from pathlib import Path

from mergelib.core.errors import MergelibError

# ---- Rendering --------------------------------------------------------------------------------


def render(site: Path, work: Path) -> Path:
    """Render a folder that `prepare` filled, every warning an error; returns the pages' folder.

    Raises MergelibError with the first warnings.
    """
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


def swap(new: Path, out: Path) -> None:
    """Put the folder `new` in the place of `out`; a reader meets one of the two, whole.

    What lay at `out` goes once the new pages stand there. `recover` mends a swap cut short.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    recover(out)
    staged, old = _beside(out, "new"), _beside(out, "old")
    shutil.rmtree(staged, ignore_errors=True)
    shutil.move(new, staged)  # from another file system too; the renames below stay in one
    if out.exists():
        out.rename(old)
    staged.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def recover(out: Path) -> None:
    """After a swap that was cut short: the old pages stand again, or go if the new ones do."""
    old = _beside(out, "old")
    if old.exists() and not out.exists():
        old.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _beside(out: Path, which: str) -> Path:
    return out.with_name(f".{out.name}.{which}")


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
