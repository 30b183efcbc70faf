"""Pytest plugin: nbval compares the numbers of a chapter's outputs as numbers, not as text.

Floating-point sums differ in their last bits between processors, so a printed digit may move.
Two texts agree when they are the same with numbers masked and blanks folded, and each number is
within one unit of its last printed digit, or 1e-6 of its size where more digits are printed.
Numbers without a decimal point or an exponent are counts and names: they must be equal.
"""

import re
from dataclasses import dataclass
from decimal import Decimal

RELATIVE = Decimal("1e-6")
MINUS = "\N{MINUS SIGN}"
# Not inside a word (`l2to`, `null_95`), a colour or a version (`1.2.3`).
NUMBER = re.compile(
    rf"(?:(?<![\w.#])[-+{MINUS}])?(?<![\w.#])"
    rf"(?>\d+(?:,\d{{3}})*(?:\.\d+)?|\.\d+)(?!\.\d)(?:[eE][-+{MINUS}]?\d+(?!\w))?"
)
RULE = re.compile(r"([-=─])\1{2,}")  # under a table's head: as long as its column is wide


@dataclass(frozen=True)
class Number:
    """A printed number: its text, value, and the unit of its last digit (None: a count)."""

    text: str
    value: Decimal
    unit: Decimal | None

    @classmethod
    def of(cls, text: str) -> "Number":
        value = Decimal(text.replace(MINUS, "-").replace(",", ""))
        exact = re.fullmatch(rf"[-+{MINUS}]?[\d,]+", text) is not None
        return cls(text, value, None if exact else Decimal(1).scaleb(value.as_tuple().exponent))

    def agrees(self, reference: "Number") -> bool:
        """Whether both print the same quantity; the finer of both formats sets the unit."""
        units = [unit for unit in (self.unit, reference.unit) if unit is not None]
        if not units:
            return self.value == reference.value
        allowed = max(min(units), RELATIVE * abs(reference.value))
        return abs(self.value - reference.value) <= allowed


def masked(text: str) -> tuple[str, list[Number]]:
    """The text with `<number>` for each number and blanks folded; the numbers in order."""
    numbers = [Number.of(match) for match in NUMBER.findall(text)]
    lines = NUMBER.sub("\0", text).splitlines()
    folded = (re.sub(r"[^\S\n]+", " ", RULE.sub(r"\1\1\1", line)).strip() for line in lines)
    return "\n".join(folded).strip("\n"), numbers


def moved(test: str, reference: str) -> list[tuple[Number, Number]] | None:
    """Numbers (new, reference) too far apart; None when the texts differ in more than numbers."""
    if test == reference:
        return []
    (new, found), (old, wanted) = masked(test), masked(reference)
    if new != old or len(found) != len(wanted):
        return None
    return [(a, b) for a, b in zip(found, wanted, strict=True) if not a.agrees(b)]


def report(test: str, reference: str, cell: str) -> list[str]:
    """Lines that say which numbers of the cell moved, and by how much."""
    pairs = moved(test, reference)
    if pairs is None:
        return [f"{cell}: more than numbers differs"]
    return [
        f"{cell}: {b.text} became {a.text}, {abs(a.value - b.value):.3g} apart" for a, b in pairs
    ]


class OutputText(str):
    """Text of an output that equals another one when `moved` finds no number that did."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other):
        if not isinstance(other, OutputText):
            return str.__eq__(self, other)
        return moved(str(other), str(self)) == []  # nbval has the reference on the left

    def __ne__(self, other):
        return not self == other


def pytest_configure(config):
    """Have nbval's cells compare `OutputText`; everything else in nbval stays as it is."""
    try:
        from nbval import plugin
    except ImportError:
        return
    cell = plugin.IPyNbCell
    if getattr(cell, "compares_numbers", False):
        return
    sanitize, explain = cell.sanitize, cell.format_output_compare

    def sanitized(self, s):
        s = sanitize(self, s)
        return OutputText(s) if isinstance(s, str) else s

    def explained(self, key, left, right):
        if isinstance(left, str) and isinstance(right, str):
            where = f"{self.path.name}, cell {self.cell_num}, {key}"
            lines = report(str(right), str(left), where)
            self.comparison_traceback += [f" {line}" for line in lines]
            left, right = str(left), str(right)
        return explain(self, key, left, right)

    cell.sanitize, cell.format_output_compare = sanitized, explained
    cell.compares_numbers = True
