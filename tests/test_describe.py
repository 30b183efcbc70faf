"""Descriptions of the tables against literal loops, scipy and scikit-learn."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression

from mergelib.core.errors import MergelibError
from mergelib.metrics.registry import METRICS
from mergelib.pairs import tables
from studies import describe, description
from studies.additive import additive_share
from studies.plots import mosaic
from studies.spread import bootstrap_mean

pytestmark = pytest.mark.numeric

TASKS = ["c", "a", "d", "b", "e"]
PAIRS = list(itertools.combinations(TASKS, 2))


@pytest.fixture
def tasks() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "task": TASKS,
            "family": ["x", "x", "y", "y", "y"],
            "n_classes": [2, 4, 5, 10, 20],
            "n_test": [100, 200, 300, 50, 400],
            "n_calibration": [10, 20, 30, 40, 50],
            "zero_shot": [0.5, 0.9, 0.3, 0.2, 0.06],
            "fine_tuned": [0.9, 0.92, 0.999, 0.7, 0.8],
            "zero_shot_calibration": [0.1, 0.2, 0.3, 0.4, 0.5],
            "fine_tuned_calibration": [0.6, 0.7, 0.8, 0.9, 1.0],
        }
    )


@pytest.fixture
def merges(tasks) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    single = tasks.set_index("task")["fine_tuned"]
    rows = [
        (a, b, method, rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7), single[a], single[b], 0)
        for a, b in PAIRS
        for method in ("ties", "dare")
    ]
    names = ["task_a", "task_b", "method", "acc_a", "acc_b", "single_a", "single_b", "seed"]
    return pd.DataFrame(rows, columns=names)


def test_origin_names_source_edition_and_counts():
    meta = {"source": "glyph benchmark", "backbone": "glyph-vit", "edition": "corrected"}
    told = describe.origin(meta, pairs=190)
    assert told == "glyph benchmark, glyph-vit, corrected edition, n = 190 pairs"
    assert "not recorded" in describe.origin({})
    held = {"source": "released tables", "backbone": "ViT-B-16", "setting": "ViT-B-16_SGD"}
    assert describe.origin(held, pairs=173).startswith("released tables, ViT-B-16_SGD, ")


def test_standard_error_is_the_binomial_one():
    found = describe.standard_error([0.2, 0.9, 1.0], [50, 80, 30])
    expected = [stats.binom(n, p).std() / n for p, n in ((0.2, 50), (0.9, 80), (1.0, 30))]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_regime_takes_the_columns_of_its_split(tasks):
    test, calibration = describe.regime(tasks), describe.regime(tasks, "calibration")
    assert test["n"].tolist() == tasks["n_test"].tolist()
    assert test["chance"].tolist() == [0.5, 0.25, 0.2, 0.1, 0.05]
    assert test["fine_tuned"].tolist() == tasks["fine_tuned"].tolist()
    assert calibration["n"].tolist() == tasks["n_calibration"].tolist()
    assert calibration["zero_shot"].tolist() == tasks["zero_shot_calibration"].tolist()
    np.testing.assert_allclose(test["zero_shot_se"][2], np.sqrt(0.3 * 0.7 / 300))
    with pytest.raises(MergelibError, match="fine_tuned_calibration"):
        describe.regime(tasks.drop(columns="fine_tuned_calibration"), "calibration")


def test_regime_counts_against_a_loop(tasks):
    expected = dict.fromkeys(("above", "below", "between"), 0)
    for row in tasks.itertuples():
        chance, n = 1 / row.n_classes, row.n_test
        gap = row.fine_tuned * (1 - row.fine_tuned) / n + row.zero_shot * (1 - row.zero_shot) / n
        expected["above"] += row.zero_shot > chance + 2 * (chance * (1 - chance) / n) ** 0.5
        expected["below"] += row.zero_shot < row.fine_tuned - 2 * gap**0.5
        expected["between"] += 0.8 <= row.fine_tuned <= 0.995
    found = describe.regime_counts(describe.regime(tasks))
    assert list(found.values()) == [5, *expected.values()] == [5, 3, 4, 3]


def test_by_method_against_a_loop(merges):
    for value in ("raw", "normalized"):
        wide = describe.by_method(merges, value)
        assert list(wide.index) == PAIRS and list(wide.columns) == ["ties", "dare"]
        for row in merges.itertuples():
            unit = (row.single_a, row.single_b) if value == "normalized" else (1, 1)
            expected = (row.acc_a / unit[0] + row.acc_b / unit[1]) / 2
            found = wide.loc[(row.task_a, row.task_b), row.method]
            np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_by_method_keeps_a_missing_merge_missing_and_refuses_a_repeated_one(merges):
    wide = describe.by_method(merges.drop(index=merges.index[1]))
    assert wide["dare"].isna().sum() == 1 and wide["ties"].notna().all()
    with pytest.raises(MergelibError, match="twice"):
        describe.by_method(pd.concat([merges, merges.head(1)]))
    with pytest.raises(MergelibError, match="unknown value 'row'"):
        describe.by_method(merges, "row")
    with pytest.raises(MergelibError, match="above 0"):
        describe.by_method(merges.assign(single_a=0.0))


def test_bootstrap_draws_tasks_not_pairs(merges):
    y = describe.by_method(merges)["ties"]
    pair_ends = tables.ends(y.index)
    found = bootstrap_mean(y.to_numpy(), pair_ends, draws=20000, seed=1)
    value = {frozenset(pair): one for pair, one in y.items()}
    rng, literal = np.random.default_rng(99), []
    for _ in range(5000):
        drawn = rng.choice(TASKS, size=len(TASKS))
        values = [value[frozenset((a, b))] for a, b in itertools.combinations(drawn, 2) if a != b]
        if values:
            literal.append(np.mean(values))
    np.testing.assert_allclose(found.mean(), np.mean(literal), atol=0.004)
    np.testing.assert_allclose(found.std(), np.std(literal), rtol=0.05)
    assert found.std() > 1.1 * y.std() / np.sqrt(len(y))


def test_additive_share_is_the_r2_of_task_dummies(merges):
    y = describe.by_method(merges)["ties"]
    dummies = np.array([[task in pair for task in TASKS] for pair in PAIRS], dtype=float)
    expected = LinearRegression().fit(dummies, y).score(dummies, y)
    found = additive_share(y.to_numpy(), tables.ends(y.index))
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_additive_share_of_noise_is_its_chance_value(merges):
    wide = describe.by_method(merges)
    rng = np.random.default_rng(0)
    pair_ends = tables.ends(wide.index)
    shares = [additive_share(rng.normal(size=len(wide)), pair_ends) for _ in range(800)]
    chance = describe.summarize_methods(wide, draws=10)["additive_by_chance"]
    np.testing.assert_allclose(chance, 4 / 9)
    np.testing.assert_allclose(np.mean(shares), 4 / 9, atol=0.02)


def test_summary_of_methods_leaves_out_what_a_method_lacks(merges):
    wide = describe.by_method(merges.drop(index=merges.index[1]))
    found = describe.summarize_methods(wide, draws=500)
    assert found["pairs"].tolist() == [10, 9]
    for method in wide:
        np.testing.assert_allclose(found.loc[method, "mean"], np.nanmean(wide[method]))
        np.testing.assert_allclose(found.loc[method, "sd"], np.nanstd(wide[method], ddof=1))
        assert found.loc[method, "low"] < found.loc[method, "mean"] < found.loc[method, "high"]


def test_not_merging_against_a_loop(merges, tasks):
    pairs = describe.by_method(merges).index
    known = tasks.set_index("task")
    normalized = describe.not_merging(pairs, tasks)
    raw = describe.not_merging(pairs, tasks, "raw")
    for pair in pairs:
        a, b = known.loc[pair[0]], known.loc[pair[1]]
        zero = (a.zero_shot / a.fine_tuned + b.zero_shot / b.fine_tuned) / 2
        keep_a = (1 + 1 / b.n_classes / b.fine_tuned) / 2
        keep_b = (1 + 1 / a.n_classes / a.fine_tuned) / 2
        np.testing.assert_allclose(normalized.loc[pair], [zero, max(keep_a, keep_b)])
        keep_a, keep_b = a.fine_tuned + 1 / b.n_classes, b.fine_tuned + 1 / a.n_classes
        zero = (a.zero_shot + b.zero_shot) / 2
        np.testing.assert_allclose(raw.loc[pair], [zero, max(keep_a, keep_b) / 2])
    with pytest.raises(MergelibError, match="no row for e"):
        describe.not_merging(pairs, tasks.head(4))


def test_sampling_sd_against_simulated_test_splits(merges, tasks):
    rng = np.random.default_rng(0)
    n = tasks.set_index("task")["n_test"]
    found = description.sampling_sd(merges, tasks)
    for method, part in merges.groupby("method"):
        draws = sum(
            rng.binomial(part[f"task_{s}"].map(n), part[f"acc_{s}"], size=(20000, len(part)))
            / part[f"task_{s}"].map(n).to_numpy()
            / part[f"single_{s}"].to_numpy()
            / 2
            for s in "ab"
        )
        np.testing.assert_allclose(found[method], np.sqrt(draws.var(axis=0).mean()), rtol=0.02)


def test_clusters_join_columns_that_vary_together():
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(2, 100))
    table = pd.DataFrame(
        {"a": one, "b": two, "c": one + 0.1 * rng.normal(size=100), "d": two + 0.01 * one}
    )
    assert description.clusters(table.corr()) == [("a", "c"), ("b", "d")]
    assert description.clusters(table.corr(), above=-1.5) == [("a", "b", "c", "d")]


def test_family_contrast_against_all_relabellings(tasks):
    rng = np.random.default_rng(5)
    table = pd.DataFrame(PAIRS, columns=["task_a", "task_b"]).assign(
        one=rng.normal(size=10), two=rng.normal(size=10)
    )
    family = dict(zip(tasks["task"], tasks["family"], strict=True))
    found = description.family_contrast(table, family, ["one", "two"], draws=20000)

    def difference(name, names):
        z = stats.zscore(table[name], ddof=1)
        same = [names[a] == names[b] for a, b in PAIRS]
        inside = [v for v, s in zip(z, same, strict=True) if s]
        outside = [v for v, s in zip(z, same, strict=True) if not s]
        return np.mean(inside) - np.mean(outside)

    for name in ("one", "two"):
        seen = difference(name, family)
        null = [
            difference(name, dict(zip(TASKS, order, strict=True)))
            for order in itertools.permutations(family.values())
        ]
        np.testing.assert_allclose(found.loc[name, "difference"], seen, rtol=1e-12)
        exact = np.mean(np.abs(null) >= abs(seen) - 1e-12)
        np.testing.assert_allclose(found.loc[name, "p"], exact, atol=0.015)
        middle = table[name].to_numpy()[[family[a] == family[b] for a, b in PAIRS]].mean()
        np.testing.assert_allclose(found.loc[name, "within"], middle)
    assert found["n_within"].tolist() == [4, 4] and found["n_between"].tolist() == [6, 6]
    p = found["p"].sort_values()
    expected = np.minimum(1, np.maximum.accumulate(p.to_numpy() * [2, 1]))
    np.testing.assert_allclose(found.loc[p.index, "p_holm"], expected)
    # a family each: nothing lies within one
    alone = description.family_contrast(table, {t: t for t in TASKS}, ["one"], draws=10)
    assert alone[["difference", "p", "p_holm"]].isna().all(axis=None)
    with pytest.raises(MergelibError, match="no family is given for e"):
        description.family_contrast(table, {t: "x" for t in TASKS[:4]}, ["one"])


def test_redundant_metrics_show_as_registered():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 40, 6)) + 0.5
    gram = np.stack([(a**2).sum(1), (b**2).sum(1), (a * b).sum(1)])
    cosine = gram[2] / np.sqrt(gram[0] * gram[1])
    table = pd.DataFrame(
        {
            "task_vector_cosine_similarity": cosine,
            "weight_space_angle": np.degrees(np.arccos(cosine)),
            "effective_rank": 1.5 + 0.01 * cosine,
            "effective_rank_mergeability_score": 0.5 - 0.01 * cosine,
        }
    )
    found = description.redundant(table)
    assert list(found.index) == ["weight_space_angle", "effective_rank_mergeability_score"]
    angle = LinearRegression().fit(cosine[:, None], table["weight_space_angle"])
    r2 = angle.score(cosine[:, None], table["weight_space_angle"])
    np.testing.assert_allclose(found.loc["weight_space_angle", "linear"], r2, rtol=1e-8)
    assert r2 < 0.9999
    np.testing.assert_allclose(found["rank"], 1)
    np.testing.assert_allclose(found.loc["effective_rank_mergeability_score", "linear"], 1)


def test_metric_table_holds_what_was_seen():
    name = "task_vector_cosine_similarity"
    found = description.metric_table(pd.DataFrame({name: [0.5, -0.25, 0.0]})).loc[name]
    assert found[["min", "median", "max"]].tolist() == [-0.25, 0.0, 0.5]
    assert found["category"] == METRICS[name].category.replace("_", " ")
    assert found["range"] == "[-1, 1]"


def test_dimensions_against_pca():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 4)) @ rng.normal(size=(4, 7)) * np.logspace(-4, 3, 7)
    X = np.column_stack([X, np.full(60, 3.0)])  # a constant column spans nothing
    Z = stats.zscore(X[:, :7])
    share = PCA().fit(Z).explained_variance_ratio_
    found = description.dimensions(X)
    assert (found["columns"], found["rank"]) == (7, np.linalg.matrix_rank(Z, tol=1e-6))
    assert found["rank"] == 4
    for level in (95, 99):
        assert found[f"for_{level}"] == next(
            k for k in range(1, 8) if share[:k].sum() >= level / 100
        )
    np.testing.assert_allclose(found["effective"], 1 / np.sum(share**2))


def test_mosaic_puts_images_in_reading_order():
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 2, 4), np.uint8)
    found = mosaic(images, columns=3)
    assert found.shape == (3, 4, 12)
    np.testing.assert_array_equal(found[1, ::2, ::4], [[0, 1, 2], [3, 4, 5]])
    with pytest.raises(MergelibError, match="do not fill"):
        mosaic(images, columns=4)


def test_the_less_known_task_is_told_from_the_other():
    tasks = pd.DataFrame(
        {
            "task": ["a", "b", "c"],
            "zero_shot_calibration": [0.8, 0.2, 0.5],
            "fine_tuned_calibration": [0.9, 0.8, 0.5],
        }
    )
    rows = [
        ("a", "b", "x", 0.45, 0.40, 0.9, 0.8),
        ("a", "c", "x", 0.90, 0.25, 0.9, 0.5),
        ("b", "c", "x", 0.20, 0.50, 0.8, 0.5),
        ("a", "b", "y", 0.45, 0.60, 0.9, 0.8),
        ("a", "c", "y", 0.90, 0.30, 0.9, 0.5),
        ("b", "c", "y", 0.10, 0.50, 0.8, 0.5),
    ]
    names = ["task_a", "task_b", "method", "acc_a", "acc_b", "single_a", "single_b"]
    frame = description.by_knowledge(pd.DataFrame(rows, columns=names), tasks)
    assert np.allclose(frame["least_known"], [0.5, 1, 0.25, 0.75, 1, 0.125])  # b, a, b
    assert np.allclose(frame["best_known"], [0.5, 0.5, 1, 0.5, 0.6, 1])
    assert np.allclose(frame["both"], (frame["least_known"] + frame["best_known"]) / 2)
    strange = frame.assign(single_b=[0.8, 0.5, 0.4, 0.8, 0.5, 0.4])
    kept = description.of_the_same_models(strange, frame)
    assert kept["task_b"].tolist() == ["b", "c", "b", "c"] and set(kept["task_a"]) == {"a"}
    table = describe.compared(frame, "least_known", "x", draws=200)
    assert np.allclose(table.loc["x", ["mean", "difference", "low", "high"]], [1.75 / 3, 0, 0, 0])
    assert table.loc["y", "difference"] == pytest.approx((0.25 + 0 - 0.125) / 3)
    assert table.loc["y", "worse"] == pytest.approx(1 / 3)
    assert table.loc["y", "low"] <= table.loc["y", "difference"] <= table.loc["y", "high"]
    with pytest.raises(MergelibError, match="unknown method"):
        describe.compared(frame, "both", "z")
