"""Runs killed at random: `python tests/kill_runs.py [--count N] [--workers N] [--seed S]`.

A small run with a state kept every step is killed (SIGKILL) somewhere in fine-tuning, summaries,
merging or evaluation, and started again, until it ends; then anew, until `--count` kills are done.
Then the worker processes of a cluster are killed in the middle, `--workers` times. Every run that
ends has to have written the tables of an undisturbed one, byte for byte; prints the kills, by the
station they came in, and what differed. tests/test_kills.py makes a few.
"""

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import psutil

from mergelib.models.finetune import Recipe
from mergelib.pipeline import params
from mergelib.pipeline.run import execute

FILES = ("metrics.csv", "merges.csv", "tasks.csv", "meta.json")
RUN = params.Run(
    name="killed",
    tasks=["digits", "braille", "animals"],
    methods={"weight_avg": {}, "tsv": {}},
    sizes=params.Sizes(train=60, calibration=20, test=60),
    pool_per_task=2,
    finetune=Recipe(6, 16, learning_rate=1e-3, augment="crop", accumulate=2, save_every=1),
)


def tables(folder: Path) -> list[bytes]:
    """What a run wrote."""
    return [(folder / "tables" / name).read_bytes() for name in FILES]


def started(folder: Path) -> multiprocessing.Process:
    """The run in a process of its own, of which nothing need be imported again."""
    made = (RUN, folder / "store", folder / "tables", 1)
    child = multiprocessing.get_context("fork").Process(target=execute, args=made)
    child.start()
    return child


def at_work_in(store: Path) -> str:
    """The station that a run is in: that of its last file, or after it."""
    held = [file for file in store.glob("*/*") if not file.name.startswith(".")]
    last = max(held, key=lambda file: file.stat().st_mtime, default=None)
    return last.parent.name if last else "nothing"


def kill_runs(count: int, rng: random.Random, expected: list[bytes], seconds: float) -> Counter:
    """Kill runs `count` times, each after a random part of the seconds that one takes."""
    where: Counter = Counter()
    while where.total() < count:
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            while True:
                child = started(folder)
                child.join(rng.uniform(0, seconds / 4) if where.total() < count else None)
                if not child.is_alive():
                    break
                os.kill(child.pid, signal.SIGKILL)
                child.join()
                where[at_work_in(folder / "store")] += 1
                print(dict(where), flush=True)
            if child.exitcode or tables(folder) != expected:
                where["WRONG"] += 1
            print("the tables of an undisturbed run:", "WRONG" not in where, flush=True)
    return where


def kill_workers(count: int, rng: random.Random, expected: list[bytes]) -> Counter:
    """Kill worker processes of one run on two, `count` times."""
    where: Counter = Counter()
    ended = threading.Event()

    def kill(store: Path) -> None:
        while where.total() < count and not ended.wait(rng.uniform(0.2, 2)):
            station = at_work_in(store)
            found = psutil.Process().children(recursive=True)
            workers = [p for p in found if "spawn_main" in " ".join(p.cmdline())]
            if workers and station not in ("nothing", "base"):
                rng.choice(workers).kill()
                where[f"worker, {station}"] += 1
                print(dict(where), flush=True)
                ended.wait(10)  # it comes back, and takes up work

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        killer = threading.Thread(target=kill, args=(folder / "store",))
        killer.start()
        try:
            execute(RUN, folder / "store", folder / "tables", cluster="local:2")
        finally:
            ended.set()
            killer.join()
        if tables(folder) != expected:
            where["WRONG"] += 1
    return where


def main() -> int:
    """Run, and print how it went; 1 if a table was another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, start = random.Random(args.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as made:
        started(Path(made)).join()
        expected = tables(Path(made))
    where = kill_runs(args.count, rng, expected, time.monotonic() - start)
    if args.workers:
        where += kill_workers(args.workers, rng, expected)
    print(", ".join(f"{name}: {n}" for name, n in sorted(where.items())))
    return bool(where["WRONG"])


if __name__ == "__main__":
    sys.exit(main())
