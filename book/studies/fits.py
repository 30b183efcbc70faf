"""What chapter 4 computes: predictors beside baselines, chance, and what is known anyway."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mergelib.pairs.correlation import pooled
from mergelib.pairs.targets import target as target_of
from mergelib.predict import baselines
from mergelib.predict.splits import fold_masks, splitter
from studies import describe
from studies.category_fits import beside_known
from studies.chance import holm
from studies.compare import compare
from studies.display import count
from studies.method_fits import held_out_table
from studies.two_sources import Source, below, span

EFFECTS = "additive_task_effects"


def additive_shares(source: Source, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Share of the variance over pairs that task effects explain: rows methods, raw, normalized."""
    methods = list(source.methods)
    return pd.DataFrame(
        {
            name: describe.summarize_methods(
                describe.by_method(source.tables.merges, name)[methods], draws, seed
            )["additive"]
            for name in ("raw", "normalized")
        }
    ).rename_axis("method")


def comparison(
    source: Source,
    target: str,
    split: str,
    predictors: Sequence[str],
    relabel: dict[str, int],
    seed: int = 0,
    draws: int = 1000,
) -> pd.DataFrame:
    """`compare`, without baselines that cannot forecast in this edition.

    Task effects forecast a pair by its partner: where no task of a test pair is in training, and
    for the residual, which is what they leave, their rows are NaN. So are a constant's for the
    residual: the mean of residuals is rounding, or gives away the pair held out.
    """
    table = compare(
        source.pairs,
        target,
        split,
        predictors,
        tasks=source.tables.tasks,
        relabel=relabel,
        seed=seed,
        draws=draws,
    )
    absent = [EFFECTS, "constant"] if target == "residual" else [EFFECTS]
    if split != "loto" or target == "residual":
        numbers = table.columns.drop(["method", "model", "kind", "n_pairs", "n_folds"])
        table.loc[table["model"].isin(absent), numbers] = np.nan
    return table


def with_chance(table: pd.DataFrame, found: pd.DataFrame, target: str) -> pd.DataFrame:
    """A table of both tasks held out, ridge's rows with p, p_holm and null_95 of `found`.

    `found` is `compare_targets`: the same fits and permutations, made once for all targets.
    """
    part = found[(found["split"] == "l2to") & (found["target"] == target)].set_index("method")
    part = part.assign(p_holm=holm(part["p"].to_numpy()))
    out = table.drop(columns=["p", "p_holm", "null_95"], errors="ignore")
    out = out.join(part[["p", "p_holm", "null_95"]], on="method")
    out.loc[out["model"] != "ridge", ["p", "p_holm", "null_95"]] = np.nan
    return out


def of(table: pd.DataFrame, model: str, order: Sequence[str] | None = None) -> pd.DataFrame:
    """The rows of one predictor or baseline, by method; methods in an order of the chapter's."""
    rows = table[table["model"] == model].set_index("method")
    return rows if order is None else rows.loc[[m for m in order if m in rows.index]]


def by_model(table: pd.DataFrame, models: Sequence[str]) -> pd.DataFrame:
    """Mean r over the methods, and least to most, of each predictor and baseline."""
    groups = table.groupby("model", sort=False)["r"]
    found = pd.DataFrame({"mean": groups.mean(), "range": groups.agg(span)})
    return found.loc[[m for m in models if m in found.index]]


def summaries(table: pd.DataFrame, models: Sequence[str]) -> pd.DataFrame:
    """Mean over the methods of the two ways to take r, of each model."""
    ways = ["r_fold_mean", "r_pooled"]
    return table.groupby("model", sort=False)[ways].mean().loc[list(models)]


def ahead(table: pd.DataFrame, model: str, other: str) -> tuple[int, int]:
    """For how many methods `model` has a larger r than `other`, as printed; of how many."""
    r = table.pivot(index="method", columns="model", values="r")[[model, other]].dropna().round(2)
    return int((r[model] > r[other]).sum()), len(r)


def with_baselines(table: pd.DataFrame, model: str, names: Sequence[str]) -> pd.DataFrame:
    """A model's rows, with r of the named baselines as columns (NaN where there is none)."""
    wide = table.pivot(index="method", columns="model", values="r").reindex(columns=list(names))
    return table[table["model"] == model].join(wide, on="method")


def by_target(found: pd.DataFrame) -> pd.DataFrame:
    """`compare_targets` by split and target: mean r over the methods, methods with p below 0.05."""
    groups = found.groupby(["split", "target"], sort=False)
    return pd.DataFrame({"mean": groups["r"].mean(), "beyond": groups["p"].agg(below)})


def passing(found: pd.DataFrame, split: str, target: str) -> int:
    """For how many methods ridge is beyond chance (p below 0.05)."""
    part = found[(found["split"] == split) & (found["target"] == target)]
    return int((part["p"] < 0.05).sum())


FEATURES = {
    "known": "known numbers",
    "metrics": "metrics",
    "both": "known numbers and metrics",
    "line": "base knowledge alone",
}


def known_table(source: Source, target: str, seed: int = 0, draws: int = 1000) -> pd.DataFrame:
    """`beside_known` with both tasks held out, `features` in words."""
    return beside_known(source.pairs, source.tables.tasks, target, draws=draws, seed=seed).replace(
        {"features": FEATURES}
    )


def known_means(known: pd.DataFrame, line: pd.Series) -> pd.DataFrame:
    """Mean r by features, and how many methods gain on the known numbers beyond the interval.

    `line` holds r of the line on base knowledge, which is the last row.
    """
    groups = known.groupby("features", sort=False)
    found = pd.DataFrame(
        {
            "n": groups["n_metrics"].first().astype("Int64"),
            "mean": groups["r"].mean(),
            "gain": groups["low"].agg(lambda low: count(int((low > 0).sum()), len(low))),
        }
    )
    found.loc[FEATURES["known"], "gain"] = "–"
    found.loc[FEATURES["line"]] = [1, line.mean(), "–"]
    return found.rename_axis("features")


def gains(known: pd.DataFrame) -> pd.DataFrame:
    """Rows of known numbers and metrics together: what the metrics add, by method."""
    return known[known["features"] == FEATURES["both"]].set_index("method")


def forecast_errors(
    source: Source, method: str, target: str, split: str, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A method's held-out pairs (`held_out_table`), and r and mean absolute error of forecasts.

    The second has rows ridge, task effects (where they can forecast), and the mean of the training
    pairs; error in points of accuracy.
    """
    each = held_out_table(source.pairs, method, target, split, seed=seed)
    each = each.dropna(subset=["predicted"])
    y = target_of(source.pairs, target)
    _, train, test = fold_masks(splitter(split, seed), source.pairs.ends, source.pairs.tasks)
    k = source.methods.index(method)
    mean = pooled(baselines.constant(y, train), test)[each.index, k]
    forecasts = {"ridge on the metrics": each["predicted"], "mean of the training pairs": mean}
    if split == "loto" and target != "residual":
        forecasts["task effects"] = each["additive"]
    error = {name: 100 * np.abs(f - each["actual"]).mean() for name, f in forecasts.items()}
    return each, pd.DataFrame({"error": error}).rename_axis("forecast")


def clear_signs(coefficients: pd.DataFrame) -> pd.DataFrame:
    """By metric: for how many methods the interval of the coefficient lies above and below 0.

    Metrics that are exactly collinear with others in these pairs are left out.
    """
    single = coefficients[~coefficients["tied"]]
    groups = single.groupby("metric", sort=False)
    return pd.DataFrame(
        {
            "above": groups["low"].agg(lambda low: int((low > 0).sum())),
            "below": groups["high"].agg(lambda high: int((high < 0).sum())),
        }
    )
