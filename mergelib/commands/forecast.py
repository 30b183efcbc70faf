"""`mergelib forecast`: will these models merge, by which method, and how sure is that?"""

import argparse
import json
from pathlib import Path

from mergelib.commands import EPILOG as FORMATS
from mergelib.core.outputs import check_folder, check_output

EPILOG = (
    f"{FORMATS} Images: a folder (flat, or a folder a class, which labels its images), .npz or "
    ".safetensors of uint8 images and labels. What is given a task goes by the model's "
    "name, NAME=PATH, or in the models' order. Evidence: weights alone (level 0), --known (1), "
    "--images (2), with labels (3). --json prints one object: level, evidence, models, methods "
    "(each with mean, worse, sides, interval80, interval95, p_worse_090, p_worse_095, verdict, "
    "drivers), recommended, regret, checks; of more than two models also pairs. Accuracies are "
    "shares of the fine-tuned models' own. Nothing is written but --report and --cache."
)
A_TASK = ("images", "labels", "heads", "classes")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `mergelib forecast`."""
    add = parser.add_argument
    add("--base", type=Path, required=True, help="pretrained weights")
    add("--models", nargs="+", required=True, metavar="[NAME=]PATH", help="two or more")
    add("--methods", default="all", help="all, or names with commas between: tsv,ties")
    add("--images", nargs="+", metavar="[NAME=]DIR", help="images of each model's task")
    add("--labels", nargs="+", metavar="[NAME=]CSV", help="columns file and label, of flat folders")
    add("--heads", nargs="+", metavar="[NAME=]FILE", help="safetensors: a matrix (classes, width)")
    add(
        "--classes",
        nargs="*",
        metavar="[NAME=]FILE",
        help="class names of zero-shot heads, one a line, or JSON of classes and templates; "
        "without a file: the names of the folders",
    )
    add("--known", type=Path, help="CSV: task or model, zero_shot, fine_tuned (fractions)")
    add("--n", type=int, default=20, help="images a task, drawn by the seed (default: 20)")
    add("--seed", type=int, default=0, help="of the images and of random methods")
    add("--backbone", default="", help="such as ViT-B-16, where weights do not tell it")
    add("--canonicalize", action="store_true", help="undo reparameterisations of models")
    add("--cache", type=Path, help="folder of factors, which spare work of many pairs")
    add("--report", type=Path, help=".html file: the chapter of the book on these models")
    add("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> None:
    """Print the forecast."""
    from mergelib.forecasting.words import by_name, models_of

    models = models_of(args.models)
    given = {name: by_name(getattr(args, name), models, name) for name in A_TASK}
    inputs = [args.base, *models.values()]
    for held in (given["images"], given["labels"], given["heads"]):
        inputs += [Path(path) for path in (held or {}).values()]
    if args.report is not None:
        check_output(args.report, inputs, (".html",))
    if args.cache is not None:
        check_folder(args.cache, inputs)
    from mergelib.face import forecast

    answer = forecast(
        args.base,
        models,
        args.methods.split(","),
        known=args.known,
        n=args.n,
        seed=args.seed,
        backbone=args.backbone,
        cache=args.cache,
        report=args.report,
        canonicalize=args.canonicalize,
        progress=True,
        **given,
    )
    print(json.dumps(answer.as_json(), indent=2, allow_nan=False) if args.json else answer)
