"""What travels between settings, against scikit-learn, scipy and literal loops."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.linear_model import Ridge
from sklearn.preprocessing import MinMaxScaler

from mergelib.core.errors import MergelibError
from mergelib.pairs.inference import permutations
from mergelib.pairs.tables import Tables
from mergelib.pairs.targets import outcome_cube
from mergelib.published.released import read_setting
from studies.architectures import (
    accuracy_of,
    coefficients_alike,
    forecast_map,
    metrics_alike,
    travel,
)

pytestmark = [pytest.mark.numeric, pytest.mark.slow]

T = 8
TASKS = [f"T{k}" for k in range(T)]
ENDS = np.array(list(itertools.combinations(range(T), 2)))


def setting(seed: int, noise: float = 0.02, scale: float = 1.0) -> Tables:
    """A setting whose normalized outcome follows the metric a, which is the pair's own."""
    shared, own = np.random.default_rng(0), np.random.default_rng(seed)
    a, b = shared.normal(size=(2, len(ENDS))) + noise * own.normal(size=(2, len(ENDS)))
    keys = {key: [f"T{k}" for k in ENDS[:, j]] for j, key in enumerate(("task_a", "task_b"))}
    metrics = pd.DataFrame(keys | {"a": scale * a, "b": b})
    merged = pd.DataFrame(keys | {"method": "tsv", "seed": 0})
    single = own.uniform(0.8, 0.95, T)
    value = 0.8 + 0.05 * a + 0.005 * own.normal(size=len(ENDS))
    for j, side in enumerate("ab"):
        merged[f"single_{side}"] = single[ENDS[:, j]]
        merged[f"acc_{side}"] = value * single[ENDS[:, j]]
    tasks = pd.DataFrame({"task": TASKS, "zero_shot": own.uniform(0.2, 0.6, T)})
    return Tables(metrics, merged, tasks.assign(fine_tuned=single), {}, ("tsv",))


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("leave_pair", [True, False])
def test_the_map_is_ridge_fitted_here_and_read_off_there(leave_pair, rescale):
    one, two = setting(1), setting(2, scale=7.0)
    X, X_to = (t.metrics[["a", "b"]].to_numpy() for t in (one, two))
    keep, there = np.arange(len(ENDS)) != 5, ENDS[3:]
    hat = forecast_map(X[keep], ENDS[keep], X_to[3:], there, leave_pair, 0.7, rescale)
    y = np.random.default_rng(3).normal(size=keep.sum())
    for k, pair in enumerate(there):
        inside = np.ones(keep.sum(), dtype=bool)
        if leave_pair:
            inside = np.array([not set(e) & set(pair) for e in ENDS[keep].tolist()])
        scaler = MinMaxScaler((-1, 1)).fit(X[keep][inside])
        model = Ridge(alpha=0.7).fit(scaler.transform(X[keep][inside]), y[inside])
        row = X_to[3:][k : k + 1]
        if rescale:
            low, high = X_to[3:].min(axis=0), X_to[3:].max(axis=0)
            origin, end = X[keep].min(axis=0), X[keep].max(axis=0)
            row = origin + (end - origin) * (row - low) / (high - low)
        expected = model.predict(scaler.transform(row))[0]
        np.testing.assert_allclose(hat[k] @ y, expected)


def test_the_accuracy_of_a_forecast():
    rng = np.random.default_rng(0)
    forecast, y = rng.normal(size=(2, 30, 2))
    forecast[:, 1] = 0.5
    found = accuracy_of(forecast, y)
    line = stats.linregress(forecast[:, 0], y[:, 0])
    np.testing.assert_allclose(
        [found[k][0] for k in ("r", "slope", "intercept")],
        [line.rvalue, line.slope, line.intercept],
    )
    assert found["rho"][0] == pytest.approx(stats.spearmanr(forecast[:, 0], y[:, 0]).statistic)
    assert found["mean_error"][1] == pytest.approx(0.5 - y[:, 1].mean())
    assert found["mean_absolute_error"][1] == pytest.approx(np.abs(0.5 - y[:, 1]).mean())
    assert np.isnan([found[k][1] for k in ("r", "rho", "slope", "intercept")]).all()


def test_a_planted_predictor_travels_and_a_relabelled_one_does_not():
    one, two = setting(1), setting(2)
    found = travel(one, two, ("normalized",), draws=39, alpha=0.01).set_index(["model", "knows"])
    fair = found.loc[("metrics", "other tasks")]
    assert fair["r"] > 0.9 and fair["p"] == fair["p_holm"] == 1 / 40
    assert fair["slope"] == pytest.approx(1, abs=0.1)
    assert found.loc[("home", "other tasks"), "r"] > 0.9
    y = [(t.merges["acc_a"] / t.merges["single_a"]).to_numpy() for t in (one, two)]
    assert found.loc[("same_pair", "all pairs"), "r"] == pytest.approx(stats.pearsonr(*y)[0])
    design = (ENDS[:, :1] == np.arange(T)) * 1.0 + (ENDS[:, 1:] == np.arange(T))
    effects = np.linalg.pinv(design) @ y[0]
    expected = stats.pearsonr(design @ effects, y[1])[0]
    assert found.loc[("task_effects", "all pairs"), "r"] == pytest.approx(expected)
    constant = found.loc[("constant", "all pairs")]
    assert constant["mean_error"] == pytest.approx(y[0].mean() - y[1].mean())
    assert np.isnan(constant["r"]) and np.isnan(constant["p"])
    share = [(t.tasks["zero_shot"] / t.tasks["fine_tuned"]).to_numpy() for t in (one, two)]
    x, x_to = (s[ENDS].mean(axis=1) for s in share)
    line = stats.linregress(x, y[0])
    forecast = line.intercept + line.slope * x_to
    assert found.loc[("base_knowledge", "all pairs"), "mean_absolute_error"] == pytest.approx(
        np.abs(forecast - y[1]).mean()
    )


def test_the_null_relabels_the_outcomes_of_both_settings_alike():
    one, two = setting(1), setting(2)
    found = travel(one, two, ("raw",), draws=3, seed=7).set_index(["model", "knows"])
    null = []
    for order in permutations(T, 3, 7):
        moved = []
        for tables in (one, two):
            cube = outcome_cube(tables.merges, TASKS, ["tsv"], "raw")
            value = cube[order[ENDS[:, 0]], order[ENDS[:, 1]], 0]
            merges = tables.merges.assign(acc_a=value, acc_b=value)
            moved.append(replace(tables, merges=merges))
        again = travel(*moved, ("raw",), draws=0).set_index(["model", "knows"])
        null.append(again["r"])
    for key in (("metrics", "all pairs"), ("metrics", "other tasks"), ("home", "other tasks")):
        values = [draw[key] for draw in null]
        assert found.loc[key, "null_mean"] == pytest.approx(np.mean(values))
        assert found.loc[key, "p"] == (1 + sum(v >= found.loc[key, "r"] for v in values)) / 4


def test_alike_metrics_and_coefficients():
    one, two = setting(1), setting(2)
    two.metrics.loc[4, "b"] = np.nan
    found = metrics_alike(one.metrics, two.metrics.assign(a=1.0), draws=19).set_index("metric")
    assert np.isnan(found.loc["a", ["rho", "p", "null_95", "additive_two"]].to_list()).all()
    kept = two.metrics["b"].notna()
    expected = stats.spearmanr(one.metrics["b"][kept], two.metrics["b"][kept]).statistic
    assert found.loc["b", "rho"] == pytest.approx(expected)
    assert found.loc["b", "p"] == found.loc["b", "pair_p"] == 1 / 20
    assert found.loc["b", "n_pairs"] == len(ENDS) - 1

    two = setting(2, scale=-3.0)
    found = coefficients_alike(one, two, draws=19).iloc[0]
    coef = []
    for tables in (one, two):
        y = (tables.merges["acc_a"] / tables.merges["single_a"]).to_numpy()
        Z = MinMaxScaler((-1, 1)).fit_transform(tables.metrics[["a", "b"]])
        coef.append(Ridge(alpha=1.0).fit(Z, y).coef_)
    cosine = coef[0] @ coef[1] / np.linalg.norm(coef[0]) / np.linalg.norm(coef[1])
    assert found["cosine"] == pytest.approx(cosine) and cosine < -0.9
    assert found["p"] > 0.9


def test_settings_of_other_tasks_or_metrics_are_refused():
    one, two = setting(1), setting(2)
    with pytest.raises(MergelibError, match="differ in metrics: a, c"):
        travel(one, replace(two, metrics=two.metrics.rename(columns={"a": "c"})))
    renamed = {"T7": "Z"}
    other = replace(
        two,
        metrics=two.metrics.replace(renamed),
        merges=two.merges.replace(renamed),
        tasks=two.tasks.replace(renamed),
    )
    with pytest.raises(MergelibError, match="differ in tasks: T7, Z"):
        travel(one, other)


def test_the_released_sgd_merges_are_those_of_adamw(shared):
    one, two = (read_setting(shared / "published", s) for s in ("ViT-B-16_AdamW", "ViT-B-16_SGD"))
    found = travel(one, two, ("raw",), draws=0)
    found = found.set_index(["model", "knows", "method"]).sort_index()
    same = found.loc[("same_pair", "all pairs")]
    merged = {m for m in one.methods if m != "tsv"}  # tsv lacks two pairs with AdamW
    assert (same.loc[sorted(merged), "mean_absolute_error"] < 1e-12).all()
    np.testing.assert_allclose(same["r"], 1, atol=1e-3)
