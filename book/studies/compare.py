"""All methods asked the same question: predictors beside baselines and nulls."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from mergelib.pairs.correlation import pooled, score
from mergelib.pairs.covariates import ACCURACIES
from mergelib.pairs.inference import bootstrap_r, interval
from mergelib.pairs.tables import Pairs
from mergelib.pairs.targets import target as target_of
from mergelib.predict import baselines
from mergelib.predict.crossval import fold_seeds, held_out
from mergelib.predict.splits import SPLITS, fold_masks, splitter
from studies.chance import holm
from studies.known import has_values
from studies.quick_qap import batched_qap
from studies.spread import fold_interval, fold_sd


def compare(
    pairs: Pairs,
    target: str = "normalized",
    split: str = "loto",
    predictors: Sequence[str] = ("ridge", "lasso", "ols", "paper-l1"),
    tasks: pd.DataFrame | None = None,
    relabel: Mapping[str, int] | None = None,
    seed: int = 0,
    draws: int = 2000,
) -> pd.DataFrame:
    """Every method by every predictor and baseline: one row each.

    method, model, kind ("predictor" or "baseline"), `r` (the split's headline statistic) with its
    95 % interval low, high over tasks, r_fold_mean, r_fold_sd, r_concatenated, r_pooled, n_pairs,
    n_folds; and for a predictor with `relabel[name]` QAP draws p, null_mean, null_95 of r and
    p_holm, Holm's correction over the methods. Numbers that are undefined are NaN, those of
    `base_knowledge` too where `tasks` lacks an accuracy of some task.
    """
    y = target_of(pairs, target)
    names, train, test = fold_masks(splitter(split, seed), pairs.ends, pairs.tasks)
    seeds = fold_seeds(seed, pairs.methods, len(train))
    relabel = dict(relabel or {})
    made, nulls = {}, {}
    for name in predictors:
        made[name] = held_out(name, pairs.X, y, pairs.ends, train, test, None, seeds).prediction
        if relabel.get(name):
            nulls[name] = batched_qap(
                name, pairs.X, y, pairs.ends, train, test, relabel[name], None, seed, pairs.methods
            )
    kinds = dict.fromkeys(made, "predictor")
    known = tasks if tasks is not None and has_values(pairs, tasks, ACCURACIES) else None
    made |= baselines.all_baselines(pairs, y, train, known)
    if tasks is not None and known is None:
        made["base_knowledge"] = np.full((len(train), *y.shape), np.nan)
    frames = []
    for name, prediction in made.items():
        table = _scored(prediction, y, test, pairs, split, draws, seed)
        table.insert(1, "model", name)
        table.insert(2, "kind", kinds.get(name, "baseline"))
        if name in nulls:
            statistic = SPLITS[split].headline
            p = nulls[name].p(statistic)
            table["p"], table["p_holm"] = p, holm(p)
            table["null_mean"] = nulls[name].mean(statistic)
            table["null_95"] = nulls[name].point95(statistic)
        frames.append(table)
    out = pd.concat(frames, ignore_index=True)
    place = {method: k for k, method in enumerate(pairs.methods)}
    return out.sort_values("method", key=lambda c: c.map(place), kind="stable", ignore_index=True)


def _scored(prediction, y, test, pairs: Pairs, split: str, draws: int, seed: int) -> pd.DataFrame:
    scores = score(prediction, y, test)
    low, high = np.full((2, y.shape[1]), np.nan)
    if SPLITS[split].spread == "folds":
        low, high = fold_interval(scores.r_folds, draws, seed)
    elif SPLITS[split].spread == "tasks":
        once = pooled(prediction, test)
        held = ~np.isnan(once).any(axis=1)
        for k in np.flatnonzero(~np.isnan(scores.r_pooled)):
            with np.errstate(invalid="ignore"):  # a draw of one task alone has no pair
                drawn = bootstrap_r(once[held, k], y[held, k], pairs.ends[held], draws, seed)
            low[k], high[k] = interval(drawn)
    return pd.DataFrame(
        {
            "method": pairs.methods,
            "r": getattr(scores, SPLITS[split].headline),
            "low": low,
            "high": high,
            "r_fold_mean": scores.r_fold_mean,
            "r_fold_sd": fold_sd(scores.r_folds),
            "r_concatenated": scores.r_concatenated,
            "r_pooled": scores.r_pooled,
            "n_pairs": len(pairs),
            "n_folds": (~np.isnan(scores.r_folds)).sum(axis=0),
        }
    )
