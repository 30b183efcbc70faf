"""Comparisons over all methods: nulls, ablations, sparsity, against slow and independent forms."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.linear_model import Lasso, LinearRegression
from sklearn.preprocessing import MinMaxScaler

from mergelib.core.store import read_table, write_table
from mergelib.metrics.registry import published_metrics
from mergelib.pairs.inference import permuted_targets
from mergelib.pairs.tables import Pairs, assemble
from mergelib.pairs.targets import target
from mergelib.predict.collinear import collinear_groups
from mergelib.predict.crossval import fold_seeds, held_out
from mergelib.predict.evaluate import evaluate
from mergelib.predict.qap import qap
from mergelib.predict.splits import fold_masks, inner_task_folds, splitter
from studies.category_fits import (
    ablation,
    beside_known,
    category_sets,
    redundancy,
    restrict,
)
from studies.compare import compare
from studies.display import grid
from studies.freeze import FITTED
from studies.inputs import PUBLISHED
from studies.l1_selection import (
    adam_spread,
    adam_strengths,
    adam_weights,
    beside_exact,
    lasso_strengths,
    shrink,
)
from studies.l1_stability import (
    FITS,
    again,
    checked_out_fits,
    counted,
    halves_coefficients,
    released_fits,
    released_return,
    selection,
    sign_constancy,
)
from studies.lasso import lasso_folds
from studies.method_fits import agreement_table, coefficient_table, compare_targets, held_out_table
from studies.nested_lasso import choose_ratio, nested_interval, nested_lasso, nested_table
from studies.quick_qap import batched_qap, held_out_map
from studies.spread import fold_interval

pytestmark = [pytest.mark.numeric, pytest.mark.slow]

METHODS = ("tsv", "ties", "isotropic")


@pytest.fixture(scope="module")
def tables():
    """Nine tasks, 36 pairs; eight metrics of four categories, two of them exactly tied."""
    rng = np.random.default_rng(1)
    tasks = [f"t{k}" for k in range(9)]
    i, j = np.triu_indices(9, 1)
    names = published_metrics()
    use = [names[k] for k in (0, 4, 5, 6, 13, 14, 19, 20)]
    factor = rng.normal(size=(9, len(use)))
    X = factor[i] + factor[j] + rng.normal(size=(36, len(use)))
    X[:, 3] = 2 - X[:, 2]
    metrics = pd.DataFrame(X, columns=use)
    metrics.insert(0, "task_a", [tasks[k] for k in i])
    metrics.insert(1, "task_b", [tasks[k] for k in j])
    single, rows = rng.uniform(0.8, 0.99, 9), []
    for method in METHODS:
        effect = rng.normal(0, 0.02, 9)
        for k, (a, b) in enumerate(zip(i, j, strict=True)):
            lost = 0.9 + effect[a] + effect[b] + 0.01 * X[k, 0] + rng.normal(0, 0.01)
            rows.append((tasks[a], tasks[b], method, single[a] * lost, single[b] * lost,
                         single[a], single[b], 0))  # fmt: skip
    columns = ["task_a", "task_b", "method", "acc_a", "acc_b", "single_a", "single_b", "seed"]
    known = pd.DataFrame(
        {"task": tasks, "zero_shot": rng.uniform(0.2, 0.6, 9), "fine_tuned": single * 0.999}
    )
    return metrics, pd.DataFrame(rows, columns=columns), known


@pytest.fixture(scope="module")
def pairs(tables):
    return assemble(*tables[:2], METHODS)


def masks(pairs, split="loto"):
    return fold_masks(splitter(split), pairs.ends, pairs.tasks)


# ---- Relabellings -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "split", "close"),
    [("ridge", "loto", 1e-9), ("ridge", "l2to", 1e-9), ("ols", "loto", 1e-7)],
)  # fmt: skip
def test_the_batched_null_is_the_one_of_draw_after_draw(pairs, name, split, close):
    y = target(pairs, "normalized")
    _, train, test = masks(pairs, split)
    asked = (name, pairs.X, y, pairs.ends, train, test, 4, None, 3, pairs.methods)
    quick, slow = batched_qap(*asked), qap(*asked)
    for s in slow.null:
        np.testing.assert_allclose(quick.observed[s], slow.observed[s], atol=close)
        np.testing.assert_allclose(quick.null[s], slow.null[s], atol=close)


def test_the_batched_null_of_an_adam_recipe(pairs):
    y = target(pairs, "normalized")
    _, train, test = masks(pairs)
    asked = ("paper-l1", pairs.X, y, pairs.ends, train, test, 4, None, 3, pairs.methods)
    quick, slow = batched_qap(*asked), qap(*asked)
    for s in slow.null:
        np.testing.assert_allclose(quick.observed[s], slow.observed[s], atol=2e-3)
        # weights around 0 change sign from step to step: rounding moves where they stop
        gap = np.abs(quick.null[s] - slow.null[s])
        assert np.median(gap) < 0.05 and gap.max() < 0.2


@pytest.mark.parametrize("split", ["loto", "l2to"])
@pytest.mark.parametrize("name", ["ridge", "ols"])
def test_the_null_of_an_incomplete_table_is_the_one_of_draw_after_draw(pairs, name, split):
    y, ends = target(pairs, "raw")[:-2], pairs.ends[:-2]
    _, train, test = fold_masks(splitter(split), ends)
    asked = (name, pairs.X[:-2], y, ends, train, test, 4, None, 3)
    quick, slow = batched_qap(*asked), qap(*asked)
    for s in slow.null:
        np.testing.assert_allclose(quick.observed[s], slow.observed[s], atol=1e-9)
        np.testing.assert_allclose(quick.null[s], slow.null[s], atol=1e-9)
    assert np.isnan(permuted_targets(y, ends, 4, 3)).any()


def test_a_held_out_ridge_prediction_is_linear_in_the_targets(pairs):
    y = target(pairs, "normalized")
    _, train, test = masks(pairs)
    hat = held_out_map("ridge", pairs.X, train, test, 1.0)
    fit = held_out("ridge", pairs.X, y, pairs.ends, train, test, 1.0)
    np.testing.assert_allclose(hat @ y, fit.prediction[test], atol=1e-12)
    assert np.abs(hat[np.repeat(test, test.sum(axis=1), axis=0)]).max() < 1e-12


# ---- Comparison -------------------------------------------------------------------------------


def test_the_table_says_what_the_single_questions_say(tables, pairs):
    table = compare(pairs, predictors=("ridge",), tasks=tables[2], relabel={"ridge": 6}, seed=2)
    assert list(dict.fromkeys(table["method"])) == list(METHODS)
    for method in METHODS:
        one = evaluate(*tables[:2], method, tasks=tables[2], qap=6, seed=2, keep_incomplete=True)
        rows = table[table["method"] == method].set_index("model")
        for name, found in {"ridge": one, **one["baselines"]}.items():
            for key in ("r_fold_mean", "r_concatenated", "r_pooled"):
                expected = np.nan if found[key] is None else found[key]
                assert rows.loc[name, key] == pytest.approx(expected, abs=1e-9, nan_ok=True)
        assert rows.loc["ridge", "p"] == one["qap"]["p"]
        assert rows.loc["ridge", "null_95"] == pytest.approx(one["qap"]["null_95"])
        folds = [fold["r"] for fold in one["folds"]]
        assert rows.loc["ridge", "r_fold_sd"] == pytest.approx(np.std(folds, ddof=1))
    ridge = table[table["model"] == "ridge"]
    assert (ridge["p_holm"] >= ridge["p"]).all()
    assert (ridge["low"] < ridge["r"]).all() and (ridge["r"] < ridge["high"]).all()
    assert table.loc[table["kind"] == "baseline", "p"].isna().all()


def test_targets_side_by_side_are_those_asked_one_by_one(pairs):
    table = (
        compare_targets(pairs, relabel=5, seed=1)
        .set_index(["split", "target", "method"])
        .sort_index()
    )
    assert len(table) == 2 * 3 * len(METHODS)
    for name in ("raw", "residual"):
        one = compare(pairs, name, "l2to", ("ridge",), relabel={"ridge": 5}, seed=1, draws=5)
        ridge = one[one["model"] == "ridge"].set_index("method")
        found = table.loc[("l2to", name)]
        for column in ("r", "null_95", "p"):
            np.testing.assert_allclose(found[column], ridge.loc[found.index, column])
        task_effects = one[one["model"] == "additive_task_effects"].set_index("method")["r"]
        np.testing.assert_allclose(found["additive"], task_effects.loc[found.index])


def test_without_zero_shot_accuracy_only_base_knowledge_is_undefined(tables, pairs):
    unknown = tables[2].assign(zero_shot=np.nan)
    for tasks in (unknown, unknown.drop(columns="zero_shot")):
        found = compare(pairs, predictors=("ridge",), tasks=tasks).set_index("model")
        assert found.loc["base_knowledge", "r"].isna().all()
    whole = compare(pairs, predictors=("ridge",), tasks=tables[2]).set_index("model")
    pd.testing.assert_frame_equal(
        found.drop(index="base_knowledge"), whole.drop(index="base_knowledge")
    )
    beside = beside_known(pairs, unknown, draws=5).set_index("features")
    asked = evaluate(*tables[:2], "tsv", split="l2to", keep_incomplete=True)
    assert beside.loc["metrics", "r"].iloc[0] == pytest.approx(asked["r_pooled"])
    assert beside.loc[["known", "both"], "r"].isna().all()
    assert beside[["difference", "low", "high"]].isna().all(axis=None)
    assert beside.loc["metrics", "n_metrics"].eq(len(pairs.metrics)).all()


def test_leave_two_out_speaks_of_the_pooled_r(pairs):
    table = compare(pairs, split="l2to", predictors=("ridge",), draws=200)
    row = table[table["model"] == "ridge"].iloc[0]
    assert row["r"] == row["r_pooled"] and row["low"] < row["r"] < row["high"]


def test_fold_interval_is_that_of_scipys_bootstrap():
    values = np.random.default_rng(0).normal(size=(20, 2))
    values[3, 1] = np.nan
    low, high = fold_interval(values, 20_000)
    for k in range(2):
        kept = values[~np.isnan(values[:, k]), k]
        found = stats.bootstrap((kept,), np.mean, method="percentile", n_resamples=20_000,
                                rng=np.random.default_rng(1)).confidence_interval  # fmt: skip
        assert low[k] == pytest.approx(found.low, abs=0.03)
        assert high[k] == pytest.approx(found.high, abs=0.03)


def test_held_out_table_gives_each_pair_once(pairs):
    table = held_out_table(pairs, "ties")
    assert len(table.drop_duplicates(["task_a", "task_b"])) == 36
    row = compare(pairs, predictors=("ridge",)).set_index(["method", "model"]).loc["ties"]
    for column, model in (("predicted", "ridge"), ("additive", "additive_task_effects")):
        r = np.corrcoef(table[column], table["actual"])[0, 1]
        assert r == pytest.approx(row.loc[model, "r_pooled"])


# ---- Coefficients, agreement ------------------------------------------------------------------


def test_tied_metrics_are_named_and_marked(pairs):
    found = coefficient_table(pairs, draws=50)
    tied = {name for group in collinear_groups(pairs.X, pairs.metrics) for name in group}
    assert set(found.loc[found["tied"], "metric"]) == tied
    assert len(found) == 3 * 8 and (found["low"] <= found["high"]).all()
    pair = found[found["metric"].isin(tied)].pivot(
        index="method", columns="metric", values="coefficient"
    )
    # ridge gives mirrored columns mirrored weights: neither is a finding of its own
    np.testing.assert_allclose(pair.iloc[:, 0], -pair.iloc[:, 1], atol=1e-9)


def test_agreement_beside_relabelled_tasks(pairs):
    totals, details = agreement_table(pairs, relabel={"ridge": 12}, k=3)
    y = target(pairs, "normalized")
    _, train, test = masks(pairs)
    coef = held_out("ridge", pairs.X, y, pairs.ends, train, test).coef.mean(axis=0)
    signs = [(coef[a] * coef[b] > 0).mean() for a, b in ((0, 1), (0, 2), (1, 2))]
    np.testing.assert_allclose(details["sign_agreement"], signs)
    seen = totals.set_index("statistic")
    assert seen.loc["sign_agreement", "value"] == pytest.approx(np.mean(signs))
    assert seen["p"].min() >= 1 / 13 and seen["p"].max() <= 1
    expected = np.corrcoef(y[:, 0], y[:, 1])[0, 1]
    assert details.loc[0, "target_r"] == pytest.approx(expected)


def test_agreement_of_an_incomplete_table_leaves_pairs_out_draw_by_draw(pairs):
    part = replace(pairs, X=pairs.X[:-2], ends=pairs.ends[:-2], accuracy=pairs.accuracy[:-2],
                   single=pairs.single[:-2])  # fmt: skip
    totals, _ = agreement_table(part, relabel={"ridge": 5}, k=3)
    y = target(part, "normalized")
    seen = []
    for moved in permuted_targets(y, part.ends, 5):
        rows = ~np.isnan(moved).any(axis=1)
        _, train, test = fold_masks(splitter("loto"), part.ends[rows], part.tasks)
        fit = held_out("ridge", part.X[rows], moved[rows], part.ends[rows], train, test)
        coef = fit.coef.mean(axis=0)
        seen.append(np.mean([(coef[a] * coef[b] > 0).mean() for a, b in ((0, 1), (0, 2), (1, 2))]))
    row = totals.set_index("statistic").loc["sign_agreement"]
    assert row["null_mean"] == pytest.approx(np.mean(seen))


# ---- Ablation ---------------------------------------------------------------------------------


def test_ablation_is_the_fit_on_the_other_metrics(tables, pairs):
    table = ablation(pairs, relabel=5, draws=100).set_index(["change", "category", "method"])
    for method in METHODS:
        one = evaluate(*tables[:2], method, exclude=("subspace",), keep_incomplete=True)
        whole = evaluate(*tables[:2], method, keep_incomplete=True)
        row = table.loc[("without", "subspace", method)]
        assert row["r"] == pytest.approx(one["r_fold_mean"])
        paired = [a["r"] - b["r"] for a, b in zip(one["folds"], whole["folds"], strict=True)]
        assert row["difference"] == pytest.approx(np.mean(paired))
        assert row["fold_sd"] == pytest.approx(np.std(paired, ddof=1))
        assert row["worse"] == pytest.approx(np.mean(np.array(paired) < 0))
        assert row["low"] <= row["difference"] <= row["high"]
        assert table.loc[("all", "", method), "difference"] == 0
    assert table["n_metrics"].to_dict()[("only", "activation", "tsv")] == 2
    assert len(table) == 3 * len(category_sets(pairs))


def test_ablation_of_pooled_predictions_and_of_several_starts(pairs):
    two = ablation(pairs, split="l2to", draws=50, changes=("without",))
    assert set(two["change"]) == {"all", "without"}
    kept = two[two["change"] == "without"]
    assert (kept["low"] <= kept["high"]).all()
    random = ablation(pairs, predictor="paper-l1", starts=2, draws=20)
    assert (random.loc[random["change"] != "all", "start_sd"] > 0).any()
    y = target(pairs, "normalized")
    _, train, test = masks(pairs)
    part = restrict(pairs, [m for m in pairs.metrics if m.startswith("activation")])
    r = []
    for seed in (0, 1):
        seeds = fold_seeds(seed, pairs.methods, len(train))
        fit = held_out("paper-l1", part.X, y, pairs.ends, train, test, None, seeds)
        r.append(np.mean([
            np.corrcoef(fit.prediction[k, rows, 0], y[rows, 0])[0, 1]
            for k, rows in enumerate(test)
        ]))  # fmt: skip
    row = random.set_index(["change", "category", "method"]).loc[("only", "activation", "tsv")]
    assert row["r"] == pytest.approx(np.mean(r), abs=1e-3)


def test_metrics_beside_what_is_known_before_merging(tables, pairs):
    known = tables[2].assign(n_classes=np.arange(2, 11), n_train=np.arange(100, 1000, 100))
    table = beside_known(pairs, known, relabel=4, draws=50).set_index(["features", "method"])
    asked = {"tasks": known, "split": "l2to", "keep_incomplete": True}
    both = evaluate(*tables[:2], "ties", **asked, task_covariates=True)
    metrics = evaluate(*tables[:2], "ties", **asked)
    assert table.loc[("both", "ties"), "r"] == pytest.approx(both["r_pooled"])
    assert table.loc[("metrics", "ties"), "r"] == pytest.approx(metrics["r_pooled"])
    row = table.loc[("both", "ties")]
    assert row["difference"] == pytest.approx(row["r"] - table.loc[("known", "ties"), "r"])
    assert table.loc["known", "n_metrics"].eq(10).all()


def test_redundancy_is_adjusted_r_squared_on_the_other_categories(pairs):
    table = redundancy(pairs).set_index("metric")
    name = "subspace_overlap"
    of = dict(zip(table.index, table["category"], strict=True))
    others = [k for k, m in enumerate(pairs.metrics) if of[m] != of[name]]
    X, y = pairs.X[:, others], pairs.X[:, pairs.metrics.index(name)]
    r2 = LinearRegression().fit(X, y).score(X, y)
    p = np.linalg.matrix_rank(X - X.mean(axis=0))
    assert table.loc[name, "r2_others"] == pytest.approx(1 - (1 - r2) * 35 / (35 - p))
    best = max(others, key=lambda k: abs(np.corrcoef(pairs.X[:, k], y)[0, 1]))
    assert table.loc[name, "nearest"] == pairs.metrics[best]
    single = pairs.single.mean(axis=(1, 2))
    assert table.loc[name, "r_single"] == pytest.approx(stats.pearsonr(y, single)[0])


# ---- Sparsity ---------------------------------------------------------------------------------


def test_lasso_path_is_scikit_learns_and_meets_the_optimality_conditions(pairs):
    y = target(pairs, "normalized")
    _, train, _ = masks(pairs)
    model = lasso_folds(pairs.X, y, train, (0.8, 0.3, 0.05), tolerance=1e-12, sweeps=20_000)
    forecast = model.predict(pairs.X)
    for k in (0, 5):
        rows = train[k]
        scale = MinMaxScaler((-1, 1)).fit(pairs.X[rows])
        Z = scale.transform(pairs.X[rows])
        for j in range(3):
            for g in range(3):
                size = y[rows, j].std()
                other = Lasso(model.alpha[k, j, g] / size, tol=1e-12, max_iter=100_000)
                other.fit(Z, y[rows, j] / size)
                expected = other.predict(scale.transform(pairs.X)) * size
                np.testing.assert_allclose(forecast[k, :, j, g], expected, atol=1e-7)
                Zc, yc = Z - Z.mean(axis=0), y[rows, j] - y[rows, j].mean()
                w = model.coef[k, j, g]
                pull = Zc.T @ (yc - Zc @ w) / rows.sum() / model.alpha[k, j, g]
                assert np.abs(pull).max() < 1 + 1e-4
                np.testing.assert_allclose(pull[w != 0], np.sign(w[w != 0]), atol=1e-4)
    assert (lasso_folds(pairs.X, y, train, (1.0,)).coef == 0).all()
    mirror = pairs.metrics.index("effective_rank_mergeability_score")
    assert (lasso_folds(pairs.X, y, train).coef[..., mirror] == 0).all()
    assert (lasso_folds(pairs.X, y, train).coef[..., mirror - 1] != 0).any()
    assert np.isfinite(lasso_folds(pairs.X, 0 * y + 0.9, train, (0.5,)).intercept).all()


def test_the_penalty_is_chosen_by_inner_folds_alone(pairs):
    y, ratios = target(pairs, "normalized"), (0.7, 0.2, 0.02)
    _, train, test = masks(pairs)
    chosen = choose_ratio(pairs.X, y, pairs.ends, train, ratios)
    k = 4
    inner_train, inner_test = inner_task_folds(pairs.ends, train[k : k + 1])
    error = np.zeros((3, len(ratios)))
    for inside, outside in zip(inner_train[0], inner_test[0], strict=True):
        if outside.any():
            forecast = lasso_folds(pairs.X, y, inside[None], ratios).predict(pairs.X)[0]
            error += ((forecast[outside] - y[outside][..., None]) ** 2).sum(axis=0)
    np.testing.assert_array_equal(chosen[k], error.argmin(axis=1))
    moved = np.where(test[k][:, None], 7.0, y)  # the test pairs are not looked at
    np.testing.assert_array_equal(
        choose_ratio(pairs.X, moved, pairs.ends, train[k : k + 1], ratios)[0], chosen[k]
    )


def test_nested_lasso_and_its_tables(pairs):
    fit = nested_lasso(pairs, ratios=(0.7, 0.2, 0.02))
    table = nested_table(pairs, fit)
    y = target(pairs, "normalized")
    r = [
        stats.pearsonr(fit.prediction[k, rows, 1], y[rows, 1])[0]
        for k, rows in enumerate(fit.test)
        if np.ptp(fit.prediction[k, rows, 1]) > 0
    ]
    assert table.loc[1, "r_fold_mean"] == pytest.approx(np.mean(r))
    low, high = nested_interval(pairs, fit, draws=4000)
    rng = np.random.default_rng(7)
    drawn = [rng.choice(r, len(r)).mean() for _ in range(4000)]
    for found, point in ((low, 0.025), (high, 0.975)):
        assert found[1] == pytest.approx(np.quantile(drawn, point), abs=0.1 * np.std(r))
    chosen = selection(pairs, fit.coef)
    row = chosen[(chosen["method"] == "ties") & (chosen["metric"] == pairs.metrics[0])].iloc[0]
    weights = fit.coef[:, 1, 0]
    assert row["frequency"] == pytest.approx((weights != 0).mean())
    assert row["mean"] == pytest.approx(weights.mean())
    path = lasso_strengths(pairs, ratios=(0.7, 0.2, 0.02), relabel=3)
    assert (path.groupby("method")["n_metrics"].diff().dropna() > 0).all()
    assert path["null_mean"].notna().all()


def test_the_paths_null_of_an_incomplete_table_leaves_pairs_out(pairs):
    held = {**vars(pairs), "ends": pairs.ends[:-1], "X": pairs.X[:-1]}
    part = Pairs(**held | {"accuracy": pairs.accuracy[:-1], "single": pairs.single[:-1]})
    y = target(part, "normalized")
    table = lasso_strengths(part, ratios=(0.5, 0.1), relabel=3)
    _, train, test = masks(part)
    null = []
    for moved in permuted_targets(y, part.ends, 3, 0):
        valid = ~np.isnan(moved).any(axis=1)
        assert valid.sum() < len(part)
        forecast = lasso_folds(part.X, moved, train & valid, (0.1,), 1e-3, 200).predict(part.X)
        null.append(np.mean([
            stats.pearsonr(forecast[k, rows & valid, 2, 0], moved[rows & valid, 2])[0]
            for k, rows in enumerate(test)
        ]))  # fmt: skip
    row = table[(table["method"] == "isotropic") & (table["ratio"] == 0.1)].iloc[0]
    assert row["null_mean"] == pytest.approx(np.mean(null), abs=0.02)


def test_selection_in_halves_that_share_no_pair(pairs):
    seen = halves_coefficients(pairs, [0.2, 0.2, 0.2], repeats=3)
    assert seen.shape == (6, 3, len(pairs.metrics))
    chance = halves_coefficients(pairs, [0.2, 0.2, 0.2], repeats=3, relabelled=True)
    assert not np.allclose(seen, chance)


def test_shrinking_weights_lowers_the_published_objective_and_moves_no_prediction(pairs):
    w, X, y = adam_weights(pairs, "tsv")
    table = shrink(w, X, y, 1.0, (1.0, 0.1, 0.01))
    r = stats.pearsonr(X @ w, y)[0]
    np.testing.assert_allclose(table["r"], r)
    np.testing.assert_allclose(table["objective"], -r + np.abs(w).sum() * table["factor"])
    assert table["objective"].is_monotonic_decreasing


def test_the_published_optimizer_stays_below_the_exact_maximum(pairs):
    table = beside_exact(pairs).set_index("method")
    assert (table["r_adam"] <= table["r_max"] + 1e-9).all()
    assert (table["r_adam_l1"] <= table["r_lasso"] + 1e-6).all()
    w, X, y = adam_weights(pairs, "ties")
    scores = np.abs(w).sum() / np.std(X @ w) / np.sqrt(len(y))
    assert table.loc["ties", "l1_norm"] == pytest.approx(scores)
    fit = LinearRegression().fit(X, y)
    assert table.loc["ties", "r_max"] == pytest.approx(np.sqrt(fit.score(X, y)))


@pytest.mark.parametrize("setting", FITTED)
def test_the_frozen_fits_are_those_of_a_checkout(setting, released, tmp_path):
    path = tmp_path / FITS
    write_table(path, checked_out_fits(setting, released))
    assert path.read_bytes() == (PUBLISHED / setting / FITS).read_bytes()


def test_released_fits_and_whether_their_metrics_come_back(pairs):
    sizes, kept = released_fits(read_table(PUBLISHED / "ViT-B-16_AdamW" / FITS))
    of = sizes.set_index("method")
    # published: 64.0 % etc. come from these folds; stored per-fold r 0.544 on average
    assert of["r_fold_mean"].mean() == pytest.approx(0.544, abs=5e-4)
    assert (of["folds"] == 20).all()
    row = kept.set_index(["method", "metric"]).loc[("tsv", "encoder_gradient_l2_distance")]
    assert row["frequency"] == 1 and row["positive"] == 0  # in every fold, below zero
    assert kept.groupby("method")["frequency"].sum().to_dict() == pytest.approx(
        of["n_metrics"].to_dict()
    )
    back = released_return(kept[kept["metric"].isin(pairs.metrics)], pairs, [0.2] * 3, repeats=2)
    assert set(back["method"]) == {"tsv", "ties"} and back["halves"].between(0, 1).all()


def test_again_and_again_is_counted_by_kind_of_fit(pairs):
    nested = nested_lasso(pairs)
    table = again(pairs, nested.coef, [0.2] * 3, repeats=2)
    folds = selection(pairs, nested.coef)
    np.testing.assert_array_equal(table["frequency_folds"], folds["frequency"])
    halves = halves_coefficients(pairs, [0.2] * 3, repeats=2)
    some = [m for m in range(3) for _ in pairs.metrics], list(range(len(pairs.metrics))) * 3
    signs = np.sign(halves[:, some[0], some[1]])
    often = (signs != 0).mean(axis=0)
    np.testing.assert_allclose(table["frequency_halves"], often)
    up, down = (signs > 0).sum(axis=0), (signs < 0).sum(axis=0)
    common = np.maximum(up, down)[often >= 0.2].sum() / (up + down)[often >= 0.2].sum()
    assert sign_constancy(table)["halves"] == pytest.approx(common)


def test_what_comes_back_is_counted_at_its_edges():
    back = pd.DataFrame(
        {
            "method": ["tsv"] * 4 + ["ties"],
            "released": [0.8, 0.9, 0.75, 1, 0.8],
            "halves": [0.8, 0.9, 1, 0.3, 0.1],
            "chance": [0.6, 0.6, 0, 0, 0],
        }
    )
    found = counted(back)
    assert found.loc["tsv"].to_dict() == {"kept": 3, "back": 2, "beyond": 2}
    assert found.loc["ties"].to_dict() == {"kept": 1, "back": 0, "beyond": 0}


def test_published_strengths_agree_with_single_fits(pairs):
    table = adam_strengths(pairs, strengths=(0.0, 1.0))
    y = target(pairs, "normalized")
    _, train, test = masks(pairs)
    seeds = fold_seeds(0, pairs.methods, len(train))
    for strength in (0.0, 1.0):
        fit = held_out("paper-l1", pairs.X, y, pairs.ends, train, test, strength, seeds)
        row = table[table["strength"] == strength]
        norm = np.abs(fit.coef).sum(-1).mean(axis=0)
        np.testing.assert_allclose(row["l1_norm"], norm, rtol=1e-3)
        np.testing.assert_allclose(row["n_metrics"], (fit.coef != 0).sum(-1).mean(0), atol=0.3)
        inside = [
            np.mean([
                np.corrcoef(fit.prediction[k, rows, j], y[rows, j])[0, 1]
                for k, rows in enumerate(train)
            ])
            for j in range(3)
        ]  # fmt: skip
        np.testing.assert_allclose(row["r_train"], inside, atol=1e-4)


def test_spread_over_starts_is_that_of_single_fits(pairs):
    table = adam_spread(pairs, repeats=3)
    y = target(pairs, "normalized")
    _, train, test = masks(pairs)
    r = []
    for seed in range(3):
        seeds = fold_seeds(seed, pairs.methods, len(train))
        fit = held_out("paper-l1", pairs.X, y, pairs.ends, train, test, None, seeds)
        r.append([
            np.mean([
                np.corrcoef(fit.prediction[k, rows, j], y[rows, j])[0, 1]
                for k, rows in enumerate(test)
            ])
            for j in range(3)
        ])  # fmt: skip
    np.testing.assert_allclose(table["r"], r[0], atol=1e-6)
    np.testing.assert_allclose(table["start_sd"], np.std(r, axis=0, ddof=1), atol=1e-6)
    assert (table["rounding_most"] <= 2 * 3 * table["rounding_sd"] + 1e-12).all()


# ---- Tables as the book prints them -----------------------------------------------------------


def test_long_tables_are_spread_out_in_order():
    frame = pd.DataFrame({"a": ["y", "y", "x", "x"], "b": ["q", "p"] * 2,
                          "v": [0.126, -0.001, np.nan, 2.0]})  # fmt: skip
    wide = grid(frame, "a", "b", "v")
    assert list(wide.index) == ["y", "x"] and list(wide.columns) == ["q", "p"]
    assert wide.loc["y"].tolist() == [0.126, -0.001] and wide.loc["x", "p"] == 2.0
