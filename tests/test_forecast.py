"""Forecasts of two unseen tasks: batched and nested ridge against fits made one at a time."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from test_survival import METHODS, made_tables

from mergelib.core.errors import MergelibError
from mergelib.pairs.targets import target
from mergelib.predict.crossval import fold_seeds, held_out
from mergelib.predict.evaluate import evaluate
from mergelib.predict.predictors import estimator
from mergelib.predict.splits import fold_masks, splitter
from mergelib.published.released import SETTINGS, read_setting
from studies import forecast
from studies.inputs import pairs_of

pytestmark = [pytest.mark.numeric, pytest.mark.slow]

FROZEN = Path(__file__).resolve().parents[1] / "book" / "tables" / "published"


@pytest.fixture(scope="module")
def tables():
    return made_tables(7, missing=1)


@pytest.fixture(scope="module")
def pairs(tables):
    return pairs_of(tables)


@pytest.fixture(scope="module")
def grid(pairs):
    return forecast.Grid(pairs.X, pairs.ends, {"few": [0, 3, 5], "more": range(9)}, (0.5, 5.0))


def one_at_a_time(grid, y, leave, ask):
    """Forecasts (C, K) of the pair `ask` by fits without the tasks `leave`."""
    rows = ~np.isin(grid.ends, leave).any(axis=1)
    out = []
    for name, alpha in grid.names:
        X = grid.X[:, list(grid.sets[name])]
        fit = make_pipeline(MinMaxScaler((-1, 1)), Ridge(alpha=alpha)).fit(X[rows], y[rows])
        out.append(fit.predict(X[[ask]])[0])
    return np.array(out)


def test_left_out_is_a_fit_without_the_two_tasks(grid, pairs):
    y = target(pairs, "normalized")
    found = grid.left_out(y)
    for k, pair in enumerate(pairs.ends):
        assert found[k] == pytest.approx(one_at_a_time(grid, y, pair, k), rel=1e-9)


def test_inner_scores_leave_two_more_tasks_out(grid, pairs):
    y = target(pairs, "normalized")
    found, error = grid.inner(y)
    for k in (0, 7, len(pairs) - 1):
        a, b = pairs.ends[k]
        inside = [
            n for n, (c, d) in enumerate(pairs.ends) if not {int(c), int(d)} & {int(a), int(b)}
        ]
        inner = np.array([one_at_a_time(grid, y, (a, b, *pairs.ends[n]), n) for n in inside])
        for c in range(len(grid.names)):
            for m in range(2):
                r = np.corrcoef(inner[:, c, m], y[inside, m])[0, 1]
                assert found[k, c, m] == pytest.approx(r, abs=1e-7)
                miss = ((inner[:, c, m] - y[inside, m]) ** 2).mean()
                assert error[k, c, m] == pytest.approx(miss, rel=1e-6)


def test_nesting_takes_the_best_inner_candidate_for_all_methods_of_a_repetition(grid, pairs):
    y = target(pairs, "normalized")
    again = np.random.default_rng(0).normal(size=y.shape)
    stacked = np.hstack([y, again])
    found, choice = forecast.nested(grid, stacked, 2)
    each, (inner, error) = grid.left_out(stacked), grid.inner(stacked)
    by_error = forecast.nested(grid, stacked, 2, "error")[1]
    for k in range(len(pairs)):
        for part in range(2):
            columns = slice(2 * part, 2 * part + 2)
            best = inner[k, :, columns].mean(axis=1).argmax()
            assert choice[k, part] == best
            scaled = error[k, :, columns] / stacked[:, columns].var(axis=0)
            assert by_error[k, part] == scaled.mean(axis=1).argmin()
            assert found[k, columns] == pytest.approx(each[k, best, columns])


def test_an_unknown_criterion_is_named(grid, pairs):
    with pytest.raises(MergelibError, match="least squares"):
        forecast.nested(grid, target(pairs, "raw"), 2, "least squares")


def test_nesting_finds_the_features_that_matter():
    rng = np.random.default_rng(1)
    ends = np.array(list(combinations(range(9), 2)))
    X = rng.normal(size=(len(ends), 8))
    y = X[:, [2]] @ [[1.0, -2.0]] + 0.1 * rng.normal(size=(len(ends), 2))
    grid = forecast.Grid(X, ends, {"noise": [4, 5, 6, 7], "signal": [1, 2]}, (0.1, 1.0))
    _, choice = forecast.nested(grid, y, 2)
    assert {grid.names[c][0] for c in choice.ravel()} == {"signal"}


def test_feature_sets_are_what_they_are_called(tables, pairs):
    every, sets = forecast.feature_sets(pairs, tables.tasks)
    share = (tables.tasks["zero_shot"] / tables.tasks["fine_tuned"]).to_numpy()
    (column,) = sets["base knowledge"]
    assert every.X[:, column] == pytest.approx(share[pairs.ends].mean(axis=1))
    assert [every.metrics[k] for k in sets["metrics"]] == list(pairs.metrics)
    assert len(sets["known"]) == 10
    assert sorted(sets[forecast.EVERYTHING]) == list(range(38))
    independent = [every.metrics[k] for k in sets["independent metrics"]]
    assert len(independent) == 19
    assert "weight_space_angle" not in independent
    assert "task_vector_cosine_similarity" in independent


def test_paper_forecasts_and_their_common_scale(pairs):
    y = target(pairs, "normalized")
    plain, common = forecast.paper_forecasts(pairs, y, starts=1)
    _, train, test = fold_masks(splitter("l2to"), pairs.ends)
    seeds = fold_seeds(0, METHODS, len(train))
    fit = held_out("paper-l1", pairs.X, y, pairs.ends, train, test, None, seeds)
    assert plain[..., 0] == pytest.approx(fit.prediction[test])
    for k in (0, 5):
        scale = MinMaxScaler((-1, 1)).fit(pairs.X[train[k]])
        inside = scale.transform(pairs.X[train[k]]) @ fit.coef[k].T
        new = scale.transform(pairs.X[[k]]) @ fit.coef[k].T
        z = (new[0] - inside.mean(axis=0)) / inside.std(axis=0)
        assert common[k, :, 0] == pytest.approx(z, abs=1e-8)


def test_training_means_leave_out_both_tasks(pairs):
    y = target(pairs, "raw")
    found = forecast.training_means(y, pairs.ends)
    for k, pair in enumerate(pairs.ends):
        rows = [n for n, other in enumerate(pairs.ends) if not set(pair) & set(other)]
        assert found[k] == pytest.approx(y[rows].mean(axis=0))


def test_forecast_table_agrees_with_the_command_and_with_the_candidates(tables):
    found = forecast.forecast_table(tables, relabel=3).set_index("forecast")
    more = {"tasks": tables.tasks, "split": "l2to"}
    for name, covariates in (("ridge on the metrics", False), ("ridge on metrics + known", True)):
        r = [
            evaluate(tables.metrics, tables.merges, m, task_covariates=covariates, **more)
            for m in METHODS
        ]
        r = [one["r_pooled"] for one in r]
        assert found.loc[name, [*METHODS, "mean"]].tolist() == pytest.approx([*r, np.mean(r)])
    base = [
        evaluate(tables.metrics, tables.merges, m, **more)["baselines"]["base_knowledge"]
        for m in METHODS
    ]
    line = found.loc["line on base knowledge", list(METHODS)]
    assert line.tolist() == pytest.approx([one["r_pooled"] for one in base])
    candidates = forecast.candidate_table(tables).set_index(["features", "strength"])
    every = candidates.loc[("metrics + known", 1.0)]
    assert every["mean"] == pytest.approx(found.loc["ridge on metrics + known", "mean"])
    pairs = pairs_of(tables)
    y, less = target(pairs, "normalized"), []
    _, train, test = fold_masks(splitter("l2to"), pairs.ends)
    for k in range(2):
        above = []
        for rows, held in zip(train, test, strict=True):
            fit = estimator("ridge").fit(pairs.X[rows], y[rows, k])
            above.append(fit.predict(pairs.X[held])[0] - y[rows, k].mean())
        less.append(np.corrcoef(above, y[:, k])[0, 1])
    assert candidates.loc[("metrics", 1.0), "less_mean"] == pytest.approx(np.mean(less))


def test_differences_are_to_the_published_predictor(tables):
    found = forecast.forecast_table(tables, relabel=0, starts=2, draws=40).set_index("forecast")
    first = found.loc[forecast.PAPER]
    assert np.isnan(first["difference"])
    rest = found.drop(index=forecast.PAPER)
    assert (rest["mean"] - first["mean"]).tolist() == pytest.approx(rest["difference"].tolist())
    assert (rest["low"] <= rest["high"]).all()


def test_draws_repeat_tasks_as_written_out(pairs):
    rng = np.random.default_rng(0)
    y, made = rng.normal(size=(len(pairs), 2)), rng.normal(size=(len(pairs), 2, 3))
    found = forecast.mean_r_draws(made, y, pairs.ends, draws=5, seed=4)
    draw, tasks = np.random.default_rng([4, 2]), np.unique(pairs.ends)
    for value in found:
        times = np.bincount(draw.integers(len(tasks), size=len(tasks)), minlength=len(tasks))
        rows = np.repeat(np.arange(len(pairs)), times[pairs.ends].prod(axis=1))
        r = [np.corrcoef(made[rows, k, s], y[rows, k])[0, 1] for k in range(2) for s in range(3)]
        assert value == pytest.approx(np.mean(r))


def test_the_nested_null_chooses_anew(tables):
    found = forecast.nested_table(tables, relabel=3).set_index("method")
    forecasts = forecast.forecast_table(tables, relabel=0).set_index("forecast")
    assert found.loc["mean", "r"] == pytest.approx(forecasts.loc[forecast.NESTED, "mean"])
    assert found["p"].between(0.25, 1).all()


@pytest.mark.parametrize(
    ("setting", "metrics", "everything"),
    [("ViT-B-16_AdamW", 0.097, 0.367), ("ViT-B-32_AdamW", 0.115, 0.501)],
)
def test_all_that_is_known_beats_the_metrics_on_both_backbones(
    released, setting, metrics, everything
):
    assert setting in SETTINGS
    tables = read_setting(released, setting)
    table = forecast.candidate_table(tables).set_index(["features", "strength"])["mean"]
    assert table["metrics", 1.0] == pytest.approx(metrics, abs=6e-4)
    assert table["metrics + known", 1.0] == pytest.approx(everything, abs=6e-4)
    assert table.idxmax() == ("metrics + known", 1.0)
    one = forecast.paper_forecasts(pairs_of(tables), target(pairs_of(tables), "normalized"), 1)
    y = target(pairs_of(tables), "normalized")
    r = [np.corrcoef(one[0][:, k, 0], y[:, k])[0, 1] for k in range(5)]
    assert table["metrics + known", 1.0] > np.mean(r) + 0.2


def test_the_frozen_forecasts_are_of_this_code(released):
    frozen = pd.read_csv(FROZEN / "survival_forecast.csv").set_index(["setting", "forecast"])
    for setting in ("ViT-B-16_AdamW", "ViT-B-32_AdamW"):
        tables = read_setting(released, setting)
        live = forecast.candidate_table(tables).set_index(["features", "strength"])
        for name, features in (
            ("ridge on the metrics", "metrics"),
            ("ridge on metrics + known", "metrics + known"),
        ):
            here = live.loc[(features, 1.0), [*tables.methods, "mean"]].tolist()
            assert frozen.loc[(setting, name), [*tables.methods, "mean"]].tolist() == pytest.approx(
                here
            )
        beaten = frozen.loc[setting]
        assert beaten.loc["ridge on metrics + known", "difference"] > 0.3
        assert beaten.loc[[forecast.NESTED, "ridge on metrics + known"], "p"].max() < 0.05


def test_the_frozen_starts_agree_with_the_released_ones():
    frozen = pd.read_csv(FROZEN / "survival_paper_l1.csv")
    part = frozen[(frozen["setting"] == "ViT-B-16_AdamW") & (frozen["split"] == "loto")]
    part = part[part["target"] == "raw"].set_index("method")
    # mean and standard deviation over ten starts (arXiv 2601.22285, appendix on robustness)
    published = {
        "weight_avg": (0.609, 0.018),
        "arithmetic": (0.466, 0.017),
        "tsv": (0.639, 0.022),
        "ties": (0.469, 0.011),
        "dare": (0.622, 0.010),
    }
    for method, (mean, sd) in published.items():
        assert abs(part.loc[method, "r"] - mean) < 2 * sd
