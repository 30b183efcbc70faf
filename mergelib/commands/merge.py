"""`mergelib merge`: checkpoints merged by a method into one."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from mergelib.commands import EPILOG as FORMATS
from mergelib.core.errors import MergelibError
from mergelib.core.outputs import check_folder

if TYPE_CHECKING:
    from mergelib.merging.engine import Plan
    from mergelib.merging.recipe import Recipe

EPILOG = (
    f"{FORMATS} What is written is as its name says: .safetensors, .pt, .pth or .bin, or a model "
    "folder, with all that the base holds and in its types. Beside it lies the recipe, which "
    "--recipe takes again. Patterns are of tensor names, such as '*.mlp.*'."
)
CANONICALIZE = (
    "merge a model whose heads or neurons were permuted or rescaled as it is nearest to the base "
    "(it is held in memory); who did that to a model may not want it merged: ask its owner"
)
OF_RECIPE = ("models", "method", "set", "weights", "only", "exclude", "dtype")
SWITCHES = ("shared_rows", "canonicalize")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `mergelib merge`."""
    add = parser.add_argument
    add("--base", type=Path, help="pretrained weights")
    add("--models", type=Path, nargs="+", help="fine-tuned weights, or LoRA adapters of the base")
    add("--method", help="such as weight_avg, ties, tsv")
    add("--edition", default="corrected", help="corrected, paper or original")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a method's parameter")
    add("--weights", type=float, nargs="+", help="what the models' task vectors are times")
    add("--seed", type=int, default=0)
    add("--recipe", type=Path, help="YAML file that says all of this (mergekit's keys do too)")
    add("--only", action="append", default=[], metavar="PATTERN", help="tensors to merge")
    add("--exclude", action="append", default=[], metavar="PATTERN", help="to leave as the base's")
    add("--shared-rows", action="store_true", help="merge resized tensors over the rows all have")
    add("--canonicalize", action="store_true", help=CANONICALIZE)
    add("--dtype", help="to write in (default: that of the base)")
    add("--max-shard-size", help="such as 5GB; more is written in shards")
    add("--cache", type=Path, help="folder of factors, which spare merges by tsv work")
    add("--device", default="cpu", help="where to compute: cpu, cuda, auto")
    add("--dry-run", action="store_true", help="say what would be done, and do nothing")
    add("--out", type=Path, required=True, help="file or folder to write")


def run(args: argparse.Namespace) -> None:
    """Write the merged checkpoint."""
    from mergelib.merging import job

    recipe = _recipe(args)
    if args.cache is not None:
        check_folder(args.cache, [Path(recipe.base), *(Path(m.path) for m in recipe.models)])
    planned = job.prepare(recipe, args.out, None, args.device)
    if not args.dry_run:
        found = job.tensors(recipe, planned, args.cache)
        job.write(recipe, planned, found, args.out, args.max_shard_size, progress=True)
    print(_told(args, planned, recipe))


def _told(args: argparse.Namespace, planned: "Plan", recipe: "Recipe") -> str:
    from mergelib.checkpoints.output.shards import bytes_of

    size = sum(bytes_of(*each) for each in planned.spec.values())
    merged = len(planned.spec) - len(planned.kept)
    what = "would be merged" if args.dry_run else "merged"
    kept = f", {len(planned.kept)} as in the base" if planned.kept else ""
    return (
        f"{args.out}: {merged} tensors {what} from {len(recipe.models)} models by "
        f"{recipe.method}{kept}; {size / 1e6:.1f} MB"
    )


def _recipe(args: argparse.Namespace) -> "Recipe":
    """The recipe that the arguments name, or are."""
    from mergelib.merging.recipe import asked, read

    if args.recipe is not None:
        given = [f"--{name}" for name in ("base", *OF_RECIPE) if getattr(args, name)]
        given += [f"--{name.replace('_', '-')}" for name in SWITCHES if getattr(args, name)]
        if given:
            said = ", ".join(given)
            raise MergelibError(f"{args.recipe} says what to merge: leave out {said}")
        return read(args.recipe)
    for name in ("base", "models", "method"):
        if getattr(args, name) is None:
            raise MergelibError(f"--{name} is missing: give it, or --recipe")
    return asked(
        str(args.base),
        [str(model) for model in args.models],
        args.method,
        args.weights,
        parameters=dict(_assignment(text) for text in args.set),
        edition=args.edition,
        seed=args.seed,
        dtype=args.dtype,
        only=args.only,
        exclude=args.exclude,
        shared_rows=args.shared_rows,
        canonicalize=args.canonicalize,
    )


def _assignment(text: str) -> tuple[str, object]:
    name, sign, value = text.partition("=")
    if not sign:
        raise MergelibError(f"--set wants name=value, not {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
