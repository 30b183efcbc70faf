"""What a forecast costs: `python benchmarks/forecast.py [--json]`.

The command as a user runs it, in a process of its own, from its start to its answer: two ViT-B/16
(`benchmarks/synthetic.py`), random pictures at 224 pixels and random heads, every method of the
bank; and the book's pair of glyph models, when run from a checkout. Seconds on the clock, seconds
of all cores, peak of what is resident.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from synthetic import write_models

from mergelib.core.store import save_tensors

FEATURES, CLASSES = 512, 100  # of a ViT-B/16, and of the random heads


def cost(words: Sequence[str]) -> dict[str, float]:
    """Run a command of mergelib: seconds, CPU seconds, peak in GiB."""
    start = time.perf_counter()
    call = [sys.executable, "-m", "mergelib.cli", *words]
    process = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = process.stderr.read() if process.stderr else b""
    _, code, used = os.wait4(process.pid, 0)
    if code:
        raise SystemExit(errors.decode()[-500:])
    return {
        "seconds": time.perf_counter() - start,
        "cpu": used.ru_utime + used.ru_stime,
        "gib": used.ru_maxrss / 2**20,
    }


def pictures(folder: Path, count: int, size: int, seed: int) -> None:
    """Random pictures."""
    folder.mkdir()
    rng = torch.Generator().manual_seed(seed)
    for k in range(count):
        pixels = torch.randint(256, (size, size, 3), dtype=torch.uint8, generator=rng)
        Image.fromarray(pixels.numpy()).save(folder / f"{k}.png")


def large(folder: Path, n: int) -> list[str]:
    """Two ViT-B/16, images and heads of two tasks; the words of the command."""
    base, models = write_models(folder, "ViT-B-16", 2)
    words = ["forecast", "--base", str(base), "--models"]
    words += [f"{name}={model}" for name, model in zip("ab", models, strict=True)]
    for seed, name in enumerate("ab"):
        pictures(folder / name, n, 224, seed)
        head = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(seed))
        save_tensors(folder / f"{name}_head.safetensors", {"head": head})
    words += ["--images", *(f"{name}={folder / name}" for name in "ab")]
    words += ["--heads", *(f"{name}={folder / name}_head.safetensors" for name in "ab")]
    return [*words, "--backbone", "ViT-B-16", "--n", str(n)]


def glyphs(folder: Path, n: int) -> list[str]:
    """The book's pair with its images, class names and known accuracies."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "book"))
    from studies import will_merge

    frozen = Path(__file__).parents[1] / "book/tables/forecast_pair"
    made = will_merge.prepare(frozen, folder)
    words = ["forecast", "--base", str(made.given["base"])]
    for name in ("models", "images", "classes"):
        words += [f"--{name}", *(f"{k}={path}" for k, path in made.given[name].items())]
    return [*words, "--n", str(n)]


def main() -> None:
    """Time both and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=20, help="images a task")
    parser.add_argument("--runs", type=int, default=3, help="of which the middle one counts")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = {}
    for name, words_of in (("glyph pair", glyphs), ("two ViT-B/16", large)):
        with tempfile.TemporaryDirectory() as folder:
            words = words_of(Path(folder), args.n)
            print(f"{name} …", file=sys.stderr)
            runs = [cost(words) for _ in range(args.runs)]
            found[name] = sorted(runs, key=lambda run: run["seconds"])[len(runs) // 2]
    if args.json:
        print(json.dumps(found))
        return
    print(f"{'':14}{'seconds':>10}{'CPU s':>10}{'peak GiB':>10}")
    for name, run in found.items():
        print(f"{name:14}{run['seconds']:10.1f}{run['cpu']:10.1f}{run['gib']:10.2f}")


if __name__ == "__main__":
    main()
