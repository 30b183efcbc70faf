"""A world of the bank: a finished run's models, probed; and the tables that hold several."""

from dataclasses import asdict
from pathlib import Path

import pandas as pd

from mergelib.core.errors import MergelibError
from mergelib.core.store import digest, read_json, read_table, write_json, write_table
from mergelib.forecasting.bank import TABLES
from mergelib.pipeline.keys import key, path
from mergelib.pipeline.params import Run
from mergelib.pipeline.run import each, plan, unfinished, workers
from mergelib.pipeline.task_data import stored_scores
from mergelib.pipeline.units import base, merged
from studies.forecasting.pools import make_pool
from studies.forecasting.probes import probe_pair, probe_single
from studies.forecasting.table import DRAWS, SIZES, pairs_of, rounded, rows

STATIONS = ("tasks", "heads", "fine-tuning", "factors")
CHECKED = 5  # pairs whose merges are evaluated again, to see that the models are the tables'
MOVED = 2  # test images that rounding on another processor may take over a decision's edge


def probe_world(run: Run, store: Path, size: int, jobs: int = 0) -> None:
    """Fine-tune, merge and probe all pairs of a run, on pools of `size` images; what is kept stays.

    A pair is one unit of work, kept by method.
    """
    jobs = jobs or workers(run)
    base.make(store, run)
    for label, station, work in plan(run):
        if label in STATIONS and (left := unfinished(store, run, station, work)):
            each(label, [(station.make, (store, run, *names)) for names in left], jobs)
    for label, unit in (("pools", make_pool), ("experts", probe_single)):
        each(label, [(unit, (store, run, task, size)) for task in run.tasks], jobs)
    pairs = list(pairs_of(run.tasks))
    each("probes", [(probe_pair, (store, run, *pair, size)) for pair in pairs], jobs)


def tables_of(run: Run, store: Path, tables: Path, size: int) -> dict[str, pd.DataFrame]:
    """The bank's tables of a probed world, by name, each with the column `world`.

    Outcomes, metrics and tasks are those of the run's tables in `tables`. Raises MergelibError
    where these are of other models.
    """
    found = {name: read_table(tables / f"{name}.csv") for name in TABLES if name != "probes"}
    check_models(run, store, found)
    parts = [rows(store, run, pair, size) for pair in pairs_of(run.tasks)]
    found["probes"] = rounded(pd.concat(parts, ignore_index=True))
    return {name: _in_world(table, run.name) for name, table in found.items()}


def _in_world(table: pd.DataFrame, world: str) -> pd.DataFrame:
    table = table.copy()
    table.insert(0, "world", world)
    return table


def check_models(run: Run, store: Path, tables: dict[str, pd.DataFrame]) -> None:
    """Raise MergelibError where the store's models score otherwise than their tables say.

    All single models, exactly; the merges of CHECKED pairs spread over the table, to MOVED images.
    """
    known = tables["tasks"].set_index("task")
    wrong = []
    for task in run.tasks:
        scores = stored_scores(store, run, task)["test"]
        if any(scores[k] != known.at[task, k] for k in ("zero_shot", "fine_tuned")):
            wrong.append(task)
    merges = tables["merges"].set_index(["task_a", "task_b", "method"])
    pairs = list(pairs_of(run.tasks))
    for pair in pairs[:: max(len(pairs) // CHECKED, 1)]:
        merged.make(store, run, *pair)
        for method in run.methods:
            scores = read_json(path(store, run, "merged", *pair, method))
            row = merges.loc[(*pair, method)]
            off = [abs(scores[f"acc_{s}"] - row[f"acc_{s}"]) for s in "ab"]
            moved = [x * known.at[task, "n_test"] for x, task in zip(off, pair, strict=True)]
            if max(moved) > MOVED + 0.5:
                wrong.append(f"{' + '.join(pair)} by {method}")
    if wrong:
        raise MergelibError(
            f"the tables are of other models than the store's ({', '.join(wrong)}): make them with "
            "`mergelib run` and the same parameters and store, and give them by --tables"
        )


def write_world(folder: Path, world: str, tables: dict[str, pd.DataFrame], meta: dict) -> None:
    """Put a world into the bank's tables, in place of an older one of that name."""
    for name, kind in TABLES.items():
        file = folder / f"{name}.{kind}"
        table = tables[name]
        if file.is_file():
            old = read_table(file)
            table = pd.concat([old[old["world"] != world], table], ignore_index=True)
        write_table(file, table)
    file = folder / "meta.json"
    worlds = read_json(file) if file.is_file() else {}
    write_json(file, worlds | {world: meta})


def meta_of(run: Run, tables: Path, size: int) -> dict:
    """What a world of the bank is of; its tables say where it comes from."""
    return {
        "source": read_json(tables / "meta.json")["source"],
        "backbone": run.backbone,
        "seed": run.seed,
        "sizes": asdict(run.sizes),
        "pool": size,
        "draws": DRAWS,
        "images": list(SIZES),
        "methods": list(run.methods),
        "tuned": digest([key(run, "tuned", task) for task in run.tasks]),
    }
