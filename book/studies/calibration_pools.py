"""The data-driven metrics of a finished run again, from calibration pools of several sizes.

What a metric owes to its pool, in a design that crosses two choices: the heads that a gradient's
loss has (the tasks' own, or random ones as published) and the images that a model sees (one pool
shared by all models, or those of its own task as published).

    PYTHONPATH=book python -m studies.calibration_pools --params params/glyph20.yaml \
        --to book/tables/calibration
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import pad
from tqdm import tqdm

from mergelib.checkpoints.task_vectors import gram
from mergelib.core.errors import MergelibError
from mergelib.core.store import digest, load_tensors, write_atomic, write_json
from mergelib.metrics.encoder import mean_activation, pool_gradients
from mergelib.metrics.inputs import Inputs
from mergelib.metrics.registry import METRICS
from mergelib.metrics.table import pairwise
from mergelib.pipeline import keys, loaded, params, task_data
from mergelib.pipeline.params import Run

SIZES = (1, 2, 4, 8, 16, 32)
DRAWS = 2  # disjoint halves of each task's calibration split
HEADS, IMAGES = ("real", "random"), ("shared", "own")
DIGITS = "%.7g"  # what float32 gradients carry


def random_head(like: Tensor, *key: object) -> Tensor:
    """A head of that shape (C, d), entries uniform in ±1/√d: a new linear layer's, as published.

    The draw depends on `key` alone.
    """
    seed = int(digest(list(map(str, key)))[:12], 16)
    uniform = torch.rand(like.shape, generator=torch.Generator().manual_seed(seed))
    return ((2 * uniform - 1) / like.shape[1] ** 0.5).to(like.device)


def half(store: Path, run: Run, size: int, draw: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first `size` images of half `draw` of every task's calibration split, and their labels.

    Images, labels, index of each one's task; a half that is smaller gives all it has.
    """
    images, labels, index = [], [], []
    for i, task in enumerate(run.tasks):
        pixels, truth = task_data.ready(store, run, task, "calibration")
        cut = len(truth) // DRAWS
        part = slice(draw * cut, draw * cut + min(size, cut))
        images.append(pixels[part])
        labels.append(truth[part])
        index.append(torch.full((len(labels[-1]),), i))
    return torch.cat(images), torch.cat(labels), torch.cat(index)


def tables(store: Path, run: Run, sizes: Sequence[int] = SIZES) -> pd.DataFrame:
    """One row per design, half, size and pair; one column per data-driven metric.

    Columns heads, images, draw, size, task_a, task_b, then the activation and gradient metrics
    (activation metrics, which know no head, in the rows of the real ones; with "own" images each
    model's mean activation is over its own task's). Random heads are drawn anew for each model,
    task, half and size. Raises MergelibError if the run's checkpoints are not in the store.
    """
    for task in run.tasks:
        if not keys.path(store, run, "tuned", task).is_file():
            raise MergelibError(
                f"{store} holds no checkpoint of {task} as {run.name} makes it: run `mergelib run` "
                "with the same parameters and store first"
            )
    heads = [task_data.head(store, run, task) for task in run.tasks]
    cells = list(itertools.product(HEADS, IMAGES, range(DRAWS), sizes))
    parts = []
    for cell in tqdm(cells, desc="pools"):
        kind, whose, draw, size = cell
        pool = half(store, run, size, draw)
        models = []
        for i, task in enumerate(run.tasks):
            part = tuple(x[pool[2] == i] for x in pool) if whose == "own" else pool
            used = heads
            if kind == "random":
                key = (run.seed, task, whose, draw, size)
                used = [random_head(h, *key, t) for t, h in zip(run.tasks, heads, strict=True)]
            models.append(_measure(store, run, task, part, used, kind == "real"))
        table = _pairs(models, run.tasks)
        for k, name in enumerate(("heads", "images", "draw", "size")):
            table.insert(k, name, cell[k])
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


def _measure(store, run, task, pool, heads, activation) -> dict[str, Tensor]:
    images, labels, index = pool
    file = keys.path(store, run, "tuned", task)
    with loaded.one_thread():
        visual = loaded.encoder(run, load_tensors(file), file)
        encoder, pixels = pool_gradients(visual, images, labels, heads, index)
        held = {"encoder": torch.cat([g.flatten() for g in encoder.values()])}
        held["input"] = pixels.flatten()
        if activation:
            held["activation"] = mean_activation(visual, images)
    return held


def _pairs(models: list[dict[str, Tensor]], tasks: Sequence[str]) -> pd.DataFrame:
    """The metrics table of T models' mean activations and gradients.

    A model with fewer images of its own has a pixel gradient of 0 in place of those it lacks.
    """
    longest = max(len(m["input"]) for m in models)
    activation = None
    if "activation" in models[0]:
        activation = torch.stack([m["activation"] for m in models]).numpy()
    x = Inputs(
        gram=np.zeros((len(tasks), len(tasks))),
        layer_grams={},
        activation=activation,
        encoder_gradient_gram=gram([m["encoder"] for m in models]),
        input_gradient_gram=gram([pad(m["input"], (0, longest - len(m["input"]))) for m in models]),
    )
    wanted = ("gradient",) if activation is None else ("activation", "gradient")
    return pairwise(x, tasks, [row.name for row in METRICS.rows() if row.category in wanted])


def meta(run: Run, sizes: Sequence[int]) -> dict:
    """What the table is of."""
    return {
        "source": "glyph benchmark",
        "name": run.name,
        "backbone": run.backbone,
        "edition": run.edition,
        "calibration": {"split": "calibration", "images_per_task": list(sizes), "halves": DRAWS},
        "seed": run.seed,
        "command": "PYTHONPATH=book python -m studies.calibration_pools "
        "--params params/glyph20.yaml --to book/tables/calibration",
        "digests": {"tuned": digest([keys.key(run, "tuned", task) for task in run.tasks])},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Write metrics.csv and meta.json; 0 on success, 2 for a user's mistake."""
    given = argparse.ArgumentParser(prog="python -m studies.calibration_pools", description=__doc__)
    given.add_argument("--params", type=Path, required=True, help="the finished run's YAML file")
    given.add_argument("--store", type=Path, default=Path("_build/store"), help="finished work")
    given.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder of the table")
    args = given.parse_args(argv)
    try:
        run = params.load(args.params)
        table = tables(args.store, run)
    except MergelibError as error:
        print(f"mergelib: error: {error}", file=sys.stderr)
        return 2
    text = table.to_csv(index=False, float_format=DIGITS, lineterminator="\n")
    write_atomic(args.to / "metrics.csv", text.encode())
    write_json(args.to / "meta.json", meta(run, SIZES))
    return 0


if __name__ == "__main__":
    sys.exit(main())
