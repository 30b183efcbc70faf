"""Time the weight metrics of CLIP-size checkpoints: `python benchmarks/metrics.py [--json]`.

In one run: the engine on synthetic fine-tuned vision towers, then with one more model, and the
literal per-pair algorithm on a few pairs (float32, every pair anew: both models' SVDs, the
flattened task vectors, the SVDs of the stacked pair, whole and tensor by tensor), which is
extrapolated to all pairs. The engine runs in a process of its own, whose peak memory is reported.
Beside them stands the floor: bytes read at the measured rate of reading, and the operations of
Gram products and eigenproblems at the measured rate of float64 matrix products.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import combinations, islice
from pathlib import Path

import numpy as np
import torch
from synthetic import TOWERS, checkpoint_shapes, write_models
from torch import Tensor

from mergelib.core.store import load_tensors
from mergelib.metrics.table import pairwise_of_checkpoints

EPS, SIGMAS, TRIPLETS = 1e-10, 100, 10


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# --- the literal algorithm -------------------------------------------------------------------


def effective_rank(rows: Tensor) -> tuple[float, Tensor]:
    """exp of the entropy of the normalized singular values of a stack (2, D), and the values."""
    values = torch.linalg.svdvals(rows)
    p = values / (values.sum() + EPS)
    return float(torch.exp(-(p * torch.log(p + EPS)).sum())), values


def literal_pair(base: Path, first: Path, second: Path) -> dict[str, float]:
    """The 18 weight metrics of one pair, float32, nothing shared with other pairs."""
    start = load_tensors(base)
    one, two = ({n: v - start[n] for n, v in load_tensors(p).items()} for p in (first, second))
    a, b = (torch.cat([tau[name].flatten() for name in sorted(tau)]) for tau in (one, two))
    lengths = [float(a.norm()), float(b.norm())]
    row = {
        "task_vector_dot_product": float(a @ b),
        "task_vector_l2_distance": float((a - b).norm()),
    }
    row["task_vector_cosine_similarity"] = cosine = float(a @ b) / math.prod(lengths)
    row["task_vector_magnitude_ratio"] = min(lengths) / max(lengths)
    row["weight_space_angle"] = math.degrees(math.acos(max(-1, min(1, cosine))))
    rank, (s1, s2) = effective_rank(torch.stack([a, b]))
    row |= {"effective_rank": rank, "effective_rank_mergeability_score": min(max(2 - rank, 0), 1)}
    row["stable_rank"] = float((s1 + s2) ** 2 / (s1**2 + s2**2 + EPS))
    row["spectral_gap"] = float((s1 - s2) / (s1 + EPS))
    row["singular_value_ratio"] = float(s2 / (s1 + EPS))
    total = weights = 0.0
    for name in one:
        pair = torch.stack([one[name].flatten(), two[name].flatten()])
        weight = float(pair.norm(dim=1).sum())
        total, weights = total + weight * effective_rank(pair)[0], weights + weight
    row["layerwise_effective_rank"] = total / weights
    row["layerwise_effective_rank_mergeability_score"] = min(max(2 - total / weights, 0), 1)
    overlaps = [literal_overlaps(one[n], two[n]) for n in one if one[n].ndim == 2]
    return row | {name: float(np.mean([o[name] for o in overlaps])) for name in overlaps[0]}


def literal_overlaps(first: Tensor, second: Tensor) -> dict[str, float]:
    """The subspace metrics of one matrix."""
    k = min(TRIPLETS, *first.shape)
    (u1, s1, v1), (u2, s2, v2) = (
        torch.linalg.svd(tau, full_matrices=False) for tau in (first, second)
    )
    left, top, bottom = u1[:, :k].T @ u2[:, :k], v1[:k] @ v2[:k].T, v1[-k:] @ v2[-k:].T
    shares = [(s / (s.sum() + 1e-8))[:SIGMAS] for s in (s1, s2)]
    return {
        "singular_value_overlap": float(torch.cosine_similarity(*shares, dim=0)),
        "subspace_overlap": float(left.norm()) / k**0.5,
        "right_subspace_overlap_top_k": float(top.norm()) / k**0.5,
        "right_subspace_overlap_bottom_k": float(bottom.norm()) / k**0.5,
        "interaction_matrix_overlap_top_k": float((torch.linalg.svdvals(top) ** 2).mean()),
        "interaction_matrix_overlap_bottom_k": float((torch.linalg.svdvals(bottom) ** 2).mean()),
    }


# --- ours ------------------------------------------------------------------------------------


def engine(base: Path, models: list[Path], folder: Path, device: str) -> dict[str, float]:
    """Seconds for all models but the last into an empty cache, and then for the last one more.

    `add_one` has the cache of the others; all files were read just before, so that neither waits
    for the disk. The table of all models is left in the folder.
    """
    for path in (base, *models):
        path.read_bytes()
    cache = folder / "cache"
    found = {
        "seconds": seconds(
            lambda: pairwise_of_checkpoints(base, models[:-1], cache=cache, device=device)
        )
    }
    start = time.perf_counter()
    table = pairwise_of_checkpoints(base, models, cache=cache, device=device)
    found["add_one_seconds"] = time.perf_counter() - start
    found["again_seconds"] = seconds(
        lambda: pairwise_of_checkpoints(base, models, cache=cache, device=device)
    )
    found["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    table.to_csv(folder / "table.csv", index=False)
    return found


def in_process(base: Path, models: list[Path], folder: Path, args: argparse.Namespace) -> dict:
    """`engine` in a process of its own, so that its peak memory is its own."""
    command = [sys.executable, __file__, "--engine", str(folder), "--device", args.device]
    command += ["--threads", str(args.threads), str(base), *map(str, models)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


# --- the floor -------------------------------------------------------------------------------


def floor(name: str, models: int, path: Path) -> dict[str, float]:
    """Seconds that reading and arithmetic take at the measured rates."""
    size = path.stat().st_size
    memory = bytearray(size)

    def read() -> None:
        with path.open("rb", buffering=0) as file:
            file.readinto(memory)

    a = torch.randn(1536, 1536, dtype=torch.float64)
    a @ a
    rate = 2 * len(a) ** 3 / min(seconds(lambda: a @ a) for _ in range(5))
    bandwidth = size / min(seconds(read) for _ in range(3))
    shapes = checkpoint_shapes(name).values()
    matrices = [(max(shape), min(shape)) for shape in shapes if len(shape) == 2]
    # half a symmetric product and the tridiagonal form; a few of its vectors come to little
    factors = sum(m * n**2 + 4 / 3 * n**3 for m, n in matrices) * models
    products = models**2 * sum(math.prod(shape) for shape in shapes)
    return {
        "read_gb_per_s": bandwidth / 1e9,
        "matmul_gflops": rate / 1e9,
        "floor_read_seconds": (models + 1) * size / bandwidth,
        "floor_arithmetic_seconds": (factors + products) / rate,
    }


def measure(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """All figures; `seconds` is of `--models` models, `add_one_seconds` of one more."""
    base, models = write_models(folder, args.backbone, args.models + 1)
    found = {"backbone": args.backbone, "models": args.models, "device": args.device}
    found |= {"threads": args.threads, "cores": os.cpu_count()}
    found |= in_process(base, models, folder, args)
    found |= floor(args.backbone, args.models, models[0])
    table = np.genfromtxt(
        folder / "table.csv", delimiter=",", names=True, dtype=None, encoding=None
    )
    times, errors = [], {}
    pairs = islice(combinations(range(len(models)), 2), args.pairs)
    for line, (i, j) in enumerate(pairs):
        start = time.perf_counter()
        row = literal_pair(base, models[i], models[j])
        times.append(time.perf_counter() - start)
        for name, value in row.items():
            errors[name] = max(errors.get(name, 0), abs(value / table[name][line] - 1))
    literal = float(np.median(times)) * math.comb(args.models, 2) if times else math.nan
    return found | {
        "literal_pair_seconds": float(np.median(times)) if times else math.nan,
        "literal_pairs_timed": len(times),
        "literal_seconds_extrapolated": literal,
        # that of float32 sums over 86 million entries, not ours
        "literal_largest_error": max(errors.values(), default=math.nan),
        "literal_largest_error_of": max(errors, key=errors.get, default=""),
        "speedup": literal / found["seconds"],
        "add_one_fraction": found["add_one_seconds"] / found["seconds"],
        # one model's share of the pass, and all the others read once for its row of products
        "add_one_floor_seconds": found["seconds"] / args.models + found["floor_read_seconds"],
    }


def main() -> None:
    """Print the table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--backbone", default="ViT-B-16", choices=list(TOWERS))
    parser.add_argument("--pairs", type=int, default=2, help="pairs for the literal algorithm")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, help="where temporary files go; 8 GB for 20 models")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--engine", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("paths", type=Path, nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.engine:
        print(json.dumps(engine(args.paths[0], args.paths[1:], args.engine, args.device)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        found = measure(args, Path(folder))
    found = {n: float(f"{v:.4g}") if isinstance(v, float) else v for n, v in found.items()}
    if args.json:
        print(json.dumps({n: None if v != v else v for n, v in found.items()}))
        return
    for name, value in found.items():
        print(f"{name:<36}{value!s:>14}")


if __name__ == "__main__":
    main()
