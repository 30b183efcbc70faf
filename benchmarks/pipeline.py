"""Time the stations of the pipeline on one core: `python benchmarks/pipeline.py [--json]`.

Rates are medians of several rounds; forward-only evaluation stands beside the matrix-product rate
that bounds it (two operations per weight and token).
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from mergelib.merging.engine import merge
from mergelib.merging.registry import METHODS
from mergelib.metrics.encoder import mean_activation, pool_gradients
from mergelib.metrics.weights import summarize
from mergelib.models.accuracy import accuracy
from mergelib.models.backbones import load
from mergelib.models.finetune import Recipe, finetune
from mergelib.models.heads import zero_shot_head
from mergelib.tasks import build

IMAGES = 400


def seconds(work: Callable[[], object], rounds: int) -> float:
    """Median wall-clock seconds of a call, after one warm-up."""
    work()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(rounds: int) -> dict[str, float]:
    """Seconds by station; fine-tuning per step of 64 images, evaluation per image."""
    torch.manual_seed(0)
    backbone = load()
    visual = backbone.model.visual
    task = build("animals", {"train": IMAGES, "calibration": 10, "test": 10})
    images, labels = backbone.normalize(task.train.images), task.train.labels
    head = zero_shot_head(backbone, task.class_names, task.templates)
    base = backbone.visual_state()
    tuned = [{n: v + 0.01 * torch.randn_like(v) for n, v in base.items()} for _ in range(2)]
    pool = (images[:200], labels[:200], [head], torch.zeros(200, dtype=torch.long))
    sizes = {"train": IMAGES, "calibration": 1, "test": 1}
    steps = Recipe(steps=4)
    a = torch.randn(1024, 1024)
    found = {
        "render an image": seconds(lambda: build("games", sizes), rounds) / (IMAGES + 2),
        "fine-tune, a step of 64": seconds(
            lambda: finetune(visual, images, labels, head, steps), rounds
        )
        / steps.steps,
        "evaluate an image": seconds(lambda: accuracy(visual, images, labels, head), rounds)
        / IMAGES,
        "factors of a model": seconds(lambda: summarize(base, tuned[0]), rounds),
        "activation of a model": seconds(lambda: mean_activation(visual, images[:200]), rounds),
        "gradients of a model": seconds(lambda: pool_gradients(visual, *pool), rounds),
    }
    for method in METHODS:
        found[f"merge a pair, {method}"] = seconds(lambda m=method: merge(base, tuned, m), rounds)
    rate = 2 * 1024**3 / seconds(lambda: a @ a, rounds)
    weights = sum(p.numel() for p in visual.parameters())
    found["floor: evaluate an image"] = 2 * weights * 17 / rate
    return found


def main() -> None:
    """Print the table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = measure(args.rounds)
    if args.json:
        print(
            json.dumps(
                {
                    name: float(np.format_float_positional(v, 4, fractional=False))
                    for name, v in found.items()
                }
            )
        )
        return
    print(f"{'station':<28}{'milliseconds':>14}{'a second':>12}")
    for name, value in found.items():
        print(f"{name:<28}{1000 * value:>14.3f}{1 / value:>12.1f}")


if __name__ == "__main__":
    main()
