"""The command line: thin calls into the library, one clear line for every mistake."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mergelib.errors import MergelibError

CHECKPOINTS = (
    "Checkpoints: safetensors, .pt, .pth or .bin state dicts, or Hugging Face CLIP directories, in "
    "any mixture; of a whole CLIP the image tower counts, under open_clip's names."
)

# Imports of torch and friends cost seconds, so each command imports what it needs when it runs.


def _run(args: argparse.Namespace) -> None:
    from mergelib import params, pipeline

    run = params.load(args.params)
    tables = args.tables or Path("_build/tables") / run.name
    made = pipeline.execute(run, args.store, tables, args.jobs)
    sizes = ", ".join(f"{name} {len(table)} rows" for name, table in made.items())
    print(f"{tables}: {sizes}")


def _metrics(args: argparse.Namespace) -> None:
    from mergelib.devices import find_device
    from mergelib.metrics import pairwise_of_checkpoints
    from mergelib.store import write_table

    device = find_device(args.device)
    table = pairwise_of_checkpoints(
        args.base, args.models, args.mode, args.extra, args.cache, device
    )
    write_table(args.out, table)
    print(f"{args.out}: {len(table)} pairs, {table.shape[1] - 2} metrics")


def _merge(args: argparse.Namespace) -> None:
    from mergelib.devices import find_device
    from mergelib.merging import METHODS, merge, preset
    from mergelib.merging.kept import kept_factors
    from mergelib.store import save_tensors
    from mergelib.vectors import opened

    given = dict(_assignment(text) for text in args.set)
    params = {**preset(args.method, args.edition), **given}
    factors = None
    if args.cache and METHODS[args.method].factored:
        factors = kept_factors(args.cache, args.base, args.models)
    base, device = args.base, find_device(args.device)
    if device != "cpu":  # a merge computes where its base is
        with opened(args.base) as weights:
            base = {name: weights.read(name).to(device) for name in weights.shapes}
    state = merge(base, args.models, args.method, args.seed, factors, **params)
    save_tensors(args.out, state)
    print(f"{args.out}: {len(state)} tensors merged from {len(args.models)} models")


def _assignment(text: str) -> tuple[str, object]:
    name, sign, value = text.partition("=")
    if not sign:
        raise MergelibError(f"--set wants name=value, not {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _fit(args: argparse.Namespace) -> None:
    from mergelib.predict import command

    command.run(args)


def _agreement(args: argparse.Namespace) -> None:
    from mergelib.predict import agreement_command

    agreement_command.run(args)


def _published(args: argparse.Namespace) -> None:
    from mergelib import published

    published.run(args)


def _book(args: argparse.Namespace) -> None:
    from mergelib import book

    book.run(args)


def parser() -> argparse.ArgumentParser:
    """The argument parser of `mergelib`."""
    from mergelib import book, published
    from mergelib.predict import agreement_command, command

    top = argparse.ArgumentParser(
        prog="mergelib",
        description="Can two fine-tuned models be merged? Measure, merge, forecast.",
    )
    verbs = top.add_subparsers(dest="verb", required=True, metavar="COMMAND")

    run = verbs.add_parser("run", help="fine-tune, measure and merge; write the tables")
    run.add_argument("--params", type=Path, required=True, help="YAML file, e.g. params/smoke.yaml")
    run.add_argument("--store", type=Path, default=Path("_build/store"), help="finished work")
    run.add_argument("--tables", type=Path, help="folder of the tables (_build/tables/NAME)")
    run.add_argument("--jobs", type=int, default=0, help="units at a time (0: one a core)")
    run.set_defaults(call=_run)

    metrics = verbs.add_parser("metrics", help="weight metrics of checkpoints", epilog=CHECKPOINTS)
    metrics.add_argument("--base", type=Path, required=True, help="pretrained weights")
    metrics.add_argument("--models", type=Path, nargs="+", required=True, help="two or more")
    metrics.add_argument("--mode", default="corrected", help="corrected or paper")
    metrics.add_argument("--extra", action="store_true", help="principal angles as well")
    metrics.add_argument("--out", type=Path, required=True, help=".csv or .parquet")
    metrics.add_argument("--cache", type=Path, help="folder that keeps what one more model needs")
    metrics.add_argument("--device", default="cpu", help="where to compute: cpu, cuda, auto")
    metrics.set_defaults(call=_metrics)

    merge = verbs.add_parser("merge", help="merge checkpoints into one", epilog=CHECKPOINTS)
    merge.add_argument("--base", type=Path, required=True, help="pretrained weights")
    merge.add_argument("--models", type=Path, nargs="+", required=True)
    merge.add_argument("--method", required=True)
    merge.add_argument("--edition", default="corrected", help="corrected, paper or original")
    merge.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    merge.add_argument("--seed", type=int, default=0)
    merge.add_argument(
        "--cache", type=Path, help="folder of factors, which spare merges by tsv work"
    )
    merge.add_argument("--device", default="cpu", help="where to compute: cpu, cuda, auto")
    merge.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    merge.set_defaults(call=_merge)

    fit = verbs.add_parser("fit", help="predict how well pairs merge from their metrics")
    command.add_arguments(fit)
    fit.set_defaults(call=_fit)

    agreement = verbs.add_parser("agreement", help="top-5 overlap and sign agreement of fits")
    agreement_command.add_arguments(agreement)
    agreement.set_defaults(call=_agreement)

    tables = verbs.add_parser("published", help="the released tables in this project's schemas")
    published.add_arguments(tables)
    tables.set_defaults(call=_published)

    built = verbs.add_parser("book", help="run the chapters and build the HTML")
    book.add_arguments(built)
    built.set_defaults(call=_book)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 on success, 2 for a user's mistake, 130 when interrupted."""
    args = parser().parse_args(argv)
    try:
        args.call(args)
    except MergelibError as error:
        print(f"mergelib: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mergelib: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output (head, say) has gone; nothing is left to tell it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


if __name__ == "__main__":
    sys.exit(main())
