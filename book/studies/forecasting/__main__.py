"""The reference bank of the forecast: probed, fitted and judged; interrupted, it goes on.

python -m studies.forecasting --params ../params/glyph20.yaml --tables tables/glyph20

Other worlds, which widen its intervals, are probed first, by `--stages probe` and
`--to tables/forecast/transfer`; the released tables beside them are worlds without images.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from mergelib.core.errors import MergelibError
from mergelib.core.outputs import check_folder, check_output
from mergelib.core.store import file_digest, read_json, write_table
from mergelib.forecasting.bank import Bank, read_bank
from mergelib.forecasting.document import write_forecaster
from mergelib.forecasting.forecaster import Forecaster
from mergelib.forecasting.model import SHIPPED
from mergelib.forecasting.transfer import widened
from mergelib.pipeline.params import load
from mergelib.pipeline.run import locked
from studies.forecasting.judge import JUDGED, judge
from studies.forecasting.transfer import halves, transfer, worlds
from studies.forecasting.worlds import meta_of, probe_world, tables_of, write_world

HALVED = "real20"  # the one other world with enough tasks
ASKED_BY_HALVES = ("unlabelled", "unlabelled + known", "labelled + known")
STAGES = ("probe", "fit", "judge", "transfer")


def main(words: Sequence[str] | None = None) -> int:
    """Read the arguments, run the stages; 1 with one line if something is wrong."""
    parser = argparse.ArgumentParser("python -m studies.forecasting", description=__doc__)
    parser.add_argument("--params", type=Path, help="the world's parameters (none: as it stands)")
    parser.add_argument("--tables", type=Path, help="the tables of its run")
    parser.add_argument("--store", type=Path, default=Path("../_build/store"), help="kept work")
    parser.add_argument("--to", type=Path, default=Path("tables/forecast"), metavar="DIR")
    parser.add_argument("--pool", type=int, default=200, help="images of a task to draw from")
    parser.add_argument("--calibration", type=Path, default=SHIPPED, help="what the package reads")
    parser.add_argument("--jobs", type=int, default=0, help="units at a time (0: one a core)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    args = parser.parse_args(words)
    try:
        check_folder(args.to)
        check_output(args.calibration, suffixes=(".json",))
        if "probe" in args.stages:
            probe(args)
        bank = read_bank(args.to)
        if "judge" in args.stages:
            write_tables(args.to, judge(bank, args.to))
        if {"fit", "transfer"} & set(args.stages):
            fit(args, bank)
    except MergelibError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def probe(args: argparse.Namespace) -> None:
    """Probe a world and put it into the bank. Raises MergelibError for missing arguments."""
    if args.params is None or args.tables is None:
        raise MergelibError("a world to probe wants --params and --tables: give both")
    run = load(args.params)
    with locked(args.store):
        probe_world(run, args.store, args.pool, args.jobs)
        tables = tables_of(run, args.store, args.tables, args.pool)
    write_world(args.to, run.name, tables, meta_of(run, args.tables, args.pool))


def fit(args: argparse.Namespace, bank: Bank) -> None:
    """What the package reads, widened by other worlds, and what was forecast of these."""
    fitted = Forecaster().fit(bank)
    others = worlds(args.to / "transfer", args.to.parent / "published", bank.methods)
    if "fit" in args.stages:
        about = {"bank": file_digest(args.to / "probes.parquet")}
        about["worlds"] = sorted(read_json(args.to / "meta.json"))
        about["widened_by"] = list(others)
        write_forecaster(args.calibration, widened(fitted, list(others.values())), about)
    if "transfer" in args.stages:
        write_tables(args.to, {"transfer": transfer(fitted, others, JUDGED)})
        if HALVED in others:
            rest = [world for name, world in others.items() if name != HALVED]
            asked = {name: JUDGED[name] for name in ASKED_BY_HALVES}
            write_tables(args.to, {"halves": halves(fitted, others[HALVED], rest, asked)})


def write_tables(folder: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    """Tables in a folder, by name."""
    for name, table in tables.items():
        write_table(folder / f"{name}.csv", table)


if __name__ == "__main__":
    sys.exit(main())
