"""The rendered book in a browser, on a phone's screen and a desktop's."""

import re
from pathlib import Path

import browser
import pytest

from mergelib.book.contents import entries, sources
from mergelib.book.pages import check_links, check_pages, render
from mergelib.book.site import prepare

ROOT = Path(__file__).resolve().parents[1]
NAMES = entries(ROOT)
PHONE, DESK = (390, 844), (1400, 900)
GAP = 4  # pixels between the texts of two columns: a third of a letter's height, at least

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not browser.CHROMIUM, reason="no Chromium is installed here"),
]


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """The pages of the book, rendered from the committed outputs."""
    work = tmp_path_factory.mktemp("site")
    prepare(ROOT, {path: path for path in sources(ROOT, NAMES)}, work / "site")
    pages = render(work / "site", work)
    check_pages(pages, NAMES)
    check_links(pages)
    return pages


@pytest.fixture(scope="session")
def tab():
    with browser.tab() as held:
        yield held


# What lies beyond the right edge of the screen and is not inside a box that scrolls sideways.
WIDE = """
[...document.querySelectorAll("body *")].filter(element => {
  if (element.getBoundingClientRect().right <= screen.width + 1) return false;
  if (!element.checkVisibility()) return false;
  for (let around = element; around; around = around.parentElement) {
    const style = getComputedStyle(around);
    if (style.overflowX != "visible" || style.position == "fixed") return false;
  }
  return true;
}).map(element => element.outerHTML.slice(0, 120))
"""

# Tables of the text, all of them open, without the formulas that are read aloud and not shown.
TABLES = """
document.querySelectorAll("mjx-assistive-mml").forEach(each => each.remove());
document.querySelectorAll("article details").forEach(each => each.open = true);
window.shownTables = [...document.querySelectorAll("article table")]
  .filter(table => table.rows.length && table.checkVisibility());
"""

# Tables whose last column cannot be brought onto the screen by scrolling the box around them.
UNREACHABLE = f"""{TABLES}
shownTables.filter(table => {{
  const box = (() => {{
    for (let a = table.parentElement; a; a = a.parentElement)
      if (["auto", "scroll"].includes(getComputedStyle(a).overflowX)) return a;
  }})();
  if (box) box.scrollLeft = box.scrollWidth;
  const right = Math.max(...[...table.rows].map(
    row => row.cells[row.cells.length - 1].getBoundingClientRect().right));
  if (box) box.scrollLeft = 0;
  return right > screen.width + 1;
}}).map(table => table.innerText.slice(0, 120))
"""

# Pairs of neighbouring cells whose texts come nearer than GAP, measured on the text itself.
TOUCHING = f"""{TABLES}
shownTables.flatMap(table => [...table.rows].flatMap(row => {{
  const spans = [...row.cells].map(cell => {{
    const range = document.createRange();
    range.selectNodeContents(cell);
    return [range.getBoundingClientRect(), cell.innerText.trim()];
  }}).filter(([, text]) => text);
  return spans.slice(1).flatMap(([box, text], k) =>
    box.left - spans[k][0].right < {GAP} ? [spans[k][1] + " | " + text] : []);
}}))
"""

# Pictures of the text without words, or with the name of a file for words.
WORDLESS = r"""
[...document.querySelectorAll("article img")]
  .filter(img => !img.alt.trim() || /^\S+\.(png|svg|jpe?g|gif)$|^\S*[/_]\S*$/.test(img.alt.trim()))
  .map(img => (img.alt || img.src).slice(-60))
"""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("screen", [PHONE, DESK], ids=["phone", "desk"])
def test_a_page_has_no_error_and_fits_the_screen(site, tab, name, screen):
    tab.size(*screen)
    tab.visit(site / f"{name}.html")
    assert tab.errors == []
    assert tab.ask(WIDE) == []
    assert tab.ask("document.documentElement.scrollWidth") <= screen[0]


@pytest.mark.parametrize("name", NAMES)
def test_tables_can_be_read_on_a_phone(site, tab, name):
    tab.size(*PHONE)
    tab.visit(site / f"{name}.html")
    assert tab.ask(UNREACHABLE) == []
    assert tab.ask(TOUCHING) == []


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_told_in_words(site, tab, name):
    tab.visit(site / f"{name}.html")
    assert tab.ask(WORDLESS) == []


@pytest.mark.parametrize("name", ["search", "genindex"])
def test_the_pages_around_have_no_error(site, tab, name):
    tab.visit(site / f"{name}.html")
    assert tab.errors == []


FAULTS = {
    "error": "<script>throw new Error('broken on purpose')</script>",
    "console": "<script>console.error('told on purpose')</script>",
    "missing": "<img src='gone.png' alt='a picture that is not there'>",
    "wide": "<p style='width: 900px'>wide</p>",
    "hidden": "<div style='overflow: hidden'><table><tr><td style='min-width: 900px'>a"
    "</td><td>last</td></tr></table></div>",
    "touching": "<table style='border-spacing: 0'><tr><td style='padding: 0'>0.112</td>"
    "<td style='padding: 0'>0.837</td></tr></table>",
    "wordless": "<img src='data:,'><img src='data:,' alt='_images/ab12_3.png'>",
}


def test_each_check_finds_its_fault(tmp_path, tab):
    """The checks above, on pages that are broken on purpose."""
    tab.size(*PHONE)
    found = {}
    for name, fault in FAULTS.items():
        page = tmp_path / f"{name}.html"
        meta = "<meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        page.write_text(f"<!doctype html><html><head>{meta}</head><body><article>{fault}")
        tab.visit(page)
        asked = {
            "wide": WIDE,
            "hidden": UNREACHABLE,
            "touching": TOUCHING,
            "wordless": WORDLESS,
        }
        found[name] = len(tab.ask(asked[name])) if name in asked else len(tab.errors)
    assert found == dict.fromkeys(FAULTS, 1) | {"wordless": 2}


def test_a_page_asks_nothing_of_the_network(site):
    for name in NAMES:
        text = (site / f"{name}.html").read_text()
        needed = re.findall(r'<(?:script|link|img)\b[^>]* (?:src|href)="(https?:[^"]+)', text)
        assert needed == [], name
