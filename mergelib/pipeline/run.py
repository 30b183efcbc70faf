"""From parameters to tables: tasks, fine-tuning, summaries, merges; every unit kept by its key.

A unit of work is a function of the store's folder, the run's parameters and names; what it makes
is stored under a digest of everything that it depends on, so a run that was interrupted goes on
where it stopped and an unchanged one is read back.
"""

import contextlib
import fcntl
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import ModuleType

import joblib
import pandas as pd
from tqdm import tqdm

from mergelib.core.errors import MergelibError
from mergelib.core.interrupts import for_us_alone
from mergelib.core.store import write_json, write_table
from mergelib.merging.registry import METHODS
from mergelib.pipeline.keys import device, path, pinned
from mergelib.pipeline.params import Run
from mergelib.pipeline.tables import merges_table, meta, metrics_table, tasks_table
from mergelib.pipeline.units import base, data, factors, gradients, heads, merged, summary, tuned

Work = Sequence[tuple[str, ...]]


def execute(run: Run, store: Path, tables: Path, jobs: int = 0) -> dict[str, pd.DataFrame]:
    """Run the pipeline and write metrics.csv, merges.csv, tasks.csv and meta.json.

    Interrupted and started again, a run goes on without redoing finished units and ends with the
    same tables. `jobs` units run at a time (0: one a core, or one where there is a GPU). Raises
    MergelibError as its stations do.
    """
    store, tables = Path(store), Path(tables)
    jobs, run = jobs or workers(run), pinned(run)
    with locked(store):
        base.make(store, run)
        for label, station, work in plan(run):
            if left := unfinished(store, run, station, work):
                each(label, [(station.make, (store, run, *names)) for names in left], jobs)
        made = gather(store, run)
    for name, table in made.items():
        write_table(tables / f"{name}.csv", table)
    write_json(tables / "meta.json", meta(run, made))
    return made


def plan(run: Run) -> list[tuple[str, ModuleType, Work]]:
    """The stations in their order: label, module of the unit, and what it works on."""
    singles = [(task,) for task in run.tasks]
    pairs = list(itertools.combinations(run.tasks, 2))
    factored = any(METHODS[method].factored for method in run.methods)
    return [
        ("tasks", data, singles),
        ("heads", heads, singles if run.head != "zero_shot" else []),
        ("fine-tuning", tuned, singles),
        ("summaries", summary, singles),
        ("gradients", gradients, pairs if run.gradients_of_pairs else []),
        ("factors", factors, singles if factored else []),
        ("merges", merged, pairs),
    ]


def unfinished(store: Path, run: Run, station: ModuleType, work: Work) -> Work:
    """What is not stored yet; a merge unit covers all methods of its pair."""
    name = station.__name__.rpartition(".")[2]

    def files(names: tuple[str, ...]) -> list[Path]:
        if station is not merged:
            return [path(store, run, name, *names)]
        return [path(store, run, name, *names, method) for method in run.methods]

    return [names for names in work if not all(file.is_file() for file in files(names))]


def gather(store: Path, run: Run) -> dict[str, pd.DataFrame]:
    """The tables of a run whose units are all stored, by name."""
    return {
        "merges": merges_table(store, run),
        "tasks": tasks_table(store, run),
        "metrics": metrics_table(store, run),
    }


@contextlib.contextmanager
def locked(store: Path) -> Iterator[None]:
    """Hold the store for one run, and clear temporary files that a killed run left.

    Raises MergelibError where another run holds it.
    """
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


def workers(run: Run) -> int:
    """How many units of a run work at a time: one a core, or one where there is a GPU."""
    return 1 if device(run) == "cuda" else joblib.cpu_count()


def each(label: str, units: Sequence[tuple[Callable, tuple]], jobs: int) -> None:
    """Run units of work, function and arguments, independent of each other, with a bar."""
    todo = (joblib.delayed(unit)(*given) for unit, given in units)
    # The backend is joblib's choice, so that a caller can put the units on Dask, Ray or Slurm.
    with for_us_alone():
        results = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")(todo)
    try:
        for _ in tqdm(results, total=len(units), desc=f"{label:>12}", unit="unit", mininterval=0.5):
            pass
    except BrokenProcessPool:
        raise MergelibError(
            f"{label}: a worker was killed, perhaps for want of memory: give fewer --jobs"
        ) from None
