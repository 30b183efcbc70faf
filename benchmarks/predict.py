"""How fast the predictors are: batched fits beside the literal one-fold-at-a-time loop.

Ten seeds x five methods x twenty leave-one-task-out folds of L1-Pearson-Adam, the same without
seeds for ridge, and a QAP null of ridge. The literal loop is timed on a stated fraction of its
1,000 fits in the same run and scaled up. Without released tables (--metrics, --merges) a table of
the same size is drawn.

    python benchmarks/predict.py [--json] [--metrics FILE --merges FILE]
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from published_loop import fit_literal

from mergelib.core.store import read_table
from mergelib.pairs.correlation import score
from mergelib.pairs.tables import FINAL_METHODS, assemble
from mergelib.pairs.targets import target
from mergelib.predict.crossval import fold_seeds, held_out
from mergelib.predict.folds import scaled, scaling
from mergelib.predict.qap import qap
from mergelib.predict.splits import LeaveOneTaskOut, fold_masks
from mergelib.published.predictors import adam

SEEDS = 10


def drawn_tables(n_tasks: int = 20, n_metrics: int = 28) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables of the published size from task factors, so that metrics and targets are dyadic."""
    rng = np.random.default_rng(0)
    names = [f"T{k:02d}" for k in range(n_tasks)]
    i, j = np.array(list(combinations(range(n_tasks), 2))).T
    a, b = np.array(names)[i], np.array(names)[j]
    factors = rng.normal(size=(n_tasks, n_metrics))
    X = factors[i] + factors[j] + rng.normal(size=(len(i), n_metrics))
    metrics = pd.DataFrame(X, columns=[f"m{k:02d}" for k in range(n_metrics)])
    metrics.insert(0, "task_a", a)
    metrics.insert(1, "task_b", b)
    rows = []
    for method in FINAL_METHODS:
        effect = rng.normal(0, 0.03, n_tasks)
        y = 0.88 + effect[i] + effect[j] + 0.005 * X[:, :4].sum(1) + rng.normal(0, 0.01, len(i))
        keys = {"task_a": a, "task_b": b, "method": method}
        values = {"acc_a": y, "acc_b": y, "single_a": 0.95, "single_b": 0.95, "seed": 0}
        rows.append(pd.DataFrame(keys | values))
    return metrics, pd.concat(rows, ignore_index=True)


def best_of(function: Callable[[], object], times: int) -> float:
    """Seconds of the fastest of several calls."""
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def measure(metrics: pd.DataFrame, merges: pd.DataFrame, fraction: float, draws: int) -> dict:
    """All timings on one pair of tables."""
    pairs = assemble(metrics, merges, FINAL_METHODS)
    y = target(pairs, "raw")
    _, train, test = fold_masks(LeaveOneTaskOut(), pairs.ends)
    folds, methods = len(train), len(pairs.methods)
    seeds = np.stack([fold_seeds(s, pairs.methods, folds) for s in range(SEEDS)], axis=-1)
    problems = seeds.size
    batch = best_of(lambda: adam.fit_folds(adam.L1, pairs.X, y, train, test, seeds, 1.0), 3)

    # every step-th problem, so that the fraction runs over folds, methods and seeds
    chosen = np.arange(0, problems, max(1, round(1 / fraction)))
    begin = time.perf_counter()
    for f, m, s in zip(*np.unravel_index(chosen, seeds.shape), strict=True):
        rows = train[f]
        low, span = scaling(pairs.X, rows[None])
        X = torch.from_numpy(scaled(pairs.X, low, span)[0, rows]).float()
        start = adam.start_weights([seeds[f, m, s]], X.shape[1], adam.L1.init)[0].float()
        fit_literal(adam.L1, X, torch.from_numpy(y[rows, m]).float(), start, 1.0)
    loop = (time.perf_counter() - begin) * problems / len(chosen)

    def ridge() -> None:
        score(held_out("ridge", pairs.X, y, pairs.ends, train, test).prediction, y, test)

    begin = time.perf_counter()
    qap("ridge", pairs.X, y, pairs.ends, train, test, n=draws)
    null = time.perf_counter() - begin
    return {
        "l1_speedup": loop / batch,
        "l1_batched_seconds": batch,
        "l1_loop_seconds": loop,
        "l1_loop_fits_timed": len(chosen),
        "l1_fits": problems,
        "ridge_seconds": best_of(ridge, 5),
        "qap_seconds": null,
        "qap_relabellings": draws,
        "pairs": len(pairs),
        "methods": methods,
        "folds": folds,
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--metrics", type=Path, help="metrics table (default: a drawn one)")
    parser.add_argument("--merges", type=Path, help="merges table")
    parser.add_argument("--fraction", type=float, default=0.03, help="of the literal loop's fits")
    parser.add_argument("--qap", type=int, default=1000, help="relabellings")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    if (args.metrics is None) != (args.merges is None):
        parser.error("give both --metrics and --merges, or neither")
    if not 0 < args.fraction <= 1:
        parser.error("--fraction must be above 0 and at most 1")
    given = args.metrics is not None
    tables = (read_table(args.metrics), read_table(args.merges)) if given else drawn_tables()
    result = measure(*tables, args.fraction, args.qap)
    if args.json:
        print(json.dumps(result))
        return
    size = f"{result['pairs']} pairs, {result['methods']} methods, {result['folds']} folds"
    print(f"{size}, {result['cores']} cores, {result['torch_threads']} torch threads")
    fits = f"{result['l1_fits']:,} L1-Pearson-Adam fits"
    timed = f"({result['l1_loop_fits_timed']} fits timed, scaled up)"
    print(f"{fits}, one batch        {result['l1_batched_seconds']:9.2f} s")
    print(f"{fits}, literal loop     {result['l1_loop_seconds']:9.2f} s  {timed}")
    print(f"{'':>31}speed-up          {result['l1_speedup']:9.0f} x")
    print(f"ridge, all methods and folds                     {result['ridge_seconds']:9.4f} s")
    print(f"QAP of ridge, {result['qap_relabellings']:,} relabellings               "
          f"{result['qap_seconds']:9.2f} s")  # fmt: skip


if __name__ == "__main__":
    main()
