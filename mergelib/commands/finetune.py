"""`mergelib finetune`: one task of a parameter file, by its recipe or another, several seeds."""

import argparse
from pathlib import Path

from mergelib.core.outputs import check_folder

EPILOG = (
    "--set takes the keys of `finetune` in a parameter file: steps, batch, learning_rate, "
    "weight_decay, warmup, clip, rule, strength, optimizer (adamw, sgd), momentum, schedule "
    "(cosine, constant), accumulate, augment (crop), checkpointing, save_every, validate_every, "
    "patience. Killed, the same command goes on where save_every left it, to the same bits."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `mergelib finetune`."""
    add = parser.add_argument
    add("--params", type=Path, required=True, help="YAML file, e.g. params/smoke.yaml")
    add("--task", required=True, help="one of the file's tasks")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="other than the file's recipe")
    add("--seeds", type=int, nargs="+", help="one model a seed (the recipe's)")
    add("--store", type=Path, default=Path("_build/store"), help="finished work")
    add("--out", type=Path, required=True, help="folder: checkpoint, accuracies, log of each seed")
    add("--jobs", type=int, default=0, help="seeds at a time (0: one a core)")
    add("--cluster", default="", help="local:N, dask://host:port or ray://host:port")


def run(args: argparse.Namespace) -> None:
    """Fine-tune, copy what was made, and say the accuracies."""
    check_folder(args.store, [args.params])
    check_folder(args.out, [args.params])
    from mergelib.pipeline import params
    from mergelib.pipeline.one_task import finetuned

    settings = params.with_recipe(params.load(args.params), args.set, str(args.params))
    seeds = args.seeds or [settings.finetune.seed]
    for made in finetuned(
        settings, args.task, seeds, args.store, args.out, args.jobs, args.cluster
    ):
        print(made)
