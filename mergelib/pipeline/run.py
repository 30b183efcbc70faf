"""From parameters to tables: tasks, fine-tuning, summaries, merges; every unit kept by its key.

A unit of work is a function of the store's folder, the run's parameters and names; what it makes
is stored under a digest of everything that it depends on, so a run that was interrupted goes on
where it stopped and an unchanged one is read back.
"""

import contextlib
import fcntl
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import joblib
import pandas as pd
from tqdm import tqdm

from mergelib.core.errors import MergelibError
from mergelib.core.store import write_json, write_table
from mergelib.pipeline.keys import device, path
from mergelib.pipeline.params import Run
from mergelib.pipeline.tables import merges_table, meta, metrics_table, stacked, tasks_table
from mergelib.pipeline.units import (
    _by_pairs,
    factored,
    make_base,
    make_data,
    make_factors,
    make_gradients,
    make_merged,
    make_summary,
    make_tuned,
)

# --- the run --------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(store: Path) -> Iterator[None]:
    """Hold the store for one run, and clear temporary files that a killed run left."""
    store.mkdir(parents=True, exist_ok=True)
    with (store / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise MergelibError(
                f"store {store} is in use by another run: wait for it or give another --store"
            ) from None
        for stale in store.glob("*/.*.tmp"):
            stale.unlink(missing_ok=True)
        yield


Work = Sequence[tuple[Run, tuple[str, ...]]]


def _each(what: str, unit: Callable, store: Path, work: Work, jobs: int) -> None:
    """Run a unit over its work, with a progress bar."""
    todo = (joblib.delayed(unit)(store, run, *names) for run, names in work)
    # The backend is joblib's choice, so that a caller can put the units on Dask, Ray or Slurm.
    results = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")(todo)
    for _ in tqdm(results, total=len(work), desc=f"{what:>12}", unit="unit", mininterval=0.5):
        pass


def _unfinished(store: Path, station: str, work: Work) -> Work:
    """What is not stored yet; a merge unit covers all methods of its pair."""

    def files(run: Run, names: tuple[str, ...]) -> list[Path]:
        if station != "merged":
            return [path(store, run, station, *names)]
        return [path(store, run, station, *names, method) for method in run.methods]

    return [(run, names) for run, names in work if not all(f.is_file() for f in files(run, names))]


def execute(run: Run, store: Path, tables: Path, jobs: int = 0) -> dict[str, pd.DataFrame]:
    """Run the pipeline and write metrics.csv, merges.csv, tasks.csv and meta.json.

    A study (`run.strengths`, `run.seeds`) runs every combination; its tables carry `strength` and
    `seed`, and hold no metrics. Interrupted and started again, a run goes on without redoing
    finished units and ends with the same tables. `jobs` units run at a time (0: one a core, or one
    where there is a GPU). Raises MergelibError as its stations do.
    """
    store, tables = Path(store), Path(tables)
    jobs = jobs or (1 if device(run) == "cuda" else joblib.cpu_count())
    variants = run.variants()
    pairs = list(itertools.combinations(run.tasks, 2))
    singles = [(task,) for task in run.tasks]
    stations = [
        ("tasks", make_data, "data", [run], singles),
        ("fine-tuning", make_tuned, "tuned", variants, singles),
        ("summaries", make_summary, "summary", [] if run.is_study else variants, singles),
        ("gradients", make_gradients, "gradients", variants if _by_pairs(run) else [], pairs),
        ("factors", make_factors, "factors", variants if factored(run) else [], singles),
        ("merges", make_merged, "merged", variants, pairs),
    ]
    with _locked(store):
        make_base(store, run)
        for what, unit, station, runs, names in stations:
            work = [(each, some) for each in runs for some in names]
            if left := _unfinished(store, station, work):
                _each(what, unit, store, left, jobs)
        made = {
            "merges": stacked(merges_table, store, variants, run.is_study),
            "tasks": stacked(tasks_table, store, variants, run.is_study),
        }
        if not run.is_study:
            made["metrics"] = metrics_table(store, run)
    for name, table in made.items():
        write_table(tables / f"{name}.csv", table)
    write_json(tables / "meta.json", meta(run, made))
    return made
