"""A forecast from all that is known before merging, against the published predictor.

Every pair is forecast without its two tasks (leave-two-tasks-out). Which features and which ridge
strength may be chosen by the same split inside each fold's training tasks.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from mergelib.core.errors import MergelibError
from mergelib.core.registry import unknown
from mergelib.core.store import write_table
from mergelib.metrics.registry import METRICS
from mergelib.pairs.correlation import pearson
from mergelib.pairs.covariates import with_task_covariates
from mergelib.pairs.inference import bootstrap_r, interval
from mergelib.pairs.tables import Pairs, Tables
from mergelib.predict import baselines
from mergelib.predict.crossval import fold_seeds
from mergelib.predict.folds import Linear, scaled, scaling
from mergelib.predict.splits import fold_masks, splitter
from mergelib.published.predictors import adam
from mergelib.published.released import SETTINGS, read_setting
from studies.chance import NULL, beyond, targets_of, with_mean
from studies.inputs import pairs_of
from studies.quick_qap import held_out_map

STRENGTHS = (0.1, 1.0, 10.0, 100.0)
EVERYTHING = "metrics + known"  # of `feature_sets`: nothing that is known is left out
DEFAULT = 1.0  # ridge's strength throughout the library
PAPER, NESTED = "paper-l1", "ridge, chosen by nesting"
AT_ONCE = 200  # blocks of left-out tasks solved together
PERMUTED_AT_ONCE = 20


def feature_sets(pairs: Pairs, tasks: pd.DataFrame) -> tuple[Pairs, dict[str, list[int]]]:
    """The pairs with `with_task_covariates`, and named sets of their columns.

    base knowledge: the mean of zero-shot / fine-tuned accuracy; known: all ten covariates; metrics;
    independent metrics: those that no formula derives from others; and unions of these.
    Raises MergelibError as `with_task_covariates` does.
    """
    every = with_task_covariates(pairs, tasks)
    place = {name: k for k, name in enumerate(every.metrics)}
    metrics = list(range(len(pairs.metrics)))
    known = list(range(len(metrics), len(place)))
    derived = {row.name for row in METRICS.rows() if row.duplicates}
    independent = [k for k in metrics if every.metrics[k] not in derived]
    base = [place["mean:base_knowledge"]]
    return every, {
        "base knowledge": base,
        "known": known,
        "metrics": metrics,
        "independent metrics": independent,
        "metrics + base knowledge": metrics + base,
        EVERYTHING: metrics + known,
        "independent + known": independent + known,
    }


@dataclass(frozen=True)
class Grid:
    """Ridge candidates: feature sets by strengths, on columns of X (n, p) for pairs ends (n, 2)."""

    X: np.ndarray
    ends: np.ndarray
    sets: Mapping[str, Sequence[int]]
    strengths: Sequence[float] = STRENGTHS

    @property
    def names(self) -> list[tuple[str, float]]:
        """(features, strength) of every candidate, in order."""
        return [(name, alpha) for name in self.sets for alpha in self.strengths]

    def forecasts(
        self, y: np.ndarray, blocks: np.ndarray, ask: np.ndarray
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """Forecasts without blocks of tasks: slices of the B blocks with (b, q, C, K) each.

        For targets y (n, K): every candidate is fitted to the pairs that hold none of the tasks in
        a block (B, t), metrics scaled to [-1, 1] on them, intercept unpenalized, and forecasts the
        pairs numbered ask (B, q).
        """
        n, p = self.X.shape
        Z = scaled(self.X, *scaling(self.X, np.ones((1, n), dtype=bool)))[0]
        products = (Z[:, :, None] * Z[:, None, :]).reshape(n, -1)
        with_y = (Z[:, :, None] * y[:, None, :]).reshape(n, -1)
        has = (self.ends[:, :, None] == np.arange(self.ends.max() + 1)).any(axis=1)
        for start in range(0, len(blocks), AT_ONCE):
            part = slice(start, min(start + AT_ONCE, len(blocks)))
            train = ~has[:, blocks[part]].any(axis=2).T
            rows, count = train.astype(np.float64), train.sum(axis=1)[:, None]
            low, span = scaling(Z, train)
            factor = 2.0 / span
            mean_z, mean_y = rows @ Z / count, rows @ y / count
            gram = (rows @ products).reshape(-1, p, p)
            gram -= count[..., None] * mean_z[:, :, None] * mean_z[:, None, :]
            gram *= factor[:, :, None] * factor[:, None, :]
            cross = (rows @ with_y).reshape(len(rows), p, -1)
            cross -= count[..., None] * mean_z[:, :, None] * mean_y[:, None, :]
            cross *= factor[:, :, None]
            away = (Z[ask[part]] - mean_z[:, None]) * factor[:, None]
            found = []
            for columns in self.sets.values():
                inner, right = gram[:, columns][:, :, columns], cross[:, columns]
                for alpha in self.strengths:
                    coef = np.linalg.solve(inner + alpha * np.eye(len(columns)), right)
                    found.append(mean_y[:, None] + away[:, :, columns] @ coef)
            yield part, np.stack(found, axis=2)

    @threadpool_limits.wrap(limits=1)
    def left_out(self, y: np.ndarray) -> np.ndarray:
        """Leave-two-tasks-out forecasts (n, C, K) of targets y (n, K)."""
        n = len(self.ends)
        parts = [found[:, 0] for _, found in self.forecasts(y, self.ends, np.arange(n)[:, None])]
        return np.concatenate(parts)

    @threadpool_limits.wrap(limits=1)
    def inner(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What each fold can know of the candidates: r and mean squared error, (n, C, K) each.

        For the pair (a, b) the pooled r and the error of leave-two-tasks-out forecasts of targets
        y (n, K) among the pairs without a and b: fits that leave out {a, b, c, d} forecast (c, d).
        A fit serves the six pairs inside a block of four tasks.
        """
        place = {tuple(sorted(pair)): k for k, pair in enumerate(self.ends.tolist())}
        blocks = np.array(list(combinations(np.unique(self.ends).tolist(), 4)))
        ask = np.array(
            [[place.get(pair, -1) for pair in combinations(b, 2)] for b in blocks.tolist()]
        )
        y = y - y.mean(axis=0)
        n, c, k = len(self.ends), len(self.names), y.shape[1]
        sums = [np.zeros((n, c, k)) for _ in range(3)]
        plain = [np.zeros((n, 1, k)) for _ in range(3)]
        for part, found in self.forecasts(y, blocks, ask):
            for q in range(6):
                outer, inner = ask[part, q], ask[part, 5 - q]  # the block's other two tasks
                both = np.flatnonzero((outer >= 0) & (inner >= 0))
                both = both[np.argsort(outer[both], kind="stable")]
                to, first = np.unique(outer[both], return_index=True)
                if not len(to):
                    continue
                f, t = found[both, 5 - q], y[inner[both]][:, None]
                for total, values in zip(sums, (f, f * f, f * t), strict=True):
                    total[to] += np.add.reduceat(values, first, axis=0)
                for total, values in zip(plain, (np.ones_like(t), t, t * t), strict=True):
                    total[to] += np.add.reduceat(values, first, axis=0)
        count, st, stt = plain
        sf, sff, sft = sums
        with np.errstate(invalid="ignore", divide="ignore"):
            r = (sft - sf * st / count) / np.sqrt((sff - sf**2 / count) * (stt - st**2 / count))
            return r, (sff - 2 * sft + stt) / count


def nested(grid: Grid, y: np.ndarray, methods: int, by: str = "r") -> tuple[np.ndarray, np.ndarray]:
    """Forecasts (n, K) by each fold's best inner candidate, and its number (n, N).

    y (n, K) holds N repetitions (permutations) of `methods` targets, K = N x methods. The methods
    share one candidate: of the highest mean inner r, or with `by` "error" of the least mean inner
    squared error in units of the target's variance (see `Grid.inner`).
    Raises MergelibError for another `by`.
    """
    if by not in ("r", "error"):
        raise MergelibError(unknown("criterion", by, ("r", "error")))
    n, k = y.shape
    r, error = grid.inner(y)
    good = np.nan_to_num(r, nan=-2.0) if by == "r" else -error / y.var(axis=0)
    choice = good.reshape(n, -1, k // methods, methods).mean(axis=-1).argmax(axis=1)
    forecast = grid.left_out(y).reshape(n, -1, k // methods, methods)
    taken = np.take_along_axis(forecast, choice[:, None, :, None], axis=1)[:, 0]
    return taken.reshape(n, k), choice


def columns_r(forecast: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson r of each column of forecasts (n, ...) with y (n, ...)."""
    return pearson(forecast, y, np.ones((1,) * forecast.ndim, dtype=bool), axis=0)


def training_means(y: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Mean of y (n, m) over the pairs without either task of each pair, (n, m)."""
    _, train, _ = fold_masks(splitter("l2to"), ends)
    return train @ y / train.sum(axis=1, keepdims=True)


def candidate_table(tables: Tables, target: str = "normalized") -> pd.DataFrame:
    """Every candidate's leave-two-tasks-out r: features, n_features, strength, methods, mean.

    `less_mean`: the mean over methods of the r of forecast minus the fold's training mean. That
    mean is low when the left-out pair is good, which pulls every pooled r down the more the fit is
    shrunk towards it; a user of one forecaster has one such mean.
    """
    pairs = pairs_of(tables)
    every, sets = feature_sets(pairs, tables.tasks)
    grid = Grid(every.X, pairs.ends, sets)
    y, _ = targets_of(tables, pairs, (target,))
    forecast = grid.left_out(y)
    repeated = np.broadcast_to(y[:, None], forecast.shape)
    table = pd.DataFrame(with_mean(columns_r(forecast, repeated)), columns=[*pairs.methods, "mean"])
    less = forecast - training_means(y, pairs.ends)[:, None]
    table["less_mean"] = columns_r(less, repeated).mean(axis=-1)
    table.insert(0, "features", [name for name, _ in grid.names])
    table.insert(1, "n_features", [len(sets[name]) for name, _ in grid.names])
    table.insert(2, "strength", [alpha for _, alpha in grid.names])
    return table


def chosen_elsewhere(one: pd.DataFrame, other: pd.DataFrame) -> pd.Series:
    """The row of `other` for the candidate with the highest mean r in `one` (`candidate_table`)."""
    return other.loc[one["mean"].idxmax()]


def paper_forecasts(
    pairs: Pairs, y: np.ndarray, starts: int = 10, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Leave-two-tasks-out forecasts of paper-l1 from `starts` random starts, (n, m, S), twice.

    As published, each fold on a scale of its own; and on a common scale: minus the mean and divided
    by the standard deviation of the fold's forecasts of its training pairs.
    """
    _, train, test = fold_masks(splitter("l2to"), pairs.ends)
    seeds = [fold_seeds(seed + k, pairs.methods, len(train)) for k in range(starts)]
    fit = adam.fit_folds(adam.L1, pairs.X, y, train, test, np.stack(seeds, axis=2), adam.L1.l1)
    flat = (len(train), -1)
    model = Linear(
        fit.low, fit.span, fit.coef.reshape(*flat, pairs.X.shape[1]), fit.intercept.reshape(flat)
    )
    every = model.predict(pairs.X)
    rows = train / train.sum(axis=1, keepdims=True)
    mean = np.einsum("fn,fnk->fk", rows, every)
    spread = np.sqrt(np.maximum(np.einsum("fn,fnk->fk", rows, every**2) - mean**2, 0.0))
    plain = every[test]  # one test pair per fold, in the order of the pairs
    with np.errstate(invalid="ignore", divide="ignore"):  # all weights may be cut to 0
        common = np.where(spread > 0, (plain - mean) / spread, 0.0)
    shape = (len(pairs), y.shape[1], starts)
    return plain.reshape(shape), common.reshape(shape)


def mean_r_draws(
    forecast: np.ndarray, y: np.ndarray, ends: np.ndarray, draws: int = 1000, seed: int = 0
) -> np.ndarray:
    """Pooled r of forecasts (n, m, S) averaged over m and S in each task bootstrap, (draws,)."""
    with np.errstate(invalid="ignore"):  # a draw of one task alone has no pair
        each = [
            bootstrap_r(forecast[:, k, s], y[:, k], ends, draws, seed)
            for k in range(forecast.shape[1])
            for s in range(forecast.shape[2])
        ]
    return np.mean(each, axis=0)


def forecast_table(
    tables: Tables,
    target: str = "normalized",
    relabel: int = 1000,
    starts: int = 0,
    draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Leave-two-tasks-out forecasts, one row each, beside the published predictor's if `starts`.

    `forecast` names it; pooled r by method and their mean; p, null_mean, null_95 of that mean under
    `relabel` QAP permutations, for the fixed linear forecasts (for the one chosen by nesting see
    `nested_table`). With `starts` random starts of paper-l1 (3 at most on all features): start_sd,
    and the difference to its mean r with its 95 % task-bootstrap interval low, high (the fits as
    they are, tasks drawn again).
    """
    pairs = pairs_of(tables)
    every, sets = feature_sets(pairs, tables.tasks)
    y, moved = targets_of(tables, pairs, (target,), relabel, seed)
    _, train, test = fold_masks(splitter("l2to"), pairs.ends)
    fixed = {"ridge on the metrics": "metrics", f"ridge on {EVERYTHING}": EVERYTHING}
    with threadpool_limits(limits=1):
        maps = {
            label: held_out_map("ridge", every.X[:, sets[name]], train, test, DEFAULT)
            for label, name in fixed.items()
        }
    line = baselines.line(baselines.base_knowledge(pairs, tables.tasks), y, train)[test]
    grid = Grid(every.X, pairs.ends, sets)
    made = {
        "constant": training_means(y, pairs.ends)[..., None],
        "line on base knowledge": line[..., None],
        **{label: (hat @ y)[..., None] for label, hat in maps.items()},
        NESTED: nested(grid, y, y.shape[1])[0][..., None],
        f"{NESTED}, least error": nested(grid, y, y.shape[1], "error")[0][..., None],
    }
    if starts:
        plain, common = paper_forecasts(pairs, y, starts, seed)
        made = {
            PAPER: plain,
            f"{PAPER}, folds on a common scale": common,
            f"{PAPER} on {EVERYTHING}": paper_forecasts(every, y, min(starts, 3), seed)[0],
            **made,
        }
    stacked = moved.transpose(1, 0, 2).reshape(len(pairs), -1)
    rows = []
    for name, forecast in made.items():
        each = columns_r(forecast, np.broadcast_to(y[..., None], forecast.shape))
        r = each.mean(axis=1)
        row = {"forecast": name, **dict(zip(pairs.methods, r, strict=True)), "mean": r.mean()}
        if name in maps:
            null = (
                columns_r(maps[name] @ stacked, stacked).reshape(relabel, y.shape[1]).mean(axis=1)
            )
            row |= beyond(np.array([r.mean()]), null[:, None]).iloc[0].to_dict()
        if starts:
            several = forecast.shape[2] > 1  # random starts
            row["start_sd"] = each.mean(axis=0).std(ddof=1) if several else np.nan
            drawn = mean_r_draws(forecast, y, pairs.ends, draws, seed)
            if name == PAPER:
                first, start = drawn, r.mean()
            else:
                low, high = interval(drawn - first)
                row |= {"difference": r.mean() - start, "low": low, "high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def nested_table(
    tables: Tables, target: str = "normalized", relabel: int = 100, seed: int = 0
) -> pd.DataFrame:
    """The forecast chosen by nesting with its QAP null, the choice made anew in every permutation.

    method (then "mean"), r, p, null_mean, null_95; `chosen`: the candidate that most folds take and
    the `share` of folds that do.
    """
    pairs = pairs_of(tables)
    every, sets = feature_sets(pairs, tables.tasks)
    grid = Grid(every.X, pairs.ends, sets)
    y, moved = targets_of(tables, pairs, (target,), relabel, seed)
    m = y.shape[1]
    forecast, choice = nested(grid, y, m)
    null = [np.empty((0, m))]
    for start in range(0, relabel, PERMUTED_AT_ONCE):
        part = moved[start : start + PERMUTED_AT_ONCE].transpose(1, 0, 2).reshape(len(pairs), -1)
        null.append(columns_r(nested(grid, part, m)[0], part).reshape(-1, m))
    seen = with_mean(columns_r(forecast, y))
    table = beyond(seen, with_mean(np.concatenate(null)))
    table.insert(0, "method", [*pairs.methods, "mean"])
    table.insert(1, "r", seen)
    numbers, count = np.unique(choice, return_counts=True)
    name, alpha = grid.names[numbers[count.argmax()]]
    return table.assign(chosen=f"{name}, {alpha:g}", share=count.max() / count.sum())


def freeze(
    released: str | Path, to: str | Path, relabel: int = 100, starts: int = 10, draws: int = 1000
) -> None:
    """Write `forecast_table` with `starts` of the two released backbones to the CSV file `to`.

    The row of the forecast chosen by nesting takes its null from `nested_table` with `relabel`
    permutations. The setting that has no merges of its own is left out. Some ten minutes on one
    core, so the chapter reads this table.
    """
    parts = []
    for setting in SETTINGS:
        if setting.endswith("SGD"):
            continue
        tables = read_setting(Path(released), setting)
        part = forecast_table(tables, starts=starts, draws=draws)
        null = nested_table(tables, relabel=relabel).iloc[-1]
        part.loc[part["forecast"] == NESTED, list(NULL)] = null[list(NULL)].to_numpy(float)
        part.insert(0, "setting", setting)
        parts.append(part)
    write_table(Path(to), pd.concat(parts, ignore_index=True))
