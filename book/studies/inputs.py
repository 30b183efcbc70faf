"""Where a chapter's tables come from: the benchmark's folder or a setting of the released work."""

from pathlib import Path

from mergelib.core.errors import MergelibError
from mergelib.core.registry import unknown
from mergelib.core.store import read_json, read_table
from mergelib.pairs.tables import BENCHMARK, Tables
from mergelib.published.released import SETTINGS, read_setting


def read_source(source: str, tables: str | Path, released: str | Path) -> Tables:
    """The tables of a source, with the methods that enter its fits.

    `source` is "benchmark", which reads the folder `tables` (metrics.csv, merges.csv, tasks.csv,
    meta.json), or a setting of the released work, read from the checkout `released`. There the
    five methods of the published final version enter the fits; else all that the table holds.
    Raises MergelibError for an unknown source and as the readers of files do.
    """
    if source == BENCHMARK:
        folder = Path(tables)
        metrics, merges, tasks = (
            read_table(folder / f"{name}.csv") for name in ("metrics", "merges", "tasks")
        )
        methods = tuple(dict.fromkeys(merges["method"]))
        return Tables(metrics, merges, tasks, read_json(folder / "meta.json"), methods)
    if source not in SETTINGS:
        raise MergelibError(unknown("source", source, (BENCHMARK, *SETTINGS)))
    return read_setting(released, source)
