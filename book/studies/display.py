"""Tables as the book prints them: spread out, in rounded numbers."""

from collections.abc import Sequence
from typing import Any

import pandas as pd


def grid(frame: pd.DataFrame, rows: str, columns: str, values: str) -> pd.DataFrame:
    """A long table spread out, rows and columns in the order of their first appearance."""
    wide = frame.pivot(index=rows, columns=columns, values=values)
    wide = wide.loc[list(dict.fromkeys(frame[rows])), list(dict.fromkeys(frame[columns]))]
    return wide.rename_axis(index=None, columns=None)


def rounded(frame: pd.DataFrame, digits: int = 2) -> pd.DataFrame:
    """Numbers with `digits` decimals as text, a dash for what is undefined, no negative zero."""

    def text(value: Any) -> Any:
        if value is None or value is pd.NA or value != value:
            return "–"
        if isinstance(value, float):
            return f"{round(value, digits) + 0.0:.{digits}f}"
        return value

    return frame.astype(object).map(text)


def or_say(frame: pd.DataFrame, otherwise: str) -> pd.DataFrame | None:
    """The table if it has rows; else `otherwise` is printed, and there is nothing to show."""
    if len(frame):
        return frame
    print(otherwise)
    return None


def in_points(frame: pd.DataFrame, columns: Sequence[str], digits: int = 2) -> pd.DataFrame:
    """The table as text (see `rounded`), the named columns of fractions as percentage points."""
    return rounded(frame.assign(**{name: 100 * frame[name] for name in columns}), digits)
