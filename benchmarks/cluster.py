"""What a run costs, from measured seconds of its parts: `python benchmarks/cluster.py`.

Times one fine-tuning step, the evaluation of an image, the summary of a model and a
merge by every method, for each backbone on one device (weights as they are drawn: time does not
depend on them), and prints the hours of all tasks and pairs, spread over `--workers`. Seconds are
of the processor on a CPU, which other work does not prolong, and of the clock on a GPU.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from mergelib.merging.engine import merge
from mergelib.merging.registry import METHODS
from mergelib.metrics.encoder import mean_activation, pool_gradients
from mergelib.metrics.weights import summarize
from mergelib.models.accuracy import accuracy
from mergelib.models.backbones import load
from mergelib.models.finetune import Recipe, finetune

CLASSES, POOL = 20, 10  # of a task; images a task in the pool that summaries see


@dataclass(frozen=True)
class Size:
    """What a run is: numbers of tasks, optimizer steps a task, images a batch, test images."""

    tasks: int
    steps: int
    batch: int
    test: int
    workers: int


def seconds(work: Callable[[], object], device: str, rounds: int = 2) -> float:
    """The least seconds of a call after one warm-up."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    times = []
    for _ in range(rounds + 1):
        start = clock()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - start)
    return min(times[1:])


def units(name: str, device: str, bfloat16: bool, size: Size) -> dict[str, tuple[int, float]]:
    """Of each station how many units there are, and the seconds of one."""
    visual = load(name).model.visual.to(device)
    side = visual.image_size[0] if isinstance(visual.image_size, tuple) else visual.image_size
    images = torch.randn(size.batch, 3, side, side, device=device)
    labels = torch.randint(CLASSES, (size.batch,), device=device)
    head = torch.randn(CLASSES, visual.output_dim, device=device)
    base = {n: p.detach().float().clone() for n, p in visual.state_dict().items()}
    tuned = [{n: v + 0.01 * torch.randn_like(v) for n, v in base.items()} for _ in range(2)]
    recipe = Recipe(steps=2, batch=size.batch)
    pool = (images[:POOL], labels[:POOL], [head], torch.zeros(POOL, dtype=torch.long))

    def timed(work: Callable[[], object], rounds: int = 1) -> float:
        return seconds(work, device, rounds)

    step = timed(lambda: finetune(visual, images, labels, head, recipe, bfloat16)) / recipe.steps
    image = timed(lambda: accuracy(visual, images, labels, head, bfloat16=bfloat16)) / size.batch
    seen = timed(lambda: mean_activation(visual, pool[0])) + timed(
        lambda: pool_gradients(visual, *pool)
    )
    pairs = size.tasks * (size.tasks - 1) // 2
    found = {
        "fine-tune": (size.tasks, size.steps * step + 2 * size.test * image),
        "summarize": (size.tasks, timed(lambda: summarize(base, tuned[0])) + size.tasks * seen),
    }
    for method in METHODS:
        one = timed(lambda method=method: merge(base, tuned, method))
        found[method] = (pairs, one + 2 * size.test * image)
    return found


def main() -> None:
    """Print the table of each backbone, and the sum."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbones", nargs="+", default=["glyph-vit"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--bfloat16", action="store_true")
    for name, default in (("tasks", 20), ("steps", 2000), ("batch", 128), ("test", 300)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--workers", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    size = Size(args.tasks, args.steps, args.batch, args.test, args.workers)
    total = 0.0
    print(f"{'':<12}{'unit':<18}{'units':>6}{'seconds each':>14}{f'hours on {size.workers}':>14}")
    for name in args.backbones:
        for unit, (count, each) in units(name, args.device, args.bfloat16, size).items():
            hours = math.ceil(count / size.workers) * each / 3600
            total += hours
            print(f"{name:<12}{unit:<18}{count:>6}{each:>14.3f}{hours:>14.3f}")
    print(f"{'':<12}{'all':<38}{total:>14.3f}")


if __name__ == "__main__":
    main()
