"""The reference bank: merges whose outcome is known, probed by many draws of few images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from mergelib.core.errors import MergelibError
from mergelib.core.store import read_table
from mergelib.forecasting import features
from mergelib.forecasting.statistics import COUNTS
from mergelib.metrics.registry import METRICS, published_metrics
from mergelib.metrics.table import OF_WEIGHTS
from mergelib.pairs.tables import KEYS, need

TABLES = {"probes": "parquet", "merges": "csv", "metrics": "csv", "tasks": "csv"}
GRID = [*KEYS, "method", "side", "draw", "n"]


@dataclass(frozen=True)
class Bank:
    """P pairs, M methods, two sides, R draws at S sizes, K columns of `names`.

    world (P,): where a pair comes from; tasks, and ends (P, 2) into them (a task belongs to one
    world); columns X (P, M, 2, R, S, K); sizes (S,), rising: images asked of a draw, and images
    (P, 2, S): how many it holds; kept (P, M, 2) merged / fine-tuned accuracy of each side on test
    images.
    """

    world: np.ndarray
    tasks: tuple[str, ...]
    ends: np.ndarray
    methods: tuple[str, ...]
    names: tuple[str, ...]
    sizes: np.ndarray
    X: np.ndarray
    images: np.ndarray
    kept: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Normalized accuracy of each merge, (P, M): mean over its sides."""
        return self.kept.mean(axis=2)

    @property
    def worse(self) -> np.ndarray:
        """That of the side that loses more, (P, M)."""
        return self.kept.min(axis=2)

    def of(self, pairs: np.ndarray) -> "Bank":
        """That of some pairs, a mask (P,) or places; all tasks keep their numbers."""
        some = {
            name: getattr(self, name)[pairs] for name in ("world", "ends", "X", "images", "kept")
        }
        return replace(self, **some)

    def without(self, tasks: Sequence[int]) -> np.ndarray:
        """Which pairs (P,) hold none of the numbered tasks."""
        return np.logical_not(np.isin(self.ends, tasks).any(axis=1))


def weight_metrics() -> list[str]:
    """The metrics that ask for nothing but weights, as the bank holds them."""
    published = published_metrics()
    return [r.name for r in METRICS.rows() if r.category in OF_WEIGHTS and r.name in published]


def read_bank(folder: Path) -> Bank:
    """The bank in a folder of probes.parquet, merges.csv, metrics.csv and tasks.csv.

    Raises MergelibError as `assemble` does, and for a table that is missing.
    """
    found = {name: read_table(Path(folder) / f"{name}.{kind}") for name, kind in TABLES.items()}
    return assemble(**found)


def assemble(
    probes: pd.DataFrame, merges: pd.DataFrame, metrics: pd.DataFrame, tasks: pd.DataFrame
) -> Bank:
    """A bank from its tables, each with a column `world`.

    probes: one row per pair, method, side (a, b), draw and n, with images, the statistics and the
    counts of labels; merges, metrics, tasks: those of a run. Raises MergelibError for missing
    columns, and for a pair, method, side, draw or size that other pairs have and one lacks.
    """
    need(probes, ["world", *GRID, "images", *features.UNLABELLED, *COUNTS], "probes table")
    need(metrics, ["world", *KEYS, *weight_metrics()], "metrics table")
    need(tasks, ["world", "task", "zero_shot", "fine_tuned"], "tasks table")
    need(merges, ["world", *KEYS, "method", "acc_a", "acc_b", "single_a", "single_b"], "merges")
    pair = ["world", *KEYS]
    pairs = probes[pair].drop_duplicates().reset_index(drop=True)
    axes = [list(dict.fromkeys(probes[name])) for name in GRID[2:]]
    axes[1:] = map(sorted, axes[1:])  # sides, draws, sizes
    shape = (len(pairs), *map(len, axes))
    if len(probes) != np.prod(shape) or probes.duplicated(["world", *GRID]).any():
        raise MergelibError(
            "the probes table has not one row for every pair, method, side, draw and n: make the "
            "bank again"
        )
    places = [pd.MultiIndex.from_frame(pairs).get_indexer(pd.MultiIndex.from_frame(probes[pair]))]
    places += [
        pd.Index(axis).get_indexer(probes[n]) for axis, n in zip(axes, GRID[2:], strict=True)
    ]
    probes = probes.iloc[np.argsort(np.ravel_multi_index(tuple(places), shape), kind="stable")]

    def held(name: str) -> np.ndarray:
        return probes[name].to_numpy(np.float64).reshape(shape)

    methods = tuple(axes[0])
    of_task = tasks.assign(name=_named(tasks["world"], tasks["task"])).set_index("name")
    ends = np.stack(
        [of_task.index.get_indexer(_named(pairs["world"], pairs[name])) for name in KEYS], axis=1
    )
    if (ends < 0).any():
        raise MergelibError("the tasks table lacks a task of the probes table: make the bank again")
    known = (of_task[name].to_numpy(np.float64)[ends] for name in ("zero_shot", "fine_tuned"))
    of_pair = _rows(metrics.set_index(pair), pairs, "metrics")[weight_metrics()]
    kept = np.stack([_kept(merges, pairs, method) for method in methods], axis=1)
    columns = _columns(held, shape, *known) | {
        name: np.broadcast_to(of_pair[name].to_numpy(np.float64)[(...,) + (None,) * 4], shape)
        for name in of_pair
    }
    images = held("images")[:, 0, :, 0]
    X = np.stack(list(columns.values()), axis=-1)
    world = pairs["world"].to_numpy(str)
    sizes = np.array(axes[3])
    return Bank(world, tuple(of_task.index), ends, methods, tuple(columns), sizes, X, images, kept)


def _columns(held, shape, zero_shot: np.ndarray, fine_tuned: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of `features` for every row of the bank."""
    zs, ft = (np.broadcast_to(x[:, None, :, None, None], shape) for x in (zero_shot, fine_tuned))
    counts, n = {name: held(name) for name in COUNTS}, held("images")
    found = {name: held(name) for name in features.UNLABELLED}
    found |= features.known(zs, ft, zs[:, :, ::-1], ft[:, :, ::-1])
    found |= features.labelled(n, counts, zs, ft)
    return found | features.labelled_alone(n, counts)


def _named(world: pd.Series, task: pd.Series) -> pd.Series:
    return world.astype(str) + ":" + task.astype(str)


def _rows(table: pd.DataFrame, pairs: pd.DataFrame, what: str) -> pd.DataFrame:
    wanted = pd.MultiIndex.from_frame(pairs)
    if not wanted.isin(table.index).all() or table.index.has_duplicates:
        raise MergelibError(f"the {what} table has not one row for every pair: make the bank again")
    return table.loc[wanted]


def _kept(merges: pd.DataFrame, pairs: pd.DataFrame, method: str) -> np.ndarray:
    of = merges[merges["method"] == method].set_index(list(pairs.columns))
    found = _rows(of, pairs, f"merges of {method}")
    accuracy = found[["acc_a", "acc_b"]].to_numpy(np.float64)
    return accuracy / found[["single_a", "single_b"]].to_numpy(np.float64)
