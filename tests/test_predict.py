"""The predictors against scikit-learn, scipy and literal loops on small synthetic tables."""

import json
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from published_loop import fit_literal
from scipy import stats
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import check_estimator

from mergelib.core.errors import MergelibError
from mergelib.pairs import correlation, inference
from mergelib.pairs.tables import assemble
from mergelib.pairs.targets import target
from mergelib.predict import baselines, qap
from mergelib.predict.agreement import agreement
from mergelib.predict.crossval import choose_alpha, fit_folds, fold_seeds, held_out
from mergelib.predict.evaluate import evaluate
from mergelib.predict.predictors import PREDICTORS, estimator
from mergelib.predict.splits import DisjointHalves, LeaveOneTaskOut, LeaveTwoTasksOut, fold_masks
from mergelib.published.predictors import adam
from mergelib.published.predictors.estimators import DensePearsonAdam, L1PearsonAdam, MSEAdam
from studies.chance import holm
from studies.method_fits import bootstrap_coefficients

pytestmark = pytest.mark.numeric

METHODS = ("weight_avg", "tsv")
SCALES = np.array([1.0, 1e3, 1e-4, 10.0, 1.0, 1.0])


def tables(n_tasks=8, n_metrics=6, seed=0, noise=0.01):
    """Metrics and merges tables with a signal in two metrics and additive task effects."""
    rng = np.random.default_rng(seed)
    tasks = [f"T{k}" for k in range(n_tasks)]
    pairs = list(combinations(range(n_tasks), 2))
    X = rng.normal(size=(len(pairs), n_metrics))
    metrics = pd.DataFrame(X * SCALES[:n_metrics] + 5, columns=[f"m{k}" for k in range(n_metrics)])
    metrics.insert(0, "task_a", [tasks[i] for i, _ in pairs])
    metrics.insert(1, "task_b", [tasks[j] for _, j in pairs])
    single = rng.uniform(0.8, 0.99, n_tasks)
    effect = rng.normal(0, 0.03, n_tasks)
    rows = []
    for method in METHODS:
        for k, (i, j) in enumerate(pairs):
            shift = 0.02 * X[k, 0] - 0.02 * X[k, 1]
            a, b = (single[t] * (0.9 + effect[t] + shift + noise * rng.normal()) for t in (i, j))
            rows.append((tasks[i], tasks[j], method, a, b, single[i], single[j], 0))
    names = ["task_a", "task_b", "method", "acc_a", "acc_b", "single_a", "single_b", "seed"]
    return metrics, pd.DataFrame(rows, columns=names)


@pytest.fixture
def problem():
    pairs = assemble(*tables(), METHODS)
    y = target(pairs, "normalized")
    names, train, test = fold_masks(LeaveOneTaskOut(), pairs.ends, pairs.tasks)
    return pairs, y, train, test


def scale(X, rows):
    """The published scaling, literally: training minimum and range, zero range counted as 1."""
    low, high = X[rows].min(0), X[rows].max(0)
    return 2 * (X - low) / np.where(high > low, high - low, 1) - 1


# --- targets -----------------------------------------------------------------------------------


def test_targets_are_the_formulas():
    metrics, merges = tables()
    pairs = assemble(metrics, merges, ["tsv"])
    rows = merges[merges.method == "tsv"]
    raw = (rows.acc_a + rows.acc_b) / 2
    norm = (rows.acc_a / rows.single_a + rows.acc_b / rows.single_b) / 2
    np.testing.assert_allclose(target(pairs, "raw")[:, 0], raw)
    np.testing.assert_allclose(target(pairs, "normalized")[:, 0], norm)
    dummies = np.array(
        [[t in (a, b) for t in pairs.tasks] for a, b in rows[["task_a", "task_b"]].to_numpy()]
    )
    plain = LinearRegression(fit_intercept=False).fit(dummies, norm)
    np.testing.assert_allclose(target(pairs, "residual")[:, 0], norm - plain.predict(dummies))
    of_raw = LinearRegression(fit_intercept=False).fit(dummies, raw)
    np.testing.assert_allclose(
        target(pairs, "residual", base="raw")[:, 0], raw - of_raw.predict(dummies), atol=1e-12
    )


def test_swapped_tasks_and_repeated_seeds_change_nothing_but_the_average():
    metrics, merges = tables()
    swapped = merges.rename(
        columns={
            "task_a": "task_b", "task_b": "task_a", "acc_a": "acc_b", "acc_b": "acc_a",
            "single_a": "single_b", "single_b": "single_a",
        }
    )  # fmt: skip
    other = swapped.assign(seed=1, acc_a=swapped.acc_a + 0.01)
    one = target(assemble(metrics, merges, METHODS), "raw")
    same = target(assemble(metrics, swapped.sample(frac=1, random_state=0), METHODS), "raw")
    both = target(assemble(metrics, pd.concat([merges, other]), METHODS), "raw")
    np.testing.assert_allclose(one, same)
    np.testing.assert_allclose(both, one + 0.0025)


def test_missing_values_drop_pairs_and_are_counted():
    metrics, merges = tables()
    metrics.loc[3, "m2"] = np.nan
    gone = (merges.method == "tsv") & (merges.task_a == "T0") & (merges.task_b == "T1")
    merges = merges[~gone]
    assert assemble(metrics, merges, ["weight_avg"]).n_dropped == 2
    kept = assemble(metrics, merges, ["weight_avg"], keep_incomplete=True)
    assert (len(kept), kept.n_dropped) == (27, 1)
    assert len(assemble(metrics, merges, ["tsv"], keep_incomplete=True)) == 26


# --- splits ------------------------------------------------------------------------------------


def test_splits_hold_out_what_they_say():
    ends = np.array(list(combinations(range(6), 2)))
    X = np.zeros((len(ends), 1))
    folds = list(LeaveOneTaskOut().split(X, groups=ends))
    assert len(folds) == LeaveOneTaskOut().get_n_splits(X, groups=ends) == 6
    for task, (train, test) in enumerate(folds):
        assert (ends[test] == task).any(axis=1).all() and not (ends[train] == task).any()
        assert len(train) + len(test) == len(ends)
    two = list(LeaveTwoTasksOut().split(X, groups=ends))
    assert len(two) == 15
    for k, (train, test) in enumerate(two):
        assert test.tolist() == [k] and not np.isin(ends[train], ends[k]).any() and len(train) == 6
    halves = list(DisjointHalves(repeats=4, random_state=1).split(X, groups=ends))
    assert len(halves) == 8
    for train, test in halves:
        assert not set(ends[train].ravel()) & set(ends[test].ravel())
        assert len(train) == len(test) == 3
    again = list(DisjointHalves(repeats=4, random_state=1).split(X, groups=ends))
    assert all((a[0] == b[0]).all() for a, b in zip(halves, again, strict=True))


def test_splitters_work_in_scikit_learn():
    from sklearn.model_selection import cross_val_score

    pairs = assemble(*tables(), METHODS)
    y = target(pairs, "normalized")[:, 0]
    found = cross_val_score(
        estimator("ridge"), pairs.X, y, groups=pairs.ends, cv=LeaveOneTaskOut(),
        scoring=lambda model, X, y: stats.pearsonr(model.predict(X), y)[0],
    )  # fmt: skip
    _, train, test = fold_masks(LeaveOneTaskOut(), pairs.ends)
    ours = held_out("ridge", pairs.X, y[:, None], pairs.ends, train, test)
    np.testing.assert_allclose(
        correlation.score(ours.prediction, y[:, None], test).r_folds[:, 0], found
    )


# --- estimators --------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Skipping check")
@pytest.mark.parametrize("model", [L1PearsonAdam(), DensePearsonAdam(), MSEAdam()], ids=repr)
def test_estimators_pass_scikit_learns_checks(model):
    check_estimator(model)


@pytest.mark.parametrize("name", ["ridge", "ols"])
def test_closed_forms_equal_scikit_learn(problem, name):
    pairs, y, train, test = problem
    X = np.column_stack([pairs.X, np.full(len(pairs), 7.0)])  # a constant column
    fit = held_out(name, X, y, pairs.ends, train, test, 0.7 if name == "ridge" else None)
    for f in range(len(train)):
        for m in range(y.shape[1]):
            last = Ridge(alpha=0.7) if name == "ridge" else LinearRegression()
            model = make_pipeline(MinMaxScaler((-1, 1)), last).fit(X[train[f]], y[train[f], m])
            np.testing.assert_allclose(fit.coef[f, m], model[-1].coef_, atol=1e-10)
            expected = model.predict(X[test[f]])
            np.testing.assert_allclose(fit.prediction[f, test[f], m], expected, atol=1e-10)


def test_ridge_is_the_minimum_of_its_formula(problem):
    pairs, y, train, _ = problem
    alpha = 2.5
    rows = train[0]
    Z = scale(pairs.X, rows)[rows]
    A = np.column_stack([Z, np.ones(len(Z))])
    penalty = alpha * np.diag([1.0] * Z.shape[1] + [0.0])
    expected = np.linalg.solve(A.T @ A + penalty, A.T @ y[rows])
    fit = fit_folds("ridge", pairs.X, y, train, ~train, alpha)
    np.testing.assert_allclose(fit.coef[0].T, expected[:-1], atol=1e-10)
    np.testing.assert_allclose(fit.intercept[0], expected[-1], atol=1e-10)
    each = fit_folds("ridge", pairs.X, y, train, ~train, np.full((len(train), 2), alpha))
    np.testing.assert_allclose(each.coef, fit.coef, atol=1e-12)


def test_least_squares_takes_the_least_norm_when_collinear(problem):
    pairs, y, train, test = problem
    X = np.column_stack([pairs.X, 2 - pairs.X[:, 0]])
    fit = fit_folds("ols", X, y, train, test)
    np.testing.assert_allclose(fit.coef[:, :, 0], -fit.coef[:, :, -1], atol=1e-9)
    plain = fit_folds("ols", pairs.X, y, train, test)
    np.testing.assert_allclose(fit.predict(X), plain.predict(pairs.X), atol=1e-9)


@pytest.mark.parametrize(("name", "alpha"), [("lasso", 1e-3), ("elasticnet", 1e-3), ("pls", 2)])
def test_folds_equal_the_pipelines(problem, name, alpha):
    pairs, y, train, test = problem
    fit = held_out(name, pairs.X, y, pairs.ends, train, test, alpha)
    for f in (0, 5):
        model = estimator(name, alpha).fit(pairs.X[train[f]], y[train[f], 1])
        expected = np.ravel(model.predict(pairs.X[test[f]]))
        np.testing.assert_allclose(fit.prediction[f, test[f], 1], expected, atol=1e-12)


@pytest.mark.parametrize("steps", [80, None])
@pytest.mark.parametrize("name", adam.RECIPES)
def test_batched_adam_equals_the_published_loop(problem, name, steps):
    """Step by step to rounding; at the end, after rounding has grown along the path, nearly."""
    pairs, y, train, test = problem
    y, train, test = y[:, :1], train[:3], test[:3]
    recipe = adam.RECIPES[name]
    recipe = recipe if steps is None else replace(recipe, iterations=steps)
    l1 = 1.0 if name == "paper-l1" else 0.0
    seeds = np.arange(6).reshape(3, 1, 2)
    batched = adam.fit_folds(recipe, pairs.X, y, train, test, seeds, l1).coef[:, 0]
    one = lambda x: torch.from_numpy(np.ascontiguousarray(x))  # noqa: E731
    for f in range(3):
        every = np.ones(len(pairs), dtype=bool)
        Z = scale(pairs.X, every if name == "paper-mse" else train[f])
        watch = (one(Z[test[f]]), one(y[test[f], 0])) if name == "paper-mse" else ()
        for s in range(2):
            start = adam.start_weights([seeds[f, 0, s]], Z.shape[1], recipe.init)[0]
            data = one(Z[train[f]]), one(y[train[f], 0])
            expected = fit_literal(recipe, *data, start, l1, *watch)[0].numpy()
            size = np.abs(expected).max()
            tolerance = 1e-9 if steps else 0.02
            np.testing.assert_allclose(batched[f, s], expected, atol=tolerance * size, rtol=0)


def test_the_estimators_are_the_folds(problem, monkeypatch):
    pairs, y, train, test = problem
    short = replace(adam.L1, iterations=60)
    monkeypatch.setattr(L1PearsonAdam, "recipe", short)
    seeds = fold_seeds(3, METHODS, len(train))
    fit = fit_folds("paper-l1", pairs.X, y, train, test, 1.0, seeds)
    model = estimator("paper-l1", 1.0, int(seeds[2, 1])).fit(pairs.X[train[2]], y[train[2], 1])
    np.testing.assert_allclose(fit.coef[2, 1], model[-1].coef_, atol=1e-9)
    assert (np.abs(fit.coef[fit.coef != 0]) >= 1e-3).all()


def test_nested_strength_is_that_of_a_literal_search(problem):
    pairs, y, train, test = problem
    chosen = choose_alpha("ridge", pairs.X, y, pairs.ends, train)
    grid = PREDICTORS["ridge"].grid
    f, m = 3, 1
    errors = []
    for alpha in grid:
        total = 0.0
        for task in range(8):
            has = (pairs.ends == task).any(axis=1)
            inner, outer = train[f] & ~has, train[f] & has
            if outer.any():
                model = estimator("ridge", alpha).fit(pairs.X[inner], y[inner, m])
                total += ((model.predict(pairs.X[outer]) - y[outer, m]) ** 2).sum()
        errors.append(total)
    assert chosen[f, m] == grid[int(np.argmin(errors))]


# --- scores and baselines ----------------------------------------------------------------------


def test_scores_equal_scipy(problem):
    pairs, y, train, test = problem
    fit = held_out("ridge", pairs.X, y, pairs.ends, train, test)
    found = correlation.score(fit.prediction, y, test)
    rho = correlation.spearman_folds(fit.prediction, y, test)
    for m in range(2):
        r = [stats.pearsonr(fit.prediction[f, t, m], y[t, m])[0] for f, t in enumerate(test)]
        np.testing.assert_allclose(found.r_folds[:, m], r)
        np.testing.assert_allclose(found.r_fold_mean[m], np.mean(r))
        ranks = [stats.spearmanr(fit.prediction[f, t, m], y[t, m])[0] for f, t in enumerate(test)]
        np.testing.assert_allclose(rho[:, m], ranks)
        a = np.concatenate([fit.prediction[f, t, m] for f, t in enumerate(test)])
        b = np.concatenate([y[t, m] for t in test])
        np.testing.assert_allclose(found.r_concatenated[m], stats.pearsonr(a, b)[0])
        once = [np.mean([fit.prediction[i, k, m], fit.prediction[j, k, m]])
                for k, (i, j) in enumerate(pairs.ends)]  # fmt: skip
        np.testing.assert_allclose(found.r_pooled[m], stats.pearsonr(once, y[:, m])[0])


def test_constant_predictions_have_no_r_and_are_counted(problem):
    pairs, y, train, test = problem
    found = correlation.score(baselines.constant(y, train), y, test)
    assert np.isnan(found.r_fold_mean).all() and (found.n_undefined == len(train)).all()
    assert not np.isnan(found.r_pooled).any()


def test_additive_baseline_recovers_task_effects():
    ends = np.array(list(combinations(range(7), 2)))
    effect = np.random.default_rng(0).normal(size=7)
    y = effect[ends].sum(axis=1, keepdims=True)
    _, train, test = fold_masks(LeaveOneTaskOut(), ends)
    prediction = baselines.additive(y, ends, train)
    for task in range(7):
        partner = np.where(ends[:, 0] == task, ends[:, 1], ends[:, 0])
        others = np.delete(effect, task).mean()
        rows = test[task]
        np.testing.assert_allclose(prediction[task, rows, 0], effect[partner[rows]] + others)
    np.testing.assert_allclose(correlation.score(prediction, y, test).r_fold_mean, 1)


def test_line_and_best_metric_are_training_lines(problem):
    pairs, y, train, test = problem
    single = pairs.single.mean(axis=-1)
    found = baselines.line(single, y, train)
    best = baselines.best_metric(pairs.X, y, train)
    for f in (1, 4):
        rows = train[f]
        expected = np.poly1d(np.polyfit(single[rows, 0], y[rows, 0], 1))(single[:, 0])
        np.testing.assert_allclose(found[f, :, 0], expected, atol=1e-9)
        r = [abs(stats.pearsonr(x, y[rows, 1])[0]) for x in pairs.X[rows].T]
        x = pairs.X[:, int(np.argmax(r))]
        expected = np.poly1d(np.polyfit(x[rows], y[rows, 1], 1))(x)
        np.testing.assert_allclose(best[f, :, 1], expected, atol=1e-9)


# --- inference ---------------------------------------------------------------------------------


def test_a_qap_permutation_moves_rows_and_columns_together():
    ends = np.array(list(combinations(range(5), 2)))
    table = np.random.default_rng(0).normal(size=(5, 5))
    table = table + table.T
    y = table[ends[:, 0], ends[:, 1]][:, None]
    order = np.array([2, 0, 4, 1, 3])
    moved = inference.permuted(inference.square(y, ends), ends, order[None])[0]
    permutation = np.eye(5)[order]
    expected = (permutation @ table @ permutation.T)[ends[:, 0], ends[:, 1]]
    np.testing.assert_allclose(moved[:, 0], expected)


def test_qap_equals_refitting_every_permutation_with_scikit_learn():
    metrics, merges = tables(n_tasks=6)
    metrics.loc[4, "m0"] = np.nan  # a pair that is missing moves about
    pairs = assemble(metrics, merges, METHODS)
    y = target(pairs, "normalized")
    _, train, test = fold_masks(LeaveOneTaskOut(), pairs.ends)
    null = qap.qap("ridge", pairs.X, y, pairs.ends, train, test, n=3, alpha=0.5, seed=4)
    rng = np.random.default_rng([4, 1])
    for draw in range(3):
        order = rng.permutation(6)
        known = {tuple(sorted(e)): v for e, v in zip(pairs.ends.tolist(), y[:, 1], strict=True)}
        moved = np.array([known.get(tuple(sorted(order[e])), np.nan) for e in pairs.ends])
        r = []
        for task in range(6):
            has = (pairs.ends == task).any(axis=1)
            inside, outside = ~has & ~np.isnan(moved), has & ~np.isnan(moved)
            model = estimator("ridge", 0.5).fit(pairs.X[inside], moved[inside])
            r.append(stats.pearsonr(model.predict(pairs.X[outside]), moved[outside])[0])
        np.testing.assert_allclose(null.null["r_fold_mean"][draw, 1], np.mean(r))


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_a_draw_equal_up_to_rounding_has_reached_the_observed_value(size):
    terms = size * np.random.default_rng(0).random(200)
    observed, again = sum(terms), sum(terms[::-1])  # one sum in two orders
    assert observed != again
    null = np.array([again, observed * (1 - 1e-9), observed * (1 + 1e-9)])
    assert inference.permutation_p(observed, null) == 3 / 4
    assert inference.permutation_p(-observed, -null) == 3 / 4
    both = inference.permutation_p(np.array([observed, np.nan]), np.stack([null, null], axis=1))
    np.testing.assert_array_equal(both, [3 / 4, np.nan])
    assert np.isnan(inference.permutation_p(observed, np.array([np.nan])))


def test_permutations_leave_numbers_that_no_task_has():
    ends = np.array([(1, 3), (3, 4), (1, 6)])
    orders = inference.permutations(ends, 20, seed=2)
    assert (orders[:, [0, 2, 5]] == [0, 2, 5]).all()
    assert (np.sort(orders[:, [1, 3, 4, 6]], axis=1) == [1, 3, 4, 6]).all()
    assert (inference.permutations(4, 5) == inference.permutations(np.arange(4), 5)).all()


def test_qap_p_counts_the_observed_value_itself():
    null = np.array([[0.1], [0.2], [0.9], [np.nan]])
    q = qap.Qap({"r": np.array([0.5])}, {"r": null})
    assert q.p("r")[0] == 2 / 4
    np.testing.assert_allclose(q.mean("r"), 0.4)


def test_bootstrap_weights_are_products_of_draws(problem):
    pairs, y, train, test = problem
    w = inference.task_weights(pairs.ends, 3, seed=1)
    rng = np.random.default_rng([1, 2])
    for k in range(3):
        times = np.bincount(rng.integers(8, size=8), minlength=8)
        assert w[k].tolist() == [times[i] * times[j] for i, j in pairs.ends]
    a, b = pairs.X[:, 0], y[:, 0]
    drawn = inference.bootstrap_r(a, b, pairs.ends, 3, seed=1)
    again = np.repeat(np.arange(len(a)), w[0].astype(int))
    np.testing.assert_allclose(drawn[0], stats.pearsonr(a[again], b[again])[0])
    coef = bootstrap_coefficients(pairs.X, b, pairs.ends, 0.3, 3, seed=1)
    model = Ridge(alpha=0.3).fit(MinMaxScaler((-1, 1)).fit_transform(pairs.X), b, w[0])
    np.testing.assert_allclose(coef[0], model.coef_, atol=1e-9)


def test_corrections_for_several_methods():
    p = np.array([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(holm(p), [0.03, 0.06, 0.06, 0.02])


# --- agreement ---------------------------------------------------------------------------------


def test_agreement_by_hand():
    a = {"m1": 5.0, "m2": -4.0, "m3": 3.0, "m4": 2.0, "m5": 1.5, "m6": 0.0, "m7": 0.1}
    b = {"m1": 5.0, "m2": 4.0, "m3": 0.0, "m4": 2.0, "m5": 1.5, "m6": 3.0, "m7": -0.1}
    found = agreement({"a": a, "b": b})
    assert found["top5_overlap"] == 4 / 5
    assert found["sign_agreement"] == 3 / 5  # m3 and m6 are 0 in one of them


# --- the whole question ------------------------------------------------------------------------


@pytest.mark.parametrize("predictor", [p for p in PREDICTORS if p[-4:] != "ward"])
@pytest.mark.parametrize("split", ["loto", "l2to", "halves"])
def test_every_predictor_answers_every_split(predictor, split):
    metrics, merges = tables(n_tasks=6)
    found = evaluate(
        metrics, merges, "tsv", predictor=predictor, split=split, target="raw", repeats=2
    )
    text = json.dumps(found, allow_nan=False)
    assert json.loads(text) == found
    assert found["n_pairs"] == 15 and found["n_dropped"] == 0
    names = set() if predictor == "paper-mlp" else {f"m{k}" for k in range(6)}
    assert set(found["coefficients"]) == names
    assert {"constant", "additive_task_effects", "single_task_accuracy"} <= set(found["baselines"])
    if split == "l2to":  # folds of one pair have no r; every pair is predicted once
        assert found["r_fold_mean"] is None and found["n_folds_undefined"] == 15
        assert found["r_pooled"] == pytest.approx(found["r_concatenated"])


def test_a_signal_is_found_and_its_qap_p_is_small():
    metrics, merges = tables(n_tasks=9, noise=0.002)
    found = evaluate(metrics, merges, "tsv", target="residual", split="l2to", qap=99, bootstrap=50)
    assert found["r_pooled"] > 0.5  # the metrics hold additive parts that the residual has not
    assert found["qap"]["statistic"] == "r_pooled" and found["qap"]["p"] <= 0.03
    assert found["qap"]["null_mean"] < 0.2
    assert found["bootstrap"]["low"] < found["r_pooled"] < 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "tvs"}, "did you mean 'tsv'"),
        ({"target": "row"}, "did you mean 'raw'"),
        ({"predictor": "rigde"}, "did you mean 'ridge'"),
        ({"split": "lot"}, "did you mean 'loto'"),
        ({"alpha": -1.0}, "above 0"),
        ({"predictor": "ols", "alpha": 1.0}, "no strength"),
    ],
)
def test_wrong_questions_say_what_is_known(change, words):
    metrics, merges = tables(n_tasks=5)
    with pytest.raises(MergelibError, match=words):
        evaluate(metrics, merges, **({"method": "tsv"} | change))


def test_wrong_tables_are_named():
    metrics, merges = tables(n_tasks=5)
    with pytest.raises(MergelibError, match="merges table: no column acc_b"):
        evaluate(metrics, merges.drop(columns="acc_b"), "tsv")
    with pytest.raises(MergelibError, match="T0, T1 occurs twice"):
        evaluate(pd.concat([metrics, metrics]), merges, "tsv")
    with pytest.raises(MergelibError, match="'m1' holds values that are no number"):
        evaluate(metrics.assign(m1="x"), merges, "tsv")
    with pytest.raises(MergelibError, match="only 0 pairs"):
        evaluate(metrics.assign(task_a="Q" + metrics.task_a), merges, "tsv")
