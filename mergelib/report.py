"""Tables as the book prints them: spread out, in rounded numbers."""

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
