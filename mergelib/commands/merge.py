"""`mergelib merge`: checkpoints merged by a method into one."""

import argparse
import json
from pathlib import Path

from mergelib.commands import EPILOG as EPILOG
from mergelib.core.errors import MergelibError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `mergelib merge`."""
    add = parser.add_argument
    add("--base", type=Path, required=True, help="pretrained weights")
    add("--models", type=Path, nargs="+", required=True)
    add("--method", required=True)
    add("--edition", default="corrected", help="corrected, paper or original")
    add("--set", action="append", default=[], metavar="NAME=VALUE")
    add("--seed", type=int, default=0)
    add("--cache", type=Path, help="folder of factors, which spare merges by tsv work")
    add("--device", default="cpu", help="where to compute: cpu, cuda, auto")
    add("--out", type=Path, required=True, help="safetensors file to write")


def run(args: argparse.Namespace) -> None:
    """Write the merged checkpoint."""
    from mergelib.checkpoints.reading import opened
    from mergelib.face import merge

    merge(
        args.base,
        args.models,
        args.method,
        args.out,
        args.edition,
        args.seed,
        args.cache,
        args.device,
        **dict(_assignment(text) for text in args.set),
    )
    with opened(args.out) as weights:
        count = len(weights.shapes)
    print(f"{args.out}: {count} tensors merged from {len(args.models)} models")


def _assignment(text: str) -> tuple[str, object]:
    name, sign, value = text.partition("=")
    if not sign:
        raise MergelibError(f"--set wants name=value, not {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
