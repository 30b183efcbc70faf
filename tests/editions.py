"""Chapters run in other editions, and what their sentences then say.

    python tests/editions.py [CHAPTER ...]

runs every chapter named (04, 05; all by default) at its defaults and at the editions below, in this
process and without touching a file, and prints for each edition: how many computed sentences and
tables it has, how many changed against the default, and the claims that do not hold there. It
ends with status 1 if a cell fails, if a sentence or table holds a "nan", if a chapter's text names
a verdict that no cell computed, if a sentence kept three decimals or more where all tables changed,
or if a chapter's own check (CHECKS, shared with the tests) finds a sentence that contradicts a
table. Run it from the repository's root.
"""

import ast
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
sys.path[:0] = [p for p in (str(ROOT), str(BOOK)) if p not in sys.path]
matplotlib.use("agg")

import nbformat  # noqa: E402
from matplotlib import pyplot  # noqa: E402

from studies.display import Drawn, Prose, Shown  # noqa: E402

# Parameters of an edition by chapter: other targets, splits, backbones, methods.
EDITIONS: dict[str, list[dict[str, Any]]] = {
    "03": [{"first": "ties", "second": "dare"}],
    "04": [
        {"target": "raw"},
        {"target": "residual"},
        {"split": "l2to"},
        {"split": "halves"},
        {"setting": "ViT-B-32_AdamW"},
        {"method": "ties", "target": "raw", "split": "l2to"},
    ],
    "05": [{"target": "raw"}, {"target": "residual"}, {"setting": "ViT-B-32_AdamW"}],
    "06": [{"target": "raw"}, {"setting": "ViT-B-32_AdamW"}],
    "10": [{"shown": "ties"}],
    "11": [{"shown": "ties"}],
    "13": [{"degrees": 0.0}, {"degrees": 90.0}],
}
DECIMAL = re.compile(r"\d+\.\d+")
VERDICT = re.compile(r"\*\((Holds|Does not hold in this edition|Not asked in this edition)\.\)\*")


@dataclass(frozen=True)
class Ran:
    """What the cells of a chapter returned, by cell id in order, and their names."""

    outputs: dict[str, Any]
    names: dict[str, Any]
    text: str  # of the Markdown cells

    def table(self, cell: str) -> list[list[str]]:
        """Rows of the table that a cell shows, as a reader sees them."""
        return self.outputs[cell].rows

    def prose(self, cell: str) -> str:
        """The sentences that a cell says."""
        return self.outputs[cell].markdown

    def all(self, kind: type) -> dict[str, str]:
        """Every output of a kind, as text."""
        return {cell: repr(out) for cell, out in self.outputs.items() if isinstance(out, kind)}


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        pyplot.close("all")


def run(path: Path, **parameters: Any) -> Ran:
    """A chapter's code cells in one namespace, parameters put in after its own.

    Raises KeyError for a parameter that the chapter does not have, and what a cell raises.
    """
    notebook = nbformat.read(path, 4)
    names: dict[str, Any] = {"__name__": "__main__", "display": lambda *_: None}
    outputs = {}
    with _inside(path.parent):
        for cell in notebook.cells:
            if cell.cell_type != "code":
                continue
            outputs[cell.id] = _value(cell.source, names, f"{path.stem}:{cell.id}")
            if "parameters" in cell.metadata.get("tags", []):
                for name, value in parameters.items():
                    if name not in names:
                        raise KeyError(f"{path.stem} has no parameter {name}")
                    names[name] = value
    text = "\n\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    return Ran(outputs, names, text)


def _value(source: str, names: dict[str, Any], where: str) -> Any:
    """Run a cell; the value of its last line if that is an expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, where, "exec"), names)
    if last is not None:
        return eval(compile(ast.Expression(last.value), where, "eval"), names)
    return None


# ---- What is asked of every chapter -------------------------------------------------------------


# of the residuals of glyphs and real20, whatever target and setting an edition has
OF_NO_EDITION = {"c04-real-pair"}


def faults(ran: Ran, default: Ran | None = None) -> list[str]:
    """What no edition may show; against the default one, also sentences that did not follow."""
    said, shown = ran.all(Prose), ran.all(Shown)
    found = [
        f"{cell}: not a number" for cell, text in (said | shown).items() if "nan" in text.split()
    ]
    found += [f"typed verdict in the text: {m.group()}" for m in VERDICT.finditer(ran.text)]
    if default is None:
        return found
    before, tables = default.all(Prose), default.all(Shown)
    if tables and all(shown.get(cell) != text for cell, text in tables.items()):
        found += [
            f"{cell}: the same decimals although all tables changed"
            for cell, text in said.items()
            # one or two may be a setting, or agree by chance
            if cell not in OF_NO_EDITION
            and len(DECIMAL.findall(text)) > 2
            and DECIMAL.findall(text) == DECIMAL.findall(before[cell])
        ]
    return found


def told(ran: Ran, default: Ran) -> str:
    """One line on an edition."""
    said, shown = ran.all(Prose), ran.all(Shown)
    before = default.all(Prose) | default.all(Shown)
    moved = [sum(before[cell] != text for cell, text in part.items()) for part in (said, shown)]
    verdicts = [m.group(1).split()[0] for text in said.values() for m in VERDICT.finditer(text)]
    return (
        f"{len(said)} cells of sentences, {moved[0]} other; {len(shown)} tables, {moved[1]} other; "
        f"{len(ran.all(Drawn))} figures; claims: {verdicts.count('Holds')} hold, "
        f"{verdicts.count('Does')} do not, {verdicts.count('Not')} not asked"
    )


# ---- What is asked of a chapter: sentences beside the tables that they stand at -----------

WORDS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight")


def in_words(n: int, of: int) -> str:
    """How many of how many, as the chapters say it; written out here to be independent of them."""
    if n == 0:
        return f"none of {WORDS[of]}"
    return f"all {WORDS[of]}" if n == of else f"{WORDS[n]} of {WORDS[of]}"


def _column(rows: list[list[str]], k: int) -> list[float]:
    """Numbers of a shown column without its dashes."""
    return [float(row[k].replace("−", "-")) for row in rows if row[k] != "–"]


def _counts(rows: list[list[str]], k: int) -> str:
    p = _column(rows, k)
    return in_words(sum(value < 0.05 for value in p), len(p))


def _methods(rows: list[list[str]], k: int) -> str:
    """Methods with p below 0.05 in a shown column, named unless all or none have."""
    asked = [row for row in rows if row[k] != "–"]
    found = [row[0] for row in asked if float(row[k]) < 0.05]
    names = " and ".join([", ".join(found[:-1]), found[-1]] if found[1:] else found)
    return f"{_counts(rows, k)} methods" + (f" ({names})" if 0 < len(found) < len(asked) else "")


def _near(text: str, value: float, unit: float = 0.01) -> bool:
    """Whether a text says the number, within what rounding of the table's entries allows."""
    numbers = [float(n.replace("−", "-")) for n in re.findall(r"[−-]?\d+\.\d+", text)]
    return any(abs(n - value) <= 1.01 * unit for n in numbers)


def check_fits(ran: Ran) -> list[str]:
    """Chapter 4: what its sentences say, recomputed from the tables that a reader sees."""
    target, split = ran.names["target"], ran.names["split"]
    chance, unseen = ran.table("c04-15"), ran.table("c04-22")
    by_target, agreed = ran.table("c04-25"), ran.table("c04-39")
    found = []

    def ask(cell: str, what: str, holds: bool) -> None:
        if not holds:
            found.append(f"{cell}: {what} | {ran.prose(cell)}")

    for k, (p, r) in enumerate(((2, 1), (4, 3))):
        line, far = (ran.prose(cell).splitlines() for cell in ("c04-16", "c04-23"))
        ask("c04-16", f"methods of source {k}", f"for {_methods(chance, p)};" in line[k + 1])
        ask("c04-23", f"methods of source {k}", f"for {_methods(unseen, p)};" in far[k])
        mean = sum(_column(chance, r)) / len(_column(chance, r))
        ask("c04-03", f"mean r of source {k}", _near(ran.prose("c04-03"), mean))
        ask("c04-03", "chance", _counts(chance, p) in ran.prose("c04-03"))
        ask("c04-03", "both held out", _counts(unseen, p) in ran.prose("c04-03"))
        ask("c04-42", "both held out", _counts(unseen, p) in ran.prose("c04-42"))
        for row in by_target:
            if row[0] == "both tasks held out":
                ask("c04-27", f"{row[1]}: {row[3 + 2 * k]}", _said(ran, row, row[3 + 2 * k]))
    alike = all(float(row[5]) >= 0.05 for row in agreed)
    ask("c04-40", "verdict on agreement", ("*(Holds.)*" in ran.prose("c04-40")) == alike)
    effects = [row for row in ran.table("c04-08") if row[0] == "task effects"]
    absent = split != "loto" or target == "residual"
    ask("c04-10", "task effects", all(row[1] == "–" for row in effects) == absent)
    ask("c04-10", "asks of task effects", ("Not asked" in ran.prose("c04-10")) == absent)
    ask("c04-03", "tells of task effects", ("Task effects" in ran.prose("c04-03")) != absent)
    if split != "loto":
        ask("c04-03", "one task held out", "one task held out" not in ran.prose("c04-03"))
    return found


def _said(ran: Ran, row: list[str], counted: str) -> bool:
    """Whether the sentence on a target has the count, or its claim that there is none holds."""
    place = {"raw": 0, "normalized": 1, "residual": 2}[row[1]]
    line = ran.prose("c04-27").splitlines()[place]
    if row[1] == "raw" and "*(Holds.)*" in line:
        return counted.startswith("none of")
    return counted in line


def _first(row: list[str], heads: list[str]) -> str:
    """The category with the most negative change in a row of "−0.11 (6)"."""
    change = {
        h: float(cell.split()[0].replace("−", "-")) for h, cell in zip(heads, row, strict=True)
    }
    return min(change, key=lambda name: (change[name], name))


def check_ablations(ran: Ran) -> list[str]:
    """Chapter 5: what its sentences say of first places, recomputed from the tables shown."""
    target, matrix = ran.names["target"], ran.outputs["c05-05"]
    heads, rows = matrix.heads[1:], {row[0]: row[1:] for row in matrix.rows}
    found = []
    targets = ("raw", "normalized", "residual")
    for k, source in enumerate((ran.names["a"], ran.names["b"])):
        first = {t: _first(rows[f"{source}: {t}"], heads) for t in targets}
        line = ran.prose("c05-06").splitlines()[k]
        n = int(rows[f"{source}: {target}"][heads.index(first[target])].split("(")[1][:-1])
        counted = in_words(n, len(ran.names["sources"][k].methods))
        asked = [
            ("c05-06", first[target] in line),
            ("c05-06", ("*(Holds.)*" in line) == (len(set(first.values())) == 1)),
            ("c05-03", f"{first[target]} metrics" in ran.prose("c05-03")),
            ("c05-03", f"{counted} methods" in ran.prose("c05-03")),
        ]
        for row in ran.table("c05-22"):
            told = ran.prose("c05-23").splitlines()[k]
            lost = 0 if row[2 + 2 * k].startswith("none") else 1
            said = re.search(rf"{row[0]} \(\d+\)", told) is not None
            asked.append(("c05-23", bool(lost) == said))
        found += [f"{cell}: {source} | {ran.prose(cell)}" for cell, holds in asked if not holds]
    return found


CHECKS: Mapping[str, Callable[[Ran], list[str]]] = {"04": check_fits, "05": check_ablations}


def main(chapters: list[str]) -> int:
    """Run chapters in all their editions; the exit status."""
    bad = 0
    for path in sorted(BOOK.glob("[0-9][0-9]_*.ipynb")):
        number = path.stem[:2]
        if chapters and number not in chapters or not chapters and number not in EDITIONS:
            continue
        default = None
        for edition in [{}, *EDITIONS.get(number, [])]:
            name = ", ".join(f"{k} {v}" for k, v in edition.items()) or "default"
            try:
                ran = run(path, **edition)
            except Exception as error:
                print(f"{number} {name}: FAILED {type(error).__name__}: {error}")
                bad += 1
                continue
            wrong = faults(ran, default) + CHECKS.get(number, lambda _: [])(ran)
            default = default or ran
            print(f"{number} {name}: {told(ran, default)}", *wrong, sep="\n    ")
            bad += len(wrong)
    return int(bad > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
