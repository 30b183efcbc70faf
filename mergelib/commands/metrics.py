"""`mergelib metrics`: the weight metrics of checkpoints, pair by pair."""

import argparse
from pathlib import Path

from mergelib.commands import EPILOG as EPILOG
from mergelib.core.outputs import TABLES, check_folder, check_output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `mergelib metrics`."""
    add = parser.add_argument
    add("--base", type=Path, required=True, help="pretrained weights")
    add("--models", type=Path, nargs="+", required=True, help="two or more")
    add("--edition", default="corrected", help="corrected or paper")
    add("--extra", action="store_true", help="principal angles as well")
    add("--whole", action="store_true", help="of a CLIP both towers (default: the image tower)")
    add("--only", action="append", default=[], metavar="PATTERN", help="tensors to measure")
    add("--exclude", action="append", default=[], metavar="PATTERN", help="tensors to leave out")
    add("--out", type=Path, required=True, help=".csv or .parquet")
    add("--cache", type=Path, help="folder that keeps what one more model needs")
    add("--device", default="cpu", help="where to compute: cpu, cuda, auto")


def run(args: argparse.Namespace) -> None:
    """Write the metrics table of the checkpoints."""
    inputs = [args.base, *args.models]
    check_output(args.out, inputs, TABLES)
    if args.cache is not None:
        check_folder(args.cache, inputs)
    from mergelib.core.store import write_table
    from mergelib.face import measure
    from mergelib.metrics.table import weight_metrics

    names = weight_metrics(args.extra)
    table = measure(
        args.base,
        args.models,
        names,
        args.edition,
        args.cache,
        args.device,
        only=args.only,
        exclude=args.exclude,
        whole=args.whole,
    )
    write_table(args.out, table)
    print(f"{args.out}: {len(table)} pairs, {table.shape[1] - 2} metrics")
