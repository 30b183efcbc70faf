"""The study's tables on disk, which know which rows are made: a later run goes on from them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from mergelib.core.store import digest, read_table, write_atomic
from mergelib.pipeline.keys import key
from studies.training.stages import NAMED
from studies.training.variants import Plan, Variant

KEYS = "keys"
DIGITS = "%.6g"  # an accuracy is a count over a few hundred images
OF = [*NAMED, "seed"]


def key_of(plan: Plan, stage: str, variant: Variant, seed: int) -> str:
    """What a variant's rows are known by: the keys of its models, the methods and the scales."""
    run = plan.run_of(variant, seed)
    models = [key(run, "tuned", task) for task in run.tasks]
    return digest(stage, models, run.methods, run.metrics, plan.scales)[:24]


def known(folder: Path, plan: Plan, stage: str, variants: Sequence[Variant], seed: int) -> list:
    """The variants whose rows of a stage and seed stand in the folder, made by the same code."""
    file = folder / f"{KEYS}.csv"
    held = set(read_table(file)["key"]) if file.is_file() else set()
    return [variant for variant in variants if key_of(plan, stage, variant, seed) in held]


def add(
    folder: Path,
    plan: Plan,
    stage: str,
    variants: Sequence[Variant],
    seed: int,
    tables: Mapping[str, pd.DataFrame],
) -> None:
    """Put a stage's rows of variants and a seed into the folder's tables, in place of older ones.

    The keys are written last: rows without one are made again.
    """
    keys = pd.DataFrame(
        [(stage, *v, seed, key_of(plan, stage, v, seed)) for v in variants],
        columns=["stage", *OF, "key"],
    )
    for name, table in tables.items():
        write(folder / f"{name}.csv", _with(folder / f"{name}.csv", table, OF))
    write(folder / f"{KEYS}.csv", _with(folder / f"{KEYS}.csv", keys, ["stage", *OF]))


def _with(file: Path, new: pd.DataFrame, of: Sequence[str]) -> pd.DataFrame:
    """The rows of a file and new ones, which replace those of the same variants; in one order."""
    if file.is_file():
        old, fresh = read_table(file), pd.MultiIndex.from_frame(new[list(of)])
        new = pd.concat([old[~pd.MultiIndex.from_frame(old[list(of)]).isin(fresh)], new])
    return new[[*of, *new.columns.drop(list(of))]].sort_values(list(of), kind="stable")


def write(file: Path, table: pd.DataFrame) -> None:
    """Write a table in six digits, atomically."""
    write_atomic(file, table.to_csv(index=False, float_format=DIGITS, lineterminator="\n").encode())
