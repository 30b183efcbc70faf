"""One question asked of the tables: which predictor, target and split; one record as answer."""

import math
from typing import Any

import numpy as np
import pandas as pd

from mergelib.core.errors import MergelibError
from mergelib.pairs import inference
from mergelib.pairs.correlation import mean_defined, pooled, score, spearman_folds
from mergelib.pairs.covariates import with_task_covariates
from mergelib.pairs.tables import Pairs, assemble
from mergelib.pairs.targets import target as target_of
from mergelib.predict import baselines
from mergelib.predict import qap as qap_module
from mergelib.predict.collinear import collinear_groups
from mergelib.predict.crossval import fold_seeds, held_out
from mergelib.predict.qap import STATISTICS
from mergelib.predict.splits import SPLITS, fold_masks, splitter
from mergelib.predict.transfer import transfer


def evaluate(
    metrics: pd.DataFrame,
    merges: pd.DataFrame,
    method: str,
    *,
    tasks: pd.DataFrame | None = None,
    target: str = "normalized",
    base: str = "normalized",
    predictor: str = "ridge",
    split: str = "loto",
    alpha: float | str | None = None,
    seed: int = 0,
    repeats: int = 50,
    exclude: tuple[str, ...] = (),
    keep_incomplete: bool = False,
    task_covariates: bool = False,
    qap: int = 0,
    bootstrap: int = 0,
    other: tuple[pd.DataFrame, pd.DataFrame] | None = None,
) -> dict[str, Any]:
    """Cross-validate one predictor for one method and report it beside its baselines.

    Returns plain Python values, None where a number is undefined: r_fold_mean, r_concatenated,
    r_pooled (see `correlation.score`), rho_fold_mean, n_pairs, n_dropped, folds, coefficients,
    baselines, collinear_groups, qap, bootstrap, transfer and what was asked. `task_covariates`
    adds what `tasks` knows before merging. `other` is another setting's metrics and merges, which
    a fit on all pairs of this one forecasts. Raises MergelibError as `assemble` does.
    """
    pairs = assemble(metrics, merges, [method], exclude, keep_incomplete)
    pairs = _with_covariates(pairs, tasks, other) if task_covariates else pairs
    y = target_of(pairs, target, base)
    names, train, test = fold_masks(splitter(split, seed, repeats), pairs.ends, pairs.tasks)
    seeds = fold_seeds(seed, pairs.methods, len(train))
    fit = held_out(predictor, pairs.X, y, pairs.ends, train, test, alpha, seeds)
    result: dict[str, Any] = {
        **{"method": method, "target": target, "predictor": predictor, "split": split},
        "alpha": _strengths(fit.alpha),
        "seed": seed,
        "metrics": list(pairs.metrics),
        "excluded_categories": list(exclude),
        **summary(fit.prediction, y, test),
        **_counts(pairs),
        "folds": _folds(names, train, test, fit.prediction, y),
        "coefficients": {} if fit.coef is None else coefficients(fit.coef[:, 0], pairs.metrics),
        "baselines": _baselines(pairs, y, train, test, tasks),
        "collinear_groups": [list(group) for group in collinear_groups(pairs.X, pairs.metrics)],
        **dict.fromkeys(("qap", "bootstrap", "transfer")),
        **({"residual_of": base} if target == "residual" else {}),
    }
    if qap:
        data = (pairs.X, y, pairs.ends, train, test)
        null = qap_module.qap(predictor, *data, qap, alpha, seed, pairs.methods)
        result["qap"] = _null(null, SPLITS[split].headline, qap)
    if bootstrap:
        result["bootstrap"] = _bootstrap(fit.prediction, y, test, pairs, bootstrap, seed)
    if other is not None:
        there = assemble(*other, [method], exclude, keep_incomplete)
        to = (there, target_of(there, target, base))
        result["transfer"] = _transfer(pairs, y, *to, predictor, alpha, seed, qap)
    return plain(result)


def _with_covariates(pairs: Pairs, tasks: pd.DataFrame | None, other) -> Pairs:
    if tasks is None:
        raise MergelibError("task covariates need the tasks table: give --tasks FILE")
    if other is not None:
        raise MergelibError("forecasting another setting works on the metrics alone")
    return with_task_covariates(pairs, tasks)


def _counts(pairs: Pairs) -> dict[str, int]:
    tasks = len(np.unique(pairs.ends))
    return {"n_pairs": len(pairs), "n_dropped": pairs.n_dropped, "n_tasks": tasks}


def _baselines(pairs: Pairs, y, train, test, tasks) -> dict[str, dict[str, Any]]:
    made = baselines.all_baselines(pairs, y, train, tasks)
    return {name: summary(prediction, y, test) for name, prediction in made.items()}


def _transfer(pairs, y, there, y_there, predictor, alpha, seed, draws: int) -> dict[str, Any]:
    moved = transfer(pairs, y, there, y_there, predictor, alpha, seed, draws=draws)
    return {"r": moved.r[0], "n_pairs": len(there), "p": moved.p[0] if draws else None}


def _null(null: qap_module.Qap, headline: str, n: int) -> dict[str, Any]:
    each = {
        s: {"p": null.p(s)[0], "null_mean": null.mean(s)[0], "null_95": null.point95(s)[0]}
        for s in STATISTICS
    }
    return {"statistic": headline, "n": n, **each[headline], **each}


def summary(prediction: np.ndarray, y: np.ndarray, test: np.ndarray) -> dict[str, Any]:
    """The three r's and rho of one method's held-out predictions (F, n, 1)."""
    scores = score(prediction, y, test)
    rho = spearman_folds(prediction, y, test)
    return {
        "r_fold_mean": scores.r_fold_mean[0],
        "r_concatenated": scores.r_concatenated[0],
        "r_pooled": scores.r_pooled[0],
        "rho_fold_mean": mean_defined(rho)[0],
        "n_folds": len(test),
        "n_folds_undefined": int(scores.n_undefined[0]),
    }


def coefficients(coef: np.ndarray, names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Per metric over the folds of coef (F, p): mean, population std, share of folds with the
    mean's sign, and share of folds where it is not zero."""
    mean = coef.mean(axis=0)
    agreement = (np.sign(coef) == np.sign(mean)).mean(axis=0)
    columns = (mean, coef.std(axis=0), agreement, (coef != 0).mean(axis=0))
    keys = ("mean", "std", "sign_agreement", "nonzero_frequency")
    return {
        name: dict(zip(keys, map(float, row), strict=True))
        for name, row in zip(names, zip(*columns, strict=True), strict=True)
    }


def _folds(names, train, test, prediction, y) -> list[dict[str, Any]]:
    r = score(prediction, y, test).r_folds[:, 0]
    rho = spearman_folds(prediction, y, test)[:, 0]
    return [
        {
            "held_out": name,
            "n_train": int(train[k].sum()),
            "n_test": int(test[k].sum()),
            "r": r[k],
            "rho": rho[k],
        }
        for k, name in enumerate(names)
    ]


def _bootstrap(prediction, y, test, pairs: Pairs, n: int, seed: int) -> dict[str, Any]:
    once = pooled(prediction, test)[:, 0]
    held = ~np.isnan(once)
    draws = inference.bootstrap_r(once[held], y[held, 0], pairs.ends[held], n, seed)
    low, high = inference.interval(draws)
    return {"statistic": "r_pooled", "n": n, "low": low, "high": high}


def _strengths(alpha) -> float | list[float] | None:
    return alpha[:, 0].tolist() if isinstance(alpha, np.ndarray) else alpha


def plain(value: Any) -> Any:
    """Python values only: numpy scalars unwrapped, NaN and infinities None."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return value
