"""Accuracies that a user knows: a table of tasks or models with zero_shot and fine_tuned."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from mergelib.core.errors import MergelibError
from mergelib.core.store import read_table
from mergelib.forecasting.evidence import Known

COLUMNS = ("zero_shot", "fine_tuned")


def read_known(path: Path | str, names: Sequence[str]) -> dict[str, Known]:
    """What a table (CSV or Parquet) knows of every model, by the model's name.

    Columns: task or model, zero_shot and fine_tuned, fractions of images that base and fine-tuned
    model get right; rows of other models are passed over. Raises MergelibError, naming the file,
    for a model that is absent or comes twice, and for numbers that are no accuracies.
    """
    table = read_table(Path(path))
    key = next((name for name in ("model", "task") if name in table), None)
    absent = [name for name in COLUMNS if name not in table]
    if key is None or absent:
        found = ", ".join(map(str, table.columns))
        raise MergelibError(
            f"{path}: no column {absent[0] if absent else 'task or model'!r}, it has {found}: name "
            "the columns task (or model), zero_shot and fine_tuned"
        )
    rows = table.assign(**{key: table[key].astype(str)}).set_index(key)
    known = {}
    for name in names:
        if name not in rows.index:
            raise MergelibError(
                f"{path} has no row of {name!r}, it has {', '.join(rows.index[:8])}: add one, or "
                "name the model so (--models NAME=PATH)"
            )
        row = rows.loc[name]
        if isinstance(row, pd.DataFrame):
            raise MergelibError(f"{path} has {name!r} {len(row)} times: leave one row")
        known[name] = checked(row["zero_shot"], row["fine_tuned"], f"{path}, {name}")
    return known


def of_mapping(known: Mapping[str, Sequence[float]], names: Sequence[str]) -> dict[str, Known]:
    """The same of pairs (zero_shot, fine_tuned) by name. Raises MergelibError as `read_known`."""
    absent = [name for name in names if name not in known]
    if absent:
        raise MergelibError(f"known accuracies lack {absent[0]!r}: they have {', '.join(known)}")
    found = {}
    for name in names:
        if len(known[name]) != 2:
            raise MergelibError(f"known accuracies of {name!r}: give (zero_shot, fine_tuned)")
        before, after = known[name]
        found[name] = checked(before, after, f"known accuracies of {name!r}")
    return found


def checked(zero_shot: object, fine_tuned: object, label: str) -> Known:
    """Two accuracies. Raises MergelibError unless they are fractions, the second above 0."""
    try:
        before, after = float(zero_shot), float(fine_tuned)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        before = after = float("nan")
    if not (0 <= before <= 1 and 0 < after <= 1):
        percent = ", which look like percent" if 1 < before <= 100 and 1 < after <= 100 else ""
        raise MergelibError(
            f"{label}: zero-shot {zero_shot} and fine-tuned {fine_tuned} are no accuracies"
            f"{percent}: give fractions, the latter above 0"
        )
    return Known(before, after)
