"""The folder of pages: swapped whole, no page missing, no link broken."""

import shutil

import pytest

from mergelib.book import pages
from mergelib.core.errors import MergelibError


def test_a_swap_that_was_cut_short_is_mended(tmp_path):
    new, out, old = tmp_path / "new", tmp_path / "html", tmp_path / ".html.old"
    for folder, text in ((new, "new"), (old, "old")):
        folder.mkdir()
        (folder / "index.html").write_text(text)
    pages.recover(out)  # the old pages had been put aside, the new ones did not stand yet
    assert (out / "index.html").read_text() == "old"
    pages.swap(new, out)
    assert (out / "index.html").read_text() == "new"
    shutil.copytree(out, old)  # the new ones stood, the old ones had not gone yet
    pages.recover(out)
    assert [path.name for path in tmp_path.iterdir()] == ["html"]
    assert (out / "index.html").read_text() == "new"


PAGE = "<html><body><article>text</article>{}</body></html>"


def test_a_missing_or_empty_page_is_found(tmp_path):
    (tmp_path / "index.html").write_text(PAGE)
    (tmp_path / "full.html").write_text(PAGE)
    (tmp_path / "empty.html").write_text("<html><nav>menu</nav><article> </article></html>")
    assert pages.check_pages(tmp_path, ["full"]) == [tmp_path / "full.html"]
    for name in ("gone", "empty"):
        with pytest.raises(MergelibError, match=f"chapter {name} has no page, or an empty one"):
            pages.check_pages(tmp_path, ["full", name])


@pytest.mark.parametrize(
    ("link", "whole"),
    [
        ('<a href="b.html#there">', True),
        ('<a href="#top"></a><h1 id="top">', True),
        ('<a href="https://example.com/x">', True),
        ('<img src="data:image/png;base64,AA">', True),
        ('<a href="b.html#nowhere">', False),
        ('<a href="c.html">', False),
        ('<img src="_images/gone.png">', False),
    ],
)
def test_links_are_followed(tmp_path, link, whole):
    (tmp_path / "a.html").write_text(PAGE.format(link))
    (tmp_path / "b.html").write_text(PAGE.format('<h2 id="there">'))
    if whole:
        pages.check_links(tmp_path)
    else:
        with pytest.raises(MergelibError, match="broken links in the book: a.html"):
            pages.check_links(tmp_path)
