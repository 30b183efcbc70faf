"""`mergelib metrics`: the weight metrics of checkpoints, pair by pair."""

import argparse
from pathlib import Path

from mergelib.commands import EPILOG as EPILOG


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `mergelib metrics`."""
    add = parser.add_argument
    add("--base", type=Path, required=True, help="pretrained weights")
    add("--models", type=Path, nargs="+", required=True, help="two or more")
    add("--mode", default="corrected", help="corrected or paper")
    add("--extra", action="store_true", help="principal angles as well")
    add("--out", type=Path, required=True, help=".csv or .parquet")
    add("--cache", type=Path, help="folder that keeps what one more model needs")
    add("--device", default="cpu", help="where to compute: cpu, cuda, auto")


def run(args: argparse.Namespace) -> None:
    """Write the metrics table of the checkpoints."""
    from mergelib.core.devices import find_device
    from mergelib.core.store import write_table
    from mergelib.metrics.table import pairwise_of_checkpoints

    device = find_device(args.device)
    table = pairwise_of_checkpoints(
        args.base, args.models, args.mode, args.extra, args.cache, device
    )
    write_table(args.out, table)
    print(f"{args.out}: {len(table)} pairs, {table.shape[1] - 2} metrics")
