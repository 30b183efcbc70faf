"""Named rows (metrics, merging methods) in registration order."""

import difflib
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, Generic, TypeVar

import pandas as pd

from mergelib.core.errors import MergelibError

Row = TypeVar("Row")


class Registry(Generic[Row]):
    """Rows by name, in registration order; a row is a frozen dataclass with a `name`."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._rows: dict[str, Row] = {}

    def add(self, row: Row) -> Row:
        """Register a row; a name can be taken once."""
        name = row.name  # type: ignore[attr-defined]
        if name in self._rows:
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        self._rows[name] = row
        return row

    def __getitem__(self, name: str) -> Row:
        """The row of that name.

        Raises MergelibError for an unknown name, with the nearest known one.
        """
        if name not in self._rows:
            raise MergelibError(unknown(self.kind, name, self._rows))
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self) -> list[Row]:
        """All rows in registration order."""
        return list(self._rows.values())

    def table(self) -> pd.DataFrame:
        """One line per row, without the functions."""
        lines: list[dict[str, Any]] = []
        for row in self._rows.values():
            values = {f.name: getattr(row, f.name) for f in fields(row)}  # type: ignore[arg-type]
            lines.append({k: v for k, v in values.items() if not callable(v)})
        return pd.DataFrame(lines)


def unknown(kind: str, name: object, known: Any) -> str:
    """The message for an unknown name: the nearest known one and all that are known."""
    known = [str(k) for k in known]
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r}{hint} Known: {', '.join(known)}"
