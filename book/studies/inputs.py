"""A chapter's tables, of the benchmark or of a setting of the released work, and their pairs."""

from pathlib import Path

import mergelib.published.predictors  # noqa: F401  registers the paper's predictors
from mergelib.core.errors import MergelibError
from mergelib.core.registry import unknown
from mergelib.core.store import read_json, read_table
from mergelib.pairs.tables import BENCHMARK, FINAL_METHODS, Pairs, Tables, assemble
from mergelib.published.released import find_checkout

PUBLISHED = Path(__file__).parents[1] / "tables" / "published"
SETTINGS = ("ViT-B-16_AdamW", "ViT-B-32_AdamW", "ViT-B-16_SGD")
# what a reader calls them; AdamW is the paper's own optimizer, SGD a repetition
NAMES = dict(zip(SETTINGS, ("ViT-B/16", "ViT-B/32", "ViT-B/16, SGD"), strict=True))


def find_released(given: str | Path = "") -> Path:
    """`find_checkout` beside this repository: the released work's folder."""
    return find_checkout(given, Path(__file__).parents[2])


def read_source(source: str, tables: str | Path, published: str | Path = PUBLISHED) -> Tables:
    """The tables of a source, with the methods that enter its fits.

    `source` is "benchmark", which reads the folder `tables` (metrics.csv, merges.csv, tasks.csv,
    meta.json), or a setting of the released work, a folder of that name below `published` (the
    repository's own copy, made by `mergelib published`). There the five methods of the published
    final version enter the fits; else all that the table holds.
    Raises MergelibError for an unknown source and as the readers of files do.
    """
    if source != BENCHMARK and source not in SETTINGS:
        raise MergelibError(unknown("source", source, (BENCHMARK, *SETTINGS)))
    folder = Path(tables) if source == BENCHMARK else Path(published) / source
    metrics, merges, tasks = (
        read_table(folder / f"{name}.csv") for name in ("metrics", "merges", "tasks")
    )
    methods = tuple(dict.fromkeys(merges["method"])) if source == BENCHMARK else FINAL_METHODS
    return Tables(metrics, merges, tasks, read_json(folder / "meta.json"), methods)


def pairs_of(tables: Tables) -> Pairs:
    """The pairs that enter the fits of a source's methods."""
    return assemble(tables.metrics, tables.merges, list(tables.methods))
