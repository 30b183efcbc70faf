"""Our own fits of every published run over several seeds, frozen into one small table.

    cd book && python -m studies.reproduction.own --from RELEASED --to tables/published/own_fits.csv

Greedy searches and the network take most of its quarter of an hour on a free core; the searches are
therefore repeated for one setting, with few seeds.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mergelib.core.errors import MergelibError
from mergelib.core.store import write_table
from mergelib.pairs.correlation import score
from mergelib.predict.agreement import agreement
from mergelib.predict.crossval import fold_seeds, held_out
from mergelib.predict.folds import Linear, scaled, scaling
from mergelib.published import released
from mergelib.published.predictors import adam
from studies.reproduction.folds import read_released
from studies.reproduction.runs import RUNS, Data, Problem, Run, problem, read_all

KEYS = ["version", "setting", "run", "method", "quantity", "item"]
GREEDY = ("paper-forward", "paper-backward")
# the runs whose methods' coefficients are compared with each other
COMPARED = ("l1", "no penalty", "dense")
LEADING = "encoder_gradient_l2_distance"


def fit_seeds(
    run: Run,
    data: Data,
    seeds: Sequence[int],
    methods: Sequence[str] | None = None,
) -> pd.DataFrame:
    """One run fitted anew with each seed, all its methods or some: KEYS, seed, value.

    Quantities: r_fold_mean, r_concatenated, n_metrics (mean over folds of those with a weight),
    coefficient of the encoder-gradient distance, and over all methods the top-5 overlap and the
    sign agreement in percent.
    """
    at = problem(run, data)
    methods = tuple(methods or run.methods)
    y = at.y[:, [run.methods.index(m) for m in methods]]
    rows: list[dict] = []
    for seed, (prediction, coef) in zip(
        seeds, _fits(run, at, y, methods, seeds, data.source), strict=True
    ):
        found = score(prediction, y, at.test)
        for k, method in enumerate(methods):
            values = {
                "r_fold_mean": found.r_fold_mean[k],
                "r_concatenated": found.r_concatenated[k],
            }
            if coef is not None:
                values["n_metrics"] = (coef[:, k] != 0).sum(axis=-1).mean()
                if LEADING in at.pairs.metrics:
                    place = at.pairs.metrics.index(LEADING)
                    values["coefficient"] = coef[:, k, place].mean()
            rows += _rows(run, method, seed, values)
        if run.name in COMPARED and len(methods) > 1:
            rows += _rows(run, "all", seed, agreement_percent(coef, at.pairs.metrics, methods))
    frame = pd.DataFrame(rows)
    return frame[frame["value"].notna()].reset_index(drop=True)


def _rows(run: Run, method: str, seed: int, values: Mapping[str, float]) -> list[dict]:
    item = {"coefficient": LEADING}
    return [
        {
            "version": run.version,
            "setting": run.setting,
            "run": run.name,
            "method": method,
            "quantity": name,
            "item": item.get(name, ""),
            "seed": seed,
            "value": float(value),
        }
        for name, value in values.items()
    ]


def agreement_percent(
    coef: np.ndarray, metrics: Sequence[str], methods: Sequence[str]
) -> dict[str, float]:
    """Top-5 overlap and sign agreement, in percent, of coefficients (F, m, p) averaged over F.

    Over the 28 metrics, as published, even where the 29th was fitted too.
    """
    kept = [k for k, name in enumerate(metrics) if name != released.HISTORIC]
    names = [metrics[k] for k in kept]
    mean = coef.mean(axis=0)[:, kept].tolist()
    fits = {m: dict(zip(names, row, strict=True)) for m, row in zip(methods, mean, strict=True)}
    found = agreement(fits)
    return {name: 100 * found[name] for name in ("top5_overlap", "sign_agreement")}


def _fits(
    run: Run, at: Problem, y: np.ndarray, methods: Sequence[str], seeds: Sequence[int], source: Path
):
    """Prediction (F, n, m) and coefficients (F, m, p), None for the network, of each seed."""
    each = [fold_seeds(seed, methods, len(at.train)) for seed in seeds]
    if run.one_start:
        each = [np.full_like(drawn, seed) for seed, drawn in zip(seeds, each, strict=True)]
    data = (at.pairs.X, y)
    if run.predictor in adam.RECIPES:  # all seeds in one batch
        recipe, starts = adam.RECIPES[run.predictor], np.stack(each, -1)
        fit = adam.fit_folds(recipe, *data, at.train, at.test, starts, run.alpha or 0.0)
        for s in range(len(each)):
            one = Linear(fit.low, fit.span, fit.coef[:, :, s], fit.intercept[:, :, s])
            yield one.predict(at.pairs.X), one.coef
        return
    if run.predictor in GREEDY and run.folder:
        yield from _refits(run, at, y, methods, each, source)
        return
    for drawn in each:
        fit = held_out(run.predictor, *data, at.pairs.ends, at.train, at.test, None, drawn)
        yield fit.prediction, fit.coef


def _refits(run: Run, at: Problem, y: np.ndarray, methods: Sequence[str], each, source: Path):
    """Dense fits on the sets of metrics that a released selection kept, all of a size at once.

    The released selections choose by the best of many random starts, then fit the chosen set once
    more from a new one: their final training r falls below that of their last round.
    """
    columns = [run.methods.index(m) for m in methods]
    kept = read_released(run, at, source).coef[:, columns] != 0
    low, span = scaling(at.pairs.X, at.train)
    data = adam.moments(scaled(at.pairs.X, low, span), y, at.train, center=True)
    places = np.argwhere(np.ones((len(each), *kept.shape[:2]), dtype=bool))
    sizes = kept.sum(axis=-1)[places[:, 1], places[:, 2]]
    coef = np.zeros((len(each), *kept.shape))
    for size in np.unique(sizes):
        s, f, k = places[sizes == size].T
        chosen = np.array([np.flatnonzero(kept[a, b]) for a, b in zip(f, k, strict=True)])
        start = adam.start_weights(
            [each[a][b, c] for a, b, c in zip(s, f, k, strict=True)], size, 1
        )
        at_f, at_k, which = (torch.from_numpy(i) for i in (f, k, chosen))
        part = adam.Moments(
            data.xx[at_f[:, None, None], which[:, :, None], which[:, None, :]],
            data.xy[at_f[:, None], at_k[:, None], which][:, None],
            data.yy[at_f, at_k][:, None],
            data.n[at_f],
        )
        weights, _ = adam.fit(adam.DENSE, part, start[:, None])
        coef[s[:, None], f[:, None], k[:, None], chosen] = weights[:, 0].numpy()
    for one in coef:
        yield Linear(low, span, one, np.zeros(one.shape[:2])).predict(at.pairs.X), one


def difference_of(some: pd.DataFrame, frozen: pd.DataFrame) -> float:
    """The largest distance of fits made here from the frozen ones of the same seeds."""
    both = some.merge(frozen, on=[*KEYS, "seed"], validate="1:1")
    if len(both) != len(some):
        raise MergelibError("the frozen table lacks some of these fits: write it again")
    return float((both["value_x"] - both["value_y"]).abs().max())


def fit_all(source: Path, seeds: int = 10, greedy_seeds: int = 3) -> pd.DataFrame:
    """`fit_seeds` of all RUNS, values to 6 decimals; progress goes to stderr."""
    data = read_all(source)
    parts = []
    for run in RUNS:
        start = time.perf_counter()
        searched = run.predictor in GREEDY and not run.folder
        count = greedy_seeds if searched else seeds
        parts.append(fit_seeds(run, data, range(count)))
        spent = time.perf_counter() - start
        print(f"{run.version} {run.setting} {run.name}: {spent:.0f} s", file=sys.stderr, flush=True)
    frame = pd.concat(parts, ignore_index=True)
    return frame.assign(value=frame["value"].round(6))


def main(words: Sequence[str] | None = None) -> None:
    """The command of the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="source", type=Path, required=True)
    parser.add_argument("--to", dest="target", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--greedy-seeds", type=int, default=3)
    args = parser.parse_args(words)
    write_table(args.target, fit_all(args.source, args.seeds, args.greedy_seeds))


if __name__ == "__main__":
    main()
