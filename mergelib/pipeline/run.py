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
from importlib import import_module
from pathlib import Path
from socket import gethostname
from types import ModuleType

import joblib
import pandas as pd
from tqdm import tqdm

from mergelib.core.errors import MergelibError
from mergelib.core.interrupts import for_us_alone
from mergelib.core.store import write_json, write_table
from mergelib.merging.registry import METHODS
from mergelib.pipeline.cluster import Spread, Unit, Units, spread
from mergelib.pipeline.keys import device, path, pinned
from mergelib.pipeline.params import Run
from mergelib.pipeline.tables import merges_table, meta, metrics_table, tasks_table
from mergelib.pipeline.units import base, data, factors, gradients, heads, merged, summary, tuned

Names = tuple[str, ...]
Work = Sequence[Names]
Do = Callable[[str, ModuleType, Sequence[tuple[Run, Names]]], None]


def execute(
    run: Run, store: Path, tables: Path, jobs: int = 0, cluster: str = ""
) -> dict[str, pd.DataFrame]:
    """Run the pipeline and write metrics.csv, merges.csv, tasks.csv and meta.json.

    Interrupted and started again, a run goes on without redoing finished units and ends with the
    same tables. `jobs` units run at a time (0: one a core, or one where there is a GPU), or those
    of a cluster (`cluster.spread`), to which the store is one folder under one path. Raises
    MergelibError as its stations do.
    """
    store, tables = Path(store), Path(tables)
    run = pinned(run)
    with workplace(run, store, jobs, cluster) as do:
        for label, station, work in plan(run):
            do(label, station, [(run, names) for names in work])
        made = gather(store, run)
    for name, table in made.items():
        write_table(tables / f"{name}.csv", table)
    write_json(tables / "meta.json", meta(run, made))
    return made


@contextlib.contextmanager
def workplace(run: Run, store: Path, jobs: int, cluster: str) -> Iterator[Do]:
    """Hold a store in which a run's encoder lies, and give what does the units of a station.

    It takes a label, the station and units, run and names, and leaves out what is stored already.
    """
    store = Path(store).absolute() if cluster else Path(store)  # workers may stand elsewhere
    spreading: contextlib.AbstractContextManager[Spread | None] = contextlib.nullcontext()
    if cluster:
        spreading = spread(cluster, jobs, run.device != "cpu")

    def do(label: str, station: ModuleType, work: Sequence[tuple[Run, Names]]) -> None:
        units: list[Unit] = []
        for of, names in work:
            if unfinished(store, of, station, [names]):
                wanted = artifacts(store, of, station, names)
                remote = (on_a_worker, (store, of, station.__name__, names, wanted))
                units.append(remote if cluster else (station.make, (store, of, *names)))
        if units:
            each(label, units, jobs or workers(run), over)

    with locked(store), spreading as over:
        base.make(store, run)
        yield do


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
    """What is not stored yet."""
    made = {names: artifacts(store, run, station, names) for names in work}
    return [names for names in work if not all(file.is_file() for file in made[names])]


def artifacts(store: Path, run: Run, station: ModuleType, names: Names) -> list[Path]:
    """Where a unit stores what it makes; a merge unit covers all methods of its pair."""
    name = station.__name__.rpartition(".")[2]
    if station is not merged:
        return [path(store, run, name, *names)]
    return [path(store, run, name, *names, method) for method in run.methods]


def on_a_worker(store: Path, run: Run, station: str, names: Names, wanted: list[Path]) -> None:
    """Do a unit on a worker of a cluster, where it would store what the run waits for.

    Raises MergelibError where it would not: another device, other versions, or another folder.
    """
    unit = import_module(station)
    if not path(store, run, "base").is_file():
        raise MergelibError(
            f"a worker on {gethostname()} does not see what the run stored in {store}: give a "
            "--store on a file system that all machines share, with one path and one device, and "
            "start workers with the run's versions of mergelib, torch and open_clip"
        )
    if artifacts(store, run, unit, names) != wanted:
        raise MergelibError(
            f"a worker on {gethostname()} computes {' '.join(names)} otherwise than the run asks: "
            "give `device` in the parameters, and start workers anew, with the run's versions"
        )
    unit.make(store, run, *names)


def gather(store: Path, run: Run) -> dict[str, pd.DataFrame]:
    """The tables of a run whose units are all stored, by name."""
    return {
        "merges": merges_table(store, run),
        "tasks": tasks_table(store, run),
        "metrics": metrics_table(store, run),
    }


@contextlib.contextmanager
def locked(store: Path) -> Iterator[None]:
    """Hold the store for one run, and clear what a killed run left.

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
        for kept in store.glob("resume/*"):
            if (store / "tuned" / kept.name).is_file():  # it was killed between the two
                kept.unlink(missing_ok=True)
        yield


def workers(run: Run) -> int:
    """How many units of a run work at a time: one a core, or one where there is a GPU."""
    return 1 if device(run) == "cuda" else joblib.cpu_count()


def each(label: str, units: Units, jobs: int, over: Spread | None = None) -> None:
    """Run units of work, function and arguments, independent of each other, with a bar.

    `over` a cluster, or as joblib's processes. Raises MergelibError where a worker was killed.
    """
    try:
        results = over(units) if over else _processes(units, jobs)
        for _ in tqdm(results, total=len(units), desc=f"{label:>12}", unit="unit", mininterval=0.5):
            pass
    except BrokenProcessPool:
        raise MergelibError(
            f"{label}: a worker was killed, perhaps for want of memory: give fewer --jobs, or a "
            "cluster's workers more memory"
        ) from None


def _processes(units: Units, jobs: int) -> Iterator[object]:
    todo = (joblib.delayed(unit)(*given) for unit, given in units)
    # The backend is joblib's choice, so that a caller can put the units elsewhere.
    with for_us_alone():
        return joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")(todo)
