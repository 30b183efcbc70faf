"""Merges at CLIP size: `python benchmarks/merging.py [--json]`.

Times a TSV-M merge of two synthetic ViT-B/16 models beside the literal algorithm (SVD of each task
vector, SVD of the concatenated factors; float32, as published), from raw checkpoints and from one
and the same files of factors; checks both against the literal algorithm in float64; and measures
the peak memory of merging twenty models by every method, each in a process of its own. Floors are
bytes over the rate of reading, plus the operations of the bare matrix products over the measured
rate of one. `--blocks 1` makes it a matter of a minute.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from synthetic import TOWERS, tower_shapes, write_shapes
from torch import Tensor

from mergelib.core.store import load_tensors, save_tensors
from mergelib.linalg.polar import is_matrix
from mergelib.merging.cache import write_factors
from mergelib.merging.engine import merge
from mergelib.merging.registry import METHODS

Factors = tuple[Tensor, Tensor, Tensor]


def seconds(work: Callable[[], object]) -> tuple[float, object]:
    """Wall-clock seconds of one call, and its result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


# --- the literal algorithm ----------------------------------------------------------------------


def tried(work: Callable[[], object], failures: dict[str, str], name: str) -> Callable[[], object]:
    """The work, noting in `failures` that its float32 SVD does not converge on this processor."""

    def attempt() -> object:
        try:
            return work()
        except torch.linalg.LinAlgError as error:
            failures[name] = str(error).splitlines()[0]
            return None

    return attempt


def literal_factors(vector: Tensor, rank: int) -> Factors:
    """Leading triplets (U, s, V) from an SVD of the task vector as it lies."""
    u, s, vt = torch.linalg.svd(vector, full_matrices=False)
    return u[:, :rank], s[:rank], vt[:rank].T


def literal_merge(factors: Sequence[Factors]) -> Tensor:
    """U⊥ diag(S) V⊥ᵀ from SVDs of the factors side by side, Vᵀ stacked as published."""
    us, ss, vs = zip(*factors, strict=True)
    p, _, q = torch.linalg.svd(torch.cat(us, dim=1), full_matrices=False)
    left = p @ q
    p, _, q = torch.linalg.svd(torch.cat([v.T for v in vs]), full_matrices=False)
    return (left * torch.cat(ss)) @ (p @ q)


def literal_raw(base: Path, tuned: Sequence[Path], dtype: torch.dtype) -> dict[str, Tensor]:
    """Merged task vectors from checkpoints, read whole."""
    origin, *models = (load_tensors(path) for path in (base, *tuned))
    merged = {}
    for name, start in origin.items():
        vectors = [model[name].to(dtype) - start.to(dtype) for model in models]
        if is_matrix(start.shape, name):
            rank = min(start.shape) // len(models)
            merged[name] = literal_merge([literal_factors(vector, rank) for vector in vectors])
        else:
            merged[name] = sum(vectors) / len(vectors)
    return merged


def literal_from_factors(
    base: Path, tuned: Sequence[Path], kept: Sequence[Path]
) -> dict[str, Tensor]:
    """Merged task vectors, the matrices' from files of factors."""
    origin, *models = (load_tensors(path) for path in (base, *tuned))
    files = [load_tensors(path) for path in kept]
    merged = {}
    for name, start in origin.items():
        if is_matrix(start.shape, name):
            parts = [tuple(f[f"{part}/{name}"].float() for part in "usv") for f in files]
            merged[name] = literal_merge(parts)
        else:
            merged[name] = sum(model[name] - start for model in models) / len(models)
    return merged


def relative_error(found: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """‖Δ − Δ₆₄‖ / ‖Δ₆₄‖ over all tensors."""
    wrong = sum(float((found[n].double() - truth[n]).square().sum()) for n in truth)
    return math.sqrt(wrong / sum(float(truth[n].square().sum()) for n in truth))


def moved(base: Path, merged: dict[str, Tensor]) -> dict[str, Tensor]:
    """Merged task vectors of a merged state dict, which is rounded to float32."""
    return {name: merged[name].double() - start for name, start in load_tensors(base).items()}


# --- floors -------------------------------------------------------------------------------------


def rates(file: Path) -> tuple[float, float]:
    """Bytes a second of reading a (cached) file, and float32 operations a second of a product."""
    reading = min(seconds(file.read_bytes)[0] for _ in range(3))
    a = torch.randn(2048, 2048)
    product = min(seconds(lambda: a @ a)[0] for _ in range(4))
    return file.stat().st_size / reading, 2 * 2048**3 / product


def operations(shapes: dict[str, tuple[int, ...]], raw: bool) -> float:
    """Multiplications and additions of the bare matrix products of a TSV-M pair merge.

    From factors: cross products, V⊥, and U⊥ times the rest; raw: also two Gram matrices and the
    vectors of the larger side.
    """
    total = 0.0
    for name, shape in shapes.items():
        if is_matrix(shape, name):
            m, n = max(shape), min(shape)
            k = n // 2
            total += 2 * k * k * (m + n) + 2 * n * (2 * k) ** 2 + 2 * (2 * k) ** 3 + 4 * m * k * n
            total += raw * 2 * (m * n * n + 2 * m * n * k)
    return total


# --- memory -------------------------------------------------------------------------------------


def status(key: str) -> int:
    """A line of this process's status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    raise KeyError(key)


def child(method: str, out: Path, paths: Sequence[Path]) -> None:
    """Merge files into one, and print the seconds and the peak memory above the imports'."""
    before = status("VmRSS")
    base, *tuned = paths
    took, _ = seconds(lambda: save_tensors(out, merge(base, tuned, method)))
    print(json.dumps({"seconds": took, "bytes": status("VmHWM") - before}))


def peak(method: str, folder: Path, paths: Sequence[Path]) -> dict[str, float]:
    """What `child` finds in a process of its own."""
    words = ["--child", method, "--folder", str(folder), *(str(path) for path in paths)]
    run = [sys.executable, __file__, "--threads", str(torch.get_num_threads()), *words]
    return json.loads(subprocess.run(run, check=True, capture_output=True, text=True).stdout)


# --- the two tables -----------------------------------------------------------------------------


def time_tsv(folder: Path, base: Path, pair: Sequence[Path], rounds: int) -> dict[str, float]:
    """Seconds, ratios, errors and floors of a TSV-M pair merge."""
    kept = [folder / f"factors{t}.safetensors" for t in range(2)]
    for path, model in zip(kept, pair, strict=True):
        write_factors(path, base, model)
    failures: dict[str, str] = {}
    works = {
        "raw": lambda: merge(base, pair, "tsv"),
        "factors": lambda: merge(base, pair, "tsv", factors=kept),
        "literal_raw": lambda: literal_raw(base, pair, torch.float32),
        "literal_factors": lambda: literal_from_factors(base, pair, kept),
    }
    works |= {n: tried(work, failures, n) for n, work in works.items() if "literal" in n}
    took, found = dict.fromkeys(works, math.inf), {}
    for _ in range(rounds):  # in turn, so that a busy machine is busy for all
        for name, work in works.items():
            one, found[name] = seconds(work)
            took[name] = min(took[name], one)
    truth = literal_raw(base, pair, torch.float64)
    errors = {
        name: relative_error(made if "literal" in name else moved(base, made), truth)
        for name, made in found.items()
        if name not in failures
    }
    took |= dict.fromkeys(failures, math.nan)
    shapes = {name: tuple(tensor.shape) for name, tensor in truth.items()}
    reading, product = rates(base)
    size = base.stat().st_size
    read = {"raw": 4 * size, "factors": 2 * size + sum(path.stat().st_size for path in kept)}
    floors = {
        name: bytes_ / reading + operations(shapes, name == "raw") / product
        for name, bytes_ in read.items()  # the merged model is written once too
    }
    return {
        "tsv_speedup_factors": took["literal_factors"] / took["factors"],
        "tsv_speedup_raw": took["literal_raw"] / took["raw"],
        "tsv_relative_error": max(errors["raw"], errors["factors"]),
        "tsv_relative_error_raw": errors["raw"],
        "tsv_relative_error_factors": errors["factors"],
        "literal_relative_error_raw": errors.get("literal_raw", math.nan),
        "literal_relative_error_factors": errors.get("literal_factors", math.nan),
        "literal_failures": failures,
        **{f"seconds_{name}": value for name, value in took.items()},
        **{f"floor_{name}": value for name, value in floors.items()},
        "gigaflops_float32": product / 1e9,
        "read_gigabytes_a_second": reading / 1e9,
    }


def measure(args: argparse.Namespace, folder: Path) -> dict:
    """Both tables as one object."""
    width, blocks, patch, embedding = TOWERS[args.name]
    shapes = tower_shapes(width, args.blocks or blocks, patch, embedding)
    base, models = write_shapes(folder, shapes, args.models, seed=0)
    found = {"name": args.name, "blocks": args.blocks or blocks, "models": args.models}
    found["threads"] = torch.get_num_threads()
    found |= time_tsv(folder, base, models[:2], args.rounds)
    size = base.stat().st_size
    peaks = {m: peak(m, folder, [base, *models]) for m in args.methods or METHODS}
    found["model_gib"] = size / 2**30
    found["peak_models_20_by_method"] = {m: p["bytes"] / size for m, p in peaks.items()}
    found["peak_models_20"] = max(found["peak_models_20_by_method"].values())
    found["peak_bound"] = 4 + 2**30 / size
    found["seconds_20_by_method"] = {m: p["seconds"] for m, p in peaks.items()}
    return found


def show(found: dict) -> None:
    """Print the tables."""
    print(f"{found['name']}, {found['blocks']} blocks, {found['threads']} threads")
    print(f"\n{'TSV-M, two models':<22}{'seconds':>9}{'floor':>8}{'ratio':>8}{'error':>11}")
    for start in ("raw", "factors"):
        for who in ("literal_", ""):
            took = found[f"seconds_{who}{start}"]
            floor = "" if who else f"{found[f'floor_{start}']:.2f}"
            speedup = found[f"tsv_speedup_{start}"]
            ratio = "" if who or math.isnan(speedup) else f"{speedup:.1f}"
            error = found[f"{who or 'tsv_'}relative_error_{start}"]
            line = f"{'literal' if who else 'mergelib'}, from {start}"
            if f"{who}{start}" in found["literal_failures"]:
                print(f"{line:<22}  its float32 SVD does not converge on this processor")
                continue
            print(f"{line:<22}{took:>9.2f}{floor:>8}{ratio:>8}{error:>11.1e}")
    print(f"\n{found['models']:>2} models{'':<12}{'seconds':>9}{'peak, in models':>18}")
    for name, value in found["peak_models_20_by_method"].items():
        print(f"{name:<21}{found['seconds_20_by_method'][name]:>9.1f}{value:>18.2f}")
    print(f"{'bound':<21}{'':>9}{found['peak_bound']:>18.2f}")


def main() -> None:
    """Print the tables, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="ViT-B-16", choices=list(TOWERS))
    parser.add_argument("--blocks", type=int, help="fewer transformer blocks than the tower's")
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--methods", nargs="*", choices=list(METHODS), help="for the memory table")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--folder", type=Path, help="keep the models here")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("paths", type=Path, nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.child:
        child(args.child, args.folder / "merged.safetensors", args.paths)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args, args.folder or Path(folder))
    if args.json:
        # float32 may fail the literal algorithm; JSON has no number for that
        print(json.dumps({name: None if v != v else v for name, v in found.items()}))
    else:
        show(found)


if __name__ == "__main__":
    main()
