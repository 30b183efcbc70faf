"""What a chapter shows: sentences that are computed, tables and figures that can be read.

Everything here returns an object that the notebook shows when it ends a cell. The page
numbers tables and figures; a number in a sentence comes out of the cell that computed it.
"""

import html
import io
import itertools
import re
from binascii import b2a_base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot
from matplotlib.figure import Figure

from mergelib.core.errors import MergelibError

COLUMNS = 6  # at most, the rows' names among them: what fits a phone after one push of the thumb
ROWS = 12  # a longer table opens on demand
WORDS, NUMBERS = 110, 6  # of an answer in short
IN_WORDS = (
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
    "twenty",
)  # fmt: skip
MINUS, ABSENT = "−", "–"
NUMBER = re.compile(r"(?<![\w/.\-])[−-]?\d+(?:[.,]\d+)*(?![\w/])")

# What the code calls a thing, and what a reader does.
LABELS = {
    "additive_task_effects": "task effects",
    "base_knowledge": "base knowledge",
    "best_single_metric": "best single metric",
    "constant": "constant",
    "single_task_accuracy": "single-task accuracy",
    "null_mean": "chance: mean",
    "null_95": "chance: 95 % point",
    "p": "p",
    "p_holm": "p (Holm)",
    "loto": "one task held out",
    "l2to": "both tasks held out",
    "halves": "disjoint halves of the tasks",
    "r_fold_mean": "r, mean over folds",
    "r_fold_sd": "sd of r over folds",
    "r_concatenated": "r, folds side by side",
    "r_pooled": "r over all pairs",
    "weight_avg": "weight average",
    "arithmetic": "task arithmetic",
    "ties": "TIES",
    "dare": "DARE",
    "tsv": "TSV",
    "isotropic": "isotropic",
    "iso_cts": "Iso-CTS",
    "tall_masks": "TALL masks",
    "emr": "EMR",
    "base_protecting": "base-protecting",
    "l2_to_base": "L2 to the base",
    "sharpness_aware": "sharpness-aware",
    "lora": "LoRA",
    "coefficient_and_partner": "coefficient and partner",
    "ridge": "ridge",
    "lasso": "lasso",
    "ols": "least squares",
    "paper-l1": "published predictor",
    "task_vector": "task vector",
    "effective_rank": "effective rank",
    "subspace": "subspace",
    "activation": "activation",
    "gradient": "gradient",
}


def label(name: Any) -> str:
    """The reader's word for a name of the code; other names as they are, without underscores.

    What stands in backticks is a user's own name and stays as it is.
    """
    text = str(name)
    return LABELS.get(text, text if text.startswith("`") else text.replace("_", " "))


# ---- Sentences ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prose:
    """Markdown that a cell computed."""

    markdown: str

    def _repr_markdown_(self) -> str:
        return self.markdown

    def __repr__(self) -> str:
        return self.markdown

    def __add__(self, other: "Prose") -> "Prose":
        return Prose(f"{self.markdown}\n\n{other.markdown}")


def say(text: str, **numbers: Any) -> Prose:
    """A sentence with its numbers put in: `say("r is {r:.2f}", r=r)`.

    Formats are Python's, and `{p:p}` for a p-value; minus signs are typographic, what is not a
    number a dash.
    """
    return Prose(_filled(text, numbers))


def claim(text: str, holds: bool | None, otherwise: str = "", **numbers: Any) -> Prose:
    """A finding and whether it holds in this edition, with its numbers.

    `holds` is the test's own result (None where it cannot be asked: a method, a source is absent).
    The verdict word is derived from it; where it does not hold, `otherwise` says what does.
    """
    told = _filled(text, numbers)
    if holds is None:
        return Prose(f"{told} *(Not asked in this edition.)*")
    if holds:
        return Prose(f"{told} *(Holds.)*")
    instead = f" {_filled(otherwise, numbers)}" if otherwise else ""
    return Prose(f"{told} *(Does not hold in this edition.)*{instead}")


def claims(*found: Prose) -> Prose:
    """Findings as a list."""
    return Prose("\n".join(f"- {each.markdown}" for each in found))


def answer(*sentences: Prose | str) -> Prose:
    """The answer in short: at most 110 words and 6 numbers.

    Raises MergelibError if there are more: what is long is no answer in short.
    """
    text = " ".join(s if isinstance(s, str) else s.markdown for s in sentences)
    words, numbers = len(text.split()), len(NUMBER.findall(text))
    if words > WORDS or numbers > NUMBERS:
        raise MergelibError(
            f"an answer in short has {words} words and {numbers} numbers: at most {WORDS} and "
            f"{NUMBERS}, shorten it"
        )
    return Prose(f"**Answer in short.** {text}")


def listed(items: Sequence[Any], none: str = "none") -> str:
    """Names as words: "a, b and c"."""
    names = [label(item) for item in items]
    if len(names) < 2:
        return names[0] if names else none
    return f"{', '.join(names[:-1])} and {names[-1]}"


def count(n: int, of: int | None = None) -> str:
    """How many, in words: "none", "all six", "two of six"."""
    said = IN_WORDS[n] if 0 < n < len(IN_WORDS) else str(n)
    if of is None:
        return said if n else "none"
    total = IN_WORDS[of] if 0 < of < len(IN_WORDS) else str(of)
    if n == 0:
        return f"none of {total}"
    return f"all {total}" if n == of else f"{said} of {total}"


class _Fill(dict):
    """Numbers of a sentence, formatted for a reader."""

    def __missing__(self, key: str) -> Any:
        raise MergelibError(f"the sentence names {key!r}, which it is not given")


class _Shown:
    """A value that formats itself as `number` does."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __format__(self, spec: str) -> str:
        return number(self.value, spec)

    def __getitem__(self, key: Any) -> "_Shown":
        return _Shown(self.value[key])


def _filled(text: str, numbers: Mapping[str, Any]) -> str:
    return text.format_map(_Fill({name: _Shown(value) for name, value in numbers.items()}))


def number(value: Any, spec: str = "") -> str:
    """A value as text: `spec` is Python's, "p" for a p-value, "%" or ".1%" for a share.

    Typographic minus, no sign before a zero, a dash for what is undefined.
    """
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return ABSENT
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, str) or not isinstance(value, (int, float, np.integer, np.floating)):
        return f"{value:{spec}}" if spec else str(value)
    if spec == "p":
        return f"{value:.3f}" if value < 0.1 else f"{value:.2f}"
    if isinstance(value, (float, np.floating)) and not np.isfinite(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if spec == "%":
        spec = ".0%"
    text = (
        f"{value:{spec}}" if spec else (f"{value:.2f}" if isinstance(value, float) else f"{value}")
    )
    if spec.endswith("%"):
        text = text.replace("%", " %")
    if text[0] in "+-" and not re.search(r"[1-9]", text):
        return text[1:]
    return MINUS + text[1:] if text.startswith("-") else text


# ---- Tables -------------------------------------------------------------------------------------

Head = str | tuple[str, str]
Format = str | Callable[[Any], str]


@dataclass(frozen=True)
class Shown:
    """A table as the page shows it."""

    caption: str
    heads: list[Head]
    rows: list[list[str]]
    right: list[bool] = field(default_factory=list)  # columns of numbers

    def _repr_html_(self) -> str:
        table = f'<table class="ml">{self._head()}{self._body()}</table>'
        inside = f'<div class="ml-scroll" tabindex="0">{table}</div>'
        if len(self.rows) > ROWS:
            summary = f"<summary>{len(self.rows)} rows</summary>"
            inside = f'<details class="ml-long">{summary}{inside}</details>'
        caption = f"<figcaption>{_inline(self.caption)}</figcaption>"
        return f'<figure class="ml-table">{caption}{inside}</figure>'

    def __repr__(self) -> str:
        heads = [" ".join(h) if isinstance(h, tuple) else h for h in self.heads]
        frame = pd.DataFrame(self.rows, columns=pd.Index(heads), dtype=object)
        return f"{self.caption}\n{frame.to_string(index=False)}"

    def _head(self) -> str:
        groups = [h[0] if isinstance(h, tuple) else "" for h in self.heads]
        lower = [h[1] if isinstance(h, tuple) else h for h in self.heads]
        top = "".join(
            f'<th class="ml-group" colspan="{len(list(run))}" scope="colgroup">{_inline(name)}</th>'
            for name, run in itertools.groupby(groups)
        )
        names = "".join(
            f'<th scope="col"{self._side(k)}>{_inline(name)}</th>' for k, name in enumerate(lower)
        )
        return f"<thead>{f'<tr>{top}</tr>' if any(groups) else ''}<tr>{names}</tr></thead>"

    def _body(self) -> str:
        lines = []
        for row in self.rows:
            first = f'<th scope="row"{self._side(0)}>{_inline(row[0])}</th>'
            rest = "".join(
                f"<td{self._side(k)}>{_inline(cell)}</td>" for k, cell in enumerate(row[1:], 1)
            )
            lines.append(f"<tr>{first}{rest}</tr>")
        return f"<tbody>{''.join(lines)}</tbody>"

    def _side(self, column: int) -> str:
        return ' class="ml-number"' if self.right[column] else ""


def show(
    table: pd.DataFrame,
    caption: str,
    columns: Mapping[str, Head] | None = None,
    formats: Mapping[str, Format] | None = None,
    digits: int = 2,
) -> Shown:
    """A table with human heads, a caption, and number formats by column.

    `columns` maps the columns that are shown, in their order, to their heads, with units; a head
    may be a pair (group, head): neighbours of one group stand under it. Levels of a named index are
    columns too. Without `columns` all are shown, by `label`. `formats` maps a column to a format of
    `number` or a function; other floats have `digits` decimals; text of the first column is put
    through `label`. Raises MergelibError for an unknown column and for more than six.
    """
    frame = table.reset_index() if any(n is not None for n in table.index.names) else table
    heads = dict(columns) if columns else {name: label(name) for name in frame.columns}
    missing = [name for name in (*heads, *(formats or {})) if name not in frame]
    if missing:
        raise MergelibError(f"the table has no column {missing[0]!r}: it has {list(frame.columns)}")
    if len(heads) > COLUMNS:
        raise MergelibError(
            f"{len(heads)} columns, more than a reader can follow: choose {COLUMNS}, or show two "
            "tables"
        )
    texts, right = [], []
    for k, name in enumerate(heads):
        column = frame[name]
        numeric = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
        made = (formats or {}).get(name, f".{digits}f" if _floats(column) else "")
        each = made if callable(made) else (lambda v, spec=made: number(v, spec))
        values = [each(value) for value in column]
        if k == 0 and not numeric:
            values = [label(value) for value in values]
        texts.append(values)
        right.append(numeric or _numbers(values))
    rows = [list(row) for row in zip(*texts, strict=True)]
    return Shown(caption, list(heads.values()), rows, right)


def _floats(column: pd.Series) -> bool:
    if pd.api.types.is_float_dtype(column):
        return True
    return column.dtype == object and any(isinstance(v, (float, np.floating)) for v in column)


def _numbers(values: Sequence[str]) -> bool:
    """Whether all are numbers or dashes, so that they stand at the right."""
    return all(re.fullmatch(rf"[{MINUS}+-]?[\d.,]+( %)?|{ABSENT}", v) for v in values)


def _inline(text: str) -> str:
    """Markdown's code, emphasis and links within a line, as HTML."""
    codes: list[str] = []  # put aside, as nothing in them is markup

    def aside(found: re.Match) -> str:
        codes.append(found[1])
        return f"\0{len(codes) - 1}\0"

    out = re.sub(r"`([^`]+)`", aside, html.escape(str(text), quote=False))
    out = re.sub(r"\*([^*]+)\*", r"<em>\1</em>", out)
    out = re.sub(r"\[([^\]]+)\]\(([^)]+)\)", r'<a href="\2">\1</a>', out)
    return re.sub(r"\0(\d+)\0", lambda found: f"<code>{codes[int(found[1])]}</code>", out)


# ---- Figures ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """A figure with its caption and what it shows in words."""

    png: bytes
    caption: str
    alt: str

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict, dict]:
        told = {"alt": self.alt, "caption": self.caption}
        picture = b2a_base64(self.png, newline=False).decode("ascii")
        return {"image/png": picture, "text/plain": repr(self)}, {"image/png": told}

    def __repr__(self) -> str:
        return f"{self.caption}\n[{self.alt}]"


def figure(drawn: Figure, caption: str, alt: str) -> Drawn:
    """A figure as the page shows it.

    `caption`: origin, n, uncertainty; `alt`: what is drawn and what one would see, for who cannot.
    Closes the figure, so that it is shown once. Raises MergelibError without caption or alt text.
    """
    if not caption.strip() or not alt.strip():
        raise MergelibError("a figure needs a caption and an alt text: say what it shows")
    held = io.BytesIO()
    drawn.savefig(held, format="png", bbox_inches="tight", metadata={"Software": None})
    pyplot.close(drawn)
    return Drawn(held.getvalue(), caption, alt)


# ---- Frames -------------------------------------------------------------------------------------


def grid(frame: pd.DataFrame, rows: str, columns: str, values: str) -> pd.DataFrame:
    """A long table spread out, rows and columns in the order of their first appearance."""
    wide = frame.pivot(index=rows, columns=columns, values=values)
    wide = wide.loc[list(dict.fromkeys(frame[rows])), list(dict.fromkeys(frame[columns]))]
    return wide.rename_axis(index=None, columns=None)


def beside(frames: Mapping[str, pd.DataFrame], on: str) -> pd.DataFrame:
    """Tables of several sources as one: `on`, then each source's columns as "source: column".

    Rows in the order of their first appearance; what a source lacks is NaN.
    """
    rows = list(dict.fromkeys(row for frame in frames.values() for row in frame[on]))
    parts = [
        frame.set_index(on).reindex(rows).add_prefix(f"{source}: ")
        for source, frame in frames.items()
    ]
    return pd.concat(parts, axis=1).rename_axis(on).reset_index()
