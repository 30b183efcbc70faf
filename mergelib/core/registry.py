"""Named rows (metrics, merging methods, tasks, …) in registration order, own and installed ones."""

import difflib
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Generic, TypeVar

from mergelib.core.errors import MergelibError

if TYPE_CHECKING:
    import pandas as pd

Row = TypeVar("Row")


class Redefined(UserWarning):
    """A name was registered again: in a notebook, say, whose cell runs twice."""


class Registry(Generic[Row]):
    """Rows by name, in registration order; a row is a frozen dataclass with a `name`.

    `builtin` registers rows of our own that are costly to import; `group` names the entry points
    of installed packages whose modules register more. Both are loaded once, when a name is not
    found or the registry is listed.

    A name that is registered again replaces its row, with the warning `Redefined`, where a notebook
    or script (`__main__`) or the same module does it. What a notebook defined stays where a module
    comes later with that name. Two modules with one name are an error.
    """

    def __init__(
        self, kind: str, group: str | None = None, builtin: Callable[[], None] | None = None
    ) -> None:
        self.kind, self.group = kind, group
        self._rows: dict[str, Row] = {}
        self._sources: list[Callable[[], object]] = [] if builtin is None else [builtin]
        self._searched = group is None

    def add(self, row: Row, stacklevel: int = 2) -> Row:
        """Register a row; returns the row that has its name now.

        Raises MergelibError, naming both, if another module has registered the name.
        """
        name = row.name  # type: ignore[attr-defined]
        held = self._rows.get(name)
        if held is None:
            self._rows[name] = row
            return row
        old, new = _origin(held), _origin(row)
        homes = [origin.rpartition(":")[0] for origin in (old, new)]
        if "__main__" not in homes and homes[0] != homes[1]:
            raise MergelibError(
                f"{self.kind} {name!r} is registered by {old} and by {new}: uninstall one, or give "
                "it another name"
            )
        stays = homes[0] == "__main__" != homes[1]
        text = f"stays that of {old}, not of {new}" if stays else f"of {old} gives way to {new}"
        warnings.warn(f"{self.kind} {name!r} {text}", Redefined, stacklevel=stacklevel + 1)
        if not stays:
            self._rows[name] = row
        return self._rows[name]

    def __getitem__(self, name: str) -> Row:
        """The row of that name.

        Raises MergelibError for an unknown name, with the nearest known one.
        """
        if name not in self:
            raise MergelibError(unknown(self.kind, name, self._rows))
        return self._rows[name]

    def __contains__(self, name: object) -> bool:
        if name not in self._rows:
            self._load()
        return name in self._rows

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(list(self._rows))

    def __len__(self) -> int:
        self._load()
        return len(self._rows)

    def rows(self) -> list[Row]:
        """All rows in registration order."""
        return [self._rows[name] for name in self]

    def table(self) -> "pd.DataFrame":
        """One line per row, without the functions."""
        import pandas as pd

        rows = self.rows()
        names = [field.name for field in fields(rows[0])] if rows else []  # type: ignore[arg-type]
        columns = {name: [getattr(row, name) for row in rows] for name in names}
        return pd.DataFrame({k: v for k, v in columns.items() if not any(map(callable, v))})

    def __repr__(self) -> str:
        return f"{len(self)} {self.kind}s: {', '.join(self)}"

    def _repr_html_(self) -> str:
        return self.table().to_html(index=False)

    def _load(self) -> None:
        """Let our own files and installed packages register what they have, once."""
        if not self._searched:
            self._searched = True
            found = sorted(entry_points(group=str(self.group)), key=lambda each: each.name)
            self._sources += [partial(_import, each) for each in found]
        while self._sources:
            # what raises is asked again next time; what it registers may look something up here
            source = self._sources.pop(0)
            try:
                source()
            except MergelibError:
                self._sources.insert(0, source)
                raise


def _import(point: EntryPoint) -> None:
    """Import what an entry point names. A broken package is left out, with a warning."""
    try:
        point.load()
    except MergelibError:
        raise
    except Exception as error:  # any package's, of any kind
        owner = point.dist.name if point.dist else "an installed package"
        warnings.warn(
            f"{point.group}: {point.value} of {owner} cannot be imported ({error}) and is left "
            "out: update or uninstall it",
            UserWarning,
            stacklevel=2,
        )


def _origin(row: object) -> str:
    """Where a row comes from, `module:name` of its function (or of the row's class)."""
    values = [getattr(row, field.name) for field in fields(row)]  # type: ignore[arg-type]
    of = next((value for value in values if callable(value)), type(row))
    while isinstance(of, partial):
        of = of.func
    of = inspect.unwrap(of)
    return f"{of.__module__}:{getattr(of, '__qualname__', type(of).__qualname__)}"


def unknown(kind: str, name: object, known: Iterable[object]) -> str:
    """The message for an unknown name: the nearest known one and all that are known."""
    names = [str(each) for each in known]
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r}{hint} Known: {', '.join(names)}"
