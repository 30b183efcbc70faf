"""How many calibration images a metric needs: agreement between sizes, with outcomes, forecasts.

A table of sizes has the columns size, task_a, task_b and one per metric (`calibration_tables`).
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from threadpoolctl import threadpool_limits

from mergelib.core.errors import MergelibError
from mergelib.metrics.registry import METRICS
from mergelib.pairs.correlation import headline, pearson
from mergelib.pairs.inference import interval, permutation_p, permutations, permuted
from mergelib.pairs.tables import KEYS
from mergelib.pairs.targets import outcome_cube, residual
from mergelib.predict.splits import fold_masks, splitter
from studies.additive import explained
from studies.calibration_tables import DATA_DRIVEN
from studies.chance import beyond
from studies.quick_qap import held_out_map
from studies.ranks import bootstrap_rho, rho

GRADIENT_BATCH = 8  # images per backward pass in the published code
WEIGHTS = ("task_vector", "effective_rank", "subspace")  # categories that no image enters


def published_scale(size: int, batch: int = GRADIENT_BATCH) -> float:
    """Factor on the mean gradient that the published code returns for `size` images.

    It sums the mean gradients of ⌈n / batch⌉ batches and divides by n images: ⌈n / batch⌉ / n,
    which falls from 1 / 2 at two images to 1 / 8.
    """
    return -(-size // batch) / size


# ---- Spearman's rho between pair tables, and what it is made of ---------------------------------


def _ends(table: pd.DataFrame, tasks: Sequence[str]) -> np.ndarray:
    place = {task: k for k, task in enumerate(tasks)}
    return np.stack([table[key].map(place).to_numpy(np.intp) for key in KEYS], axis=1)


def task_names(table: pd.DataFrame) -> list[str]:
    """The tasks of a pair table in order of appearance."""
    return list(dict.fromkeys(table[KEYS].to_numpy().ravel()))


def settle(
    table: pd.DataFrame,
    reference: pd.DataFrame,
    metrics: Sequence[str] = DATA_DRIVEN,
    draws: int = 500,
    seed: int = 0,
) -> pd.DataFrame:
    """Does a metric at some size rank the pairs as the reference does?

    One row per metric and size, over the pairs that both have: n_pairs, `rho` (Spearman) with its
    95 % task-bootstrap interval low, high; `rho_pair`, Spearman's rho of what additive task
    effects leave of both, with pair_low, pair_high; `additive`, the effects' share of the
    variance at that size. `reference` has one row per pair.
    """
    tasks = task_names(table)
    rows = []
    for metric in metrics:
        for size, part in table.groupby("size", sort=True):
            joined = part.merge(reference, on=KEYS, suffixes=("", "_reference"))
            joined = joined.dropna(subset=[metric, f"{metric}_reference"])
            ends = _ends(joined, tasks)
            x, y = (joined[c].to_numpy(np.float64) for c in (metric, f"{metric}_reference"))
            own = residual(np.stack([x, y], axis=1), ends)
            row = {"metric": metric, "size": size, "n_pairs": len(x), "rho": float(rho(x, y))}
            row["low"], row["high"] = interval(bootstrap_rho(x, y, ends, draws, seed))
            row["rho_pair"] = float(rho(own[:, 0], own[:, 1]))
            drawn = bootstrap_rho(own[:, 0], own[:, 1], ends, draws, seed)
            row["pair_low"], row["pair_high"] = interval(drawn)
            row["additive"] = explained(x, own[:, 0])
            rows.append(row)
    return pd.DataFrame(rows)


def settle_designs(table: pd.DataFrame, draws: int = 500, seed: int = 0) -> pd.DataFrame:
    """`settle` for every design of a table of `calibration_pools`: columns heads, images, then its.

    Each size of one half of the calibration images against the largest size of the other half,
    so that the two share tasks and models and no image.
    """
    parts = []
    for (heads, images), part in table.groupby(["heads", "images"], sort=False):
        first, second = (part[part["draw"] == k] for k in (0, 1))
        reference = second[second["size"] == table["size"].max()].drop(columns="size")
        metrics = [c for c in DATA_DRIVEN if part[c].notna().any()]
        found = settle(first, reference, metrics, draws, seed)
        found.insert(0, "heads", heads)
        found.insert(1, "images", images)
        parts.append(found)
    return pd.concat(parts, ignore_index=True)


def one_design(table: pd.DataFrame, heads: str, images: str, draw: int = 0) -> pd.DataFrame:
    """A table of sizes, all ten metrics, from one design and half of `calibration_pools`' table.

    The activation metrics, which know no head, are those of the shared pool in every design.
    Raises MergelibError if there is no such design.
    """
    part = table[table["draw"] == draw].set_index(["size", *KEYS])
    gradient = part[(part["heads"] == heads) & (part["images"] == images)]
    activation = part[(part["heads"] == "real") & (part["images"] == "shared")]
    if not len(gradient) or not len(activation):
        raise MergelibError(f"the table holds no {heads} heads with {images} images, half {draw}")
    columns = [(activation if _is(name, "activation") else gradient)[name] for name in DATA_DRIVEN]
    return pd.concat(columns, axis=1).reset_index()


def scale(table: pd.DataFrame, metric: str = "encoder_gradient_l2_distance") -> pd.DataFrame:
    """Median of a metric by size, the published factor, and the median without it. Index size."""
    median = table.groupby("size")[metric].median()
    factor = pd.Series({size: published_scale(size) for size in median.index})
    return pd.DataFrame({"median": median, "factor": factor, "without": median / factor})


def with_outcomes(
    table: pd.DataFrame,
    merges: pd.DataFrame,
    methods: Sequence[str],
    metrics: Sequence[str] = DATA_DRIVEN,
    target: str = "raw",
    draws: int = 500,
    seed: int = 0,
) -> pd.DataFrame:
    """Spearman's rho of every metric, size and method with the merge outcomes, beside a QAP null.

    Over the pairs that have metric and outcome: n_pairs, `rho`, `null_95` (95 % point of |rho|
    with the tasks of the outcomes renamed) and the two-sided p. In the null a pair that was never
    merged takes its additive task effects.
    """
    tasks = task_names(table)
    seen = outcome_cube(merges, tasks, methods, target)
    drawn_from = outcome_cube(merges, tasks, methods, target, fill=True)
    orders = permutations(len(tasks), draws, seed)
    every = np.ones((1, 1, 1), dtype=bool)
    rows = []
    for size, part in table.groupby("size", sort=True):
        ends = _ends(part, tasks)
        y = seen[ends[:, 0], ends[:, 1]]
        moved = permuted(drawn_from, ends, orders)
        X = part[list(metrics)].to_numpy(np.float64)
        for k, method in enumerate(methods):
            inside = ~np.isnan(X) & ~np.isnan(y[:, k : k + 1])
            for kept in np.unique(inside, axis=1).T:  # metrics that lack the same pairs
                these = (inside == kept[:, None]).all(axis=0)
                x = X[kept][:, these].T
                seen_rho = rho(x, y[kept, k])
                a, b = rankdata(x, axis=1), rankdata(moved[:, kept, k], axis=1)
                null = np.abs(pearson(a[:, None], b[None], every, axis=2))
                p = permutation_p(np.abs(seen_rho), null.T)
                for j, name in enumerate(np.asarray(metrics)[these]):
                    rows.append(
                        {
                            "metric": name,
                            "size": size,
                            "method": method,
                            "n_pairs": int(kept.sum()),
                            "rho": seen_rho[j],
                            "null_95": np.quantile(null[j], 0.95) if draws else np.nan,
                            "p": p[j],
                        }
                    )
    place = {name: k for k, name in enumerate(metrics)}
    found = pd.DataFrame(rows)
    return found.sort_values("metric", key=lambda c: c.map(place), kind="stable", ignore_index=True)


# ---- Forecasts --------------------------------------------------------------------------------


def _is(metric: str, category: str) -> bool:
    return METRICS[metric].category == category


@threadpool_limits.wrap(limits=1)
def forecasts(
    table: pd.DataFrame,
    weights: pd.DataFrame,
    merges: pd.DataFrame,
    methods: Sequence[str],
    targets: Sequence[str] = ("normalized",),
    splits: Sequence[str] = ("loto", "l2to"),
    sets: Sequence[str] = ("data-driven", "both"),
    draws: int = 200,
    alpha: float = 1.0,
    seed: int = 0,
) -> pd.DataFrame:
    """Ridge forecasts from the data-driven metrics of each size, and with the weight metrics.

    All rows are over the same pairs, those that have every metric at every size and all methods.
    Columns target, split, features ("weights", then `sets` of "activation", "gradient",
    "data-driven", "both"), size (0 for weights alone), method, n_pairs, r (mean over folds for
    loto, over pairs for l2to), null_mean, null_95 and p of the QAP, one-sided. Of the table
    `weights` the weight metrics enter. In the null a pair that was never merged takes its additive
    task effects.
    """
    tasks = task_names(table)
    data = [c for c in table.columns if c in DATA_DRIVEN]
    fixed = [c for c in weights.columns if c in METRICS and METRICS[c].category in WEIGHTS]
    sizes = sorted(table["size"].unique())
    wide = table.pivot(index=KEYS, columns="size", values=data).dropna()
    known = weights.set_index(KEYS)[fixed].dropna()
    rows = wide.index.intersection(known.index, sort=False)
    ends = _ends(rows.to_frame(index=False), tasks)
    cube = outcome_cube(merges, tasks, methods, "raw")
    kept = ~np.isnan(cube[ends[:, 0], ends[:, 1]]).any(axis=1)
    rows, ends = rows[kept], ends[kept]
    if len(rows) < 3:
        raise MergelibError(
            f"{len(rows)} pairs have every metric at every size and all methods: give fewer sizes"
        )
    orders = np.vstack([np.arange(len(tasks)), permutations(len(tasks), draws, seed)])
    stacked = {}  # the observed outcomes first, then the permuted ones, method by method
    for target in targets:
        filled = outcome_cube(merges, tasks, methods, target, fill=True)
        moved = permuted(filled, ends, orders)
        stacked[target] = moved.transpose(1, 0, 2).reshape(len(ends), -1)
    still = known.loc[rows].to_numpy(np.float64)
    features = {("weights", 0): still}
    for size in sizes:
        parts = {
            name: wide.loc[rows, [(c, size) for c in data if _is(c, name)]].to_numpy(np.float64)
            for name in ("activation", "gradient")
        }
        x = np.column_stack(list(parts.values()))
        known_here = parts | {"data-driven": x, "both": np.column_stack([x, still])}
        features |= {(name, size): known_here[name] for name in sets}
    found = []
    for split in splits:
        _, train, test = fold_masks(splitter(split), ends)
        for (name, size), X in features.items():
            hat = held_out_map("ridge", X, train, test, alpha)
            for target, y in stacked.items():
                r = headline(hat @ y, y, test).reshape(len(orders), -1)
                seen, null = r[0], r[1:]
                row = {"target": target, "split": split, "features": name, "size": size}
                row |= {"method": list(methods), "n_pairs": len(rows), "r": seen}
                tested = beyond(seen, null)[["null_mean", "null_95", "p"]]
                found.append(pd.concat([pd.DataFrame(row), tested], axis=1))
    found = pd.concat(found, ignore_index=True)
    place = {target: k for k, target in enumerate(targets)}
    return found.sort_values("target", key=lambda c: c.map(place), kind="stable", ignore_index=True)


def summarize_forecasts(found: pd.DataFrame) -> pd.DataFrame:
    """`forecasts` averaged over methods: r, null_mean, null_95; `beyond`, methods with p < 0.05."""
    keys = ["target", "split", "features", "size"]
    groups = found.assign(beyond=found["p"] < 0.05).groupby(keys, sort=False)
    means = groups[["r", "null_mean", "null_95"]].mean()
    return means.assign(beyond=groups["beyond"].sum()).reset_index()
