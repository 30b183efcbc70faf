"""Names of models that come as paths: what tells their paths apart."""

import os
from collections.abc import Sequence
from itertools import combinations, islice
from pathlib import Path

from mergelib.core.errors import MergelibError

TRIED = 100_000  # combinations of parts, of which people's paths need a few


def names_of_paths(paths: Sequence[Path]) -> list[str]:
    """One name a path: file names without suffix (of folders, their names) where these differ.

    Where they do not, the part of the paths that differs, nearest to the file; if one part alone
    does not do, as few as do, joined by "/": Cars/finetuned.pt and DTD/finetuned.pt are Cars and
    DTD. Raises MergelibError for one file that is given twice.
    """
    seen: dict[str, Path] = {}
    for path in map(Path, paths):
        real = os.path.realpath(path)
        if real in seen:
            also = "" if str(seen[real]) == str(path) else f", also as {seen[real]}"
            raise MergelibError(f"{path} is given twice{also}: give every model once")
        seen[real] = path
    whole = [Path(os.path.abspath(path)) for path in paths]
    stems = [path.name if path.is_dir() else path.stem for path in whole]
    for last in (stems, [path.name for path in whole]):  # a suffix may be all that differs
        rows = [(*path.parts[:-1], name) for path, name in zip(whole, last, strict=True)]
        if found := _shortest(rows):
            return found
    return [str(path) for path in whole]


def _shortest(rows: Sequence[Sequence[str]]) -> list[str]:
    """Names from the fewest columns that tell rows apart, aligned at their ends; none: empty."""
    depth = max(map(len, rows), default=0)
    columns: dict[tuple[int, ...], list[str]] = {}  # one for each way to part the rows
    for at in range(1, depth + 1):
        column = [row[-at] if at <= len(row) else "" for row in rows]
        parting = tuple(column.index(part) for part in column)
        if len(set(column)) > 1 or len(rows) == 1:
            columns.setdefault(parting, column)
    held = list(columns.values())
    chosen = (some for size in range(1, len(held) + 1) for some in combinations(held, size))
    for some in [*islice(chosen, TRIED), held]:
        names = ["/".join(filter(None, parts)) for parts in zip(*reversed(some), strict=True)]
        if len(set(names)) == len(rows) and all(names):
            return names
    return []
