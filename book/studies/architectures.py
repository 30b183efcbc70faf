"""What travels between two settings that share their tasks: forecasts, metrics, coefficients.

A fit that has seen a pair's tasks on one backbone knows them on the other, so only one that
leaves both out tests the metrics.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from mergelib.pairs.correlation import pearson
from mergelib.pairs.inference import interval, permutation_p, permutations, permuted
from mergelib.pairs.tables import KEYS, Tables, assemble
from mergelib.pairs.targets import additive_fit, outcome_cube, residual
from mergelib.predict.baselines import base_knowledge
from mergelib.predict.folds import RidgeFolds, scaling
from mergelib.predict.transfer import check_alike
from studies.additive import explained
from studies.chance import beyond, holm
from studies.ranks import bootstrap_rho, qap_rho, rho


@threadpool_limits.wrap(limits=1)
def forecast_map(
    fitted_X: np.ndarray,
    fitted_ends: np.ndarray,
    X: np.ndarray,
    ends: np.ndarray,
    leave_pair: bool = True,
    alpha: float = 1.0,
    rescale: bool = True,
) -> np.ndarray:
    """The matrix (n, n_fitted) from one setting's targets to ridge forecasts of another's pairs.

    With `leave_pair` a pair's forecast comes from a fit without the fitted setting's pairs of
    either of its tasks; both `ends` number the same tasks. `rescale`: see `transfer`.
    """
    train = np.ones((1, len(fitted_ends)), dtype=bool)
    if leave_pair:
        train = ~(fitted_ends[None, :, :, None] == ends[:, None, None, :]).any(axis=(2, 3))
    if rescale:  # the other setting's range becomes the fitted one's, over all pairs of each
        (low, span), (low_to, span_to) = (
            scaling(x, np.ones((1, len(x)), dtype=bool)) for x in (fitted_X, X)
        )
        X = low + (X - low_to) / span_to * span
    model = RidgeFolds(fitted_X).fit(np.eye(len(fitted_ends)), train, alpha)
    Z = 2.0 * (X - model.low) / model.span - 1.0
    coef = np.broadcast_to(model.coef, (len(X), *model.coef.shape[1:]))
    return np.einsum("kp,kmp->km", Z, coef) + model.intercept


def accuracy_of(forecast: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """How good forecasts (n, m) of y (n, m) are, each (m,).

    r and rho; slope and intercept of the least-squares line of y on the forecast (1 and 0 where
    it is calibrated); mean_error, the mean of forecast - y; mean_absolute_error. NaN where a
    constant forecast leaves them undefined.
    """
    r = _r(forecast, y)
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = np.where(np.isnan(r), np.nan, r * y.std(axis=0) / forecast.std(axis=0))
    return {
        "r": r,
        "rho": rho(forecast.T, y.T),
        "slope": slope,
        "intercept": y.mean(axis=0) - slope * forecast.mean(axis=0),
        "mean_error": (forecast - y).mean(axis=0),
        "mean_absolute_error": np.abs(forecast - y).mean(axis=0),
    }


def travel(
    fitted: Tables,
    other: Tables,
    targets: Sequence[str] = ("raw", "normalized", "residual"),
    draws: int = 200,
    alpha: float = 1.0,
    seed: int = 0,
) -> pd.DataFrame:
    """Forecasts of one setting's merges from another's, beside what needs no metric.

    One row per target, method and model, over the other setting's complete pairs. Models:

    - metrics: ridge on the fitted setting's metrics and merges.
    - base_knowledge, single_task_accuracy: the line on that number of a pair, fitted on one
      setting and read off at the other's.
    - constant: the mean of the fitted setting's merges.
    - same_pair, task_effects: the fitted setting's outcome of the very pair, and its additive
      task effects.

    `knows` is "all pairs" of the fitted setting, or "other tasks": only its pairs without either
    task of the forecast one; model home is ridge on the other setting's own merges, so left out.
    Columns n_pairs, those of `accuracy_of`, and the QAP's p, p_holm (over methods), null_mean,
    null_95: the tasks of both settings' outcomes are renamed alike, so that all that the outcomes
    share stays. In the null a pair that was never merged takes its additive task effects.
    Raises MergelibError if the two differ in tasks, metrics or methods.
    """
    here = assemble(fitted.metrics, fitted.merges, fitted.methods)
    there = assemble(other.metrics, other.merges, other.methods)
    check_alike(here, there, "tasks", "metrics", "methods")
    maps = _maps(here, there, fitted.tasks, other.tasks, alpha)
    a, b = here.ends, there.ends
    orders = permutations(len(here.tasks), draws, seed)
    rows = []
    for target in targets:
        seen, filled = (
            [
                outcome_cube(t.merges, here.tasks, here.methods, target, fill)
                for t in (fitted, other)
            ]
            for fill in (False, True)
        )
        y_from, y = seen[0][a[:, 0], a[:, 1]], seen[1][b[:, 0], b[:, 1]]
        effects = additive_fit(y_from, a, len(here.tasks))[0]
        same = {"same_pair": filled[0][b[:, 0], b[:, 1]], "task_effects": effects[b].sum(axis=1)}
        moved = [permuted(cube, ends, orders) for cube, ends in zip(filled, (a, b), strict=True)]
        for (model, knows), hat in maps.items():
            home = model == "home"
            found = accuracy_of(hat @ (y if home else y_from), y)
            null = np.empty((draws, y.shape[1]))
            for k in range(draws):
                null[k] = _r(hat @ moved[home][k], moved[1][k])
            if draws and not np.isnan(found["r"]).any():
                tested = beyond(found["r"], null)
                found |= {"p": tested["p"], "p_holm": holm(tested["p"])}
                found |= {name: tested[name] for name in ("null_mean", "null_95")}
            rows.append(_rows(target, model, knows, here.methods, len(y), found))
        for model, forecast in same.items():
            found = accuracy_of(forecast, y)
            rows.append(_rows(target, model, "all pairs", here.methods, len(y), found))
    return pd.concat(rows, ignore_index=True)


def _rows(target, model, knows, methods, n, found) -> pd.DataFrame:
    named = {"target": target, "method": methods, "model": model, "knows": knows, "n_pairs": n}
    return pd.DataFrame(named | found)


def _r(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return pearson(a, b, np.ones((1, 1), dtype=bool), axis=0)


def _maps(here, there, tasks_here, tasks_there, alpha) -> dict[tuple[str, str], np.ndarray]:
    ends = here.ends, there.ends
    out = {}
    for knows, leave in (("all pairs", False), ("other tasks", True)):
        lines = {
            "base_knowledge": (
                base_knowledge(here, tasks_here),
                base_knowledge(there, tasks_there),
            ),
            "single_task_accuracy": (
                here.single[:, 0].mean(axis=-1),
                there.single[:, 0].mean(axis=-1),
            ),
            "constant": (np.ones(len(here)), np.ones(len(there))),
        }
        out["metrics", knows] = forecast_map(here.X, ends[0], there.X, ends[1], leave, alpha)
        for name, (x_from, x_to) in lines.items():
            strength = 1.0 if name == "constant" else 0.0
            out[name, knows] = forecast_map(
                x_from[:, None], ends[0], x_to[:, None], ends[1], leave, strength, rescale=False
            )
    out["home", "other tasks"] = forecast_map(
        there.X, ends[1], there.X, ends[1], True, alpha, rescale=False
    )
    return out


# ---- Are metrics and coefficients alike in two settings? ----------------------------------------


def metrics_alike(
    one: pd.DataFrame, two: pd.DataFrame, draws: int = 200, seed: int = 0
) -> pd.DataFrame:
    """Do two settings' metrics rank the pairs alike? One row per metric, over common pairs.

    n_pairs, `rho` (Spearman) with its 95 % task-bootstrap interval low, high and the QAP's
    null_95 and one-sided p; `rho_pair` of what additive task effects leave of both, with its own
    pair_null_95 and pair_p; additive_one, additive_two, the effects' shares of the variance.
    """
    names = [c for c in one.columns if c in two.columns and c not in KEYS]
    order = {t: k for k, t in enumerate(dict.fromkeys(one[KEYS].to_numpy().ravel()))}
    joined = one.merge(two, on=KEYS, suffixes=("_one", "_two"))
    rows = []
    for name in names:
        part = joined.dropna(subset=[f"{name}_one", f"{name}_two"])
        ends = np.stack([part[key].map(order).to_numpy() for key in KEYS], axis=1)
        x, y = (part[f"{name}_{side}"].to_numpy(np.float64) for side in ("one", "two"))
        left = residual(np.stack([x, y], axis=1), ends).T
        row = {"metric": name, "n_pairs": len(part)}
        for prefix, u, v in (("", x, y), ("pair_", *left)):
            value = float(rho(u, v))
            if np.isnan(value):  # a metric that does not vary
                continue
            row["rho_pair" if prefix else "rho"] = value
            drawn = bootstrap_rho(u, v, ends, draws, seed)
            row[f"{prefix}low"], row[f"{prefix}high"] = interval(drawn)
            null = qap_rho(u, v, ends, draws, seed)
            row[f"{prefix}null_95"] = np.nanquantile(null, 0.95)
            row[f"{prefix}p"] = float(permutation_p(value, null))
        for side, values, rest in zip(("one", "two"), (x, y), left, strict=True):
            row[f"additive_{side}"] = explained(values, rest)
        rows.append(row)
    return pd.DataFrame(rows)


@threadpool_limits.wrap(limits=1)
def coefficients_alike(
    one: Tables,
    two: Tables,
    target: str = "normalized",
    draws: int = 200,
    alpha: float = 1.0,
    seed: int = 0,
) -> pd.DataFrame:
    """Cosine of two settings' ridge coefficients per method, beside permuted tasks.

    Coefficients on metrics scaled to [-1, 1], fitted to all complete pairs. The null renames the
    tasks of both settings' outcomes alike and fits both again: outcomes stay as alike as they
    are, and the metrics, alike too, are about other tasks. Columns method, cosine, null_mean,
    null_95, p, and `outcomes`, r of the two settings' targets over common pairs.
    """
    sides = [assemble(t.metrics, t.merges, t.methods) for t in (one, two)]
    check_alike(*sides, "tasks", "metrics", "methods")
    methods, tasks = sides[0].methods, sides[0].tasks
    orders = np.vstack([np.arange(len(tasks)), permutations(len(tasks), draws, seed)])
    coef, cubes = [], []
    for tables, pairs in zip((one, two), sides, strict=True):
        cubes.append(outcome_cube(tables.merges, tasks, methods, target, fill=True))
        moved = permuted(cubes[-1], pairs.ends, orders).transpose(1, 0, 2)
        every = np.ones((1, len(pairs)), dtype=bool)
        fit = RidgeFolds(pairs.X).fit(moved.reshape(len(pairs), -1), every, alpha)
        coef.append(fit.coef[0].reshape(len(orders), len(methods), -1))
    u, v = coef
    cosine = (u * v).sum(-1) / np.sqrt((u**2).sum(-1) * (v**2).sum(-1))
    seen, null = cosine[0], cosine[1:]
    i, j = np.triu_indices(len(tasks), k=1)
    tested = beyond(seen, null)[["null_mean", "null_95", "p"]]
    outcomes = _r(cubes[0][i, j], cubes[1][i, j])
    found = pd.DataFrame({"method": methods, "cosine": seen})
    return pd.concat([found, tested], axis=1).assign(outcomes=outcomes)
