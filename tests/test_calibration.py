"""Calibration sizes against scipy, scikit-learn, literal loops and the released summaries."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from mergelib.core.errors import MergelibError
from mergelib.pairs.inference import permutations, permuted, task_weights
from mergelib.pairs.targets import outcome_cube
from mergelib.published.released import read_setting
from studies import calibration_size
from studies.calibration_tables import FILE, SETTING, checked_out_sizes, read_sizes, write_sizes
from studies.inputs import PUBLISHED
from studies.ranks import bootstrap_rho, qap_rho, rho, weighted_ranks

pytestmark = [pytest.mark.numeric, pytest.mark.slow]

ACTIVATION, GRADIENT = "activation_dot_product", "encoder_gradient_l2_distance"


def ends_of(n_tasks: int) -> np.ndarray:
    return np.array(list(itertools.combinations(range(n_tasks), 2)))


def named(ends: np.ndarray) -> dict[str, list[str]]:
    return {key: [f"T{k}" for k in ends[:, j]] for j, key in enumerate(("task_a", "task_b"))}


def sizes_table(ends: np.ndarray, sizes=(2, 4), seed=0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    parts = [
        pd.DataFrame(
            {"size": size, **named(ends)}
            | {ACTIVATION: rng.normal(size=len(ends)), GRADIENT: rng.normal(size=len(ends))}
        )
        for size in sizes
    ]
    return pd.concat(parts, ignore_index=True)


def merges_table(ends: np.ndarray, methods=("tsv", "ties"), seed=1) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    parts = [
        pd.DataFrame(named(ends) | {"method": method})
        .assign(acc_a=rng.uniform(0.5, 0.9, len(ends)), acc_b=rng.uniform(0.5, 0.9, len(ends)))
        .assign(single_a=0.9, single_b=0.8, seed=0)
        for method in methods
    ]
    return pd.concat(parts, ignore_index=True)


def test_ranks_in_a_bootstrap_sample_are_those_of_the_sample_written_out():
    rng = np.random.default_rng(0)
    ends = ends_of(7)
    x, y = rng.integers(0, 8, size=(2, len(ends))).astype(float)  # with ties
    weights = task_weights(ends, 20, 3)
    ranks = weighted_ranks(x, weights)
    found = bootstrap_rho(x, y, ends, 20, 3)
    for w, rank, value in zip(weights.astype(int), ranks, found, strict=True):
        written = np.repeat(rank, w)
        np.testing.assert_allclose(written, stats.rankdata(np.repeat(x, w)))
        expected = stats.spearmanr(np.repeat(x, w), np.repeat(y, w)).statistic
        np.testing.assert_allclose(value, expected, atol=1e-12)
    np.testing.assert_allclose(rho(x, y), stats.spearmanr(x, y).statistic)


def test_a_relabelled_rho_leaves_out_the_pairs_it_does_not_know():
    rng = np.random.default_rng(0)
    ends = ends_of(6)[:-2]  # two pairs are missing
    x, y = rng.normal(size=(2, len(ends)))
    known = {frozenset(e): v for e, v in zip(ends.tolist(), y, strict=True)}
    orders = np.random.default_rng([4, 1])
    for value in qap_rho(x, y, ends, 10, 4):
        order = orders.permutation(6)
        moved = [known.get(frozenset((order[i], order[j]))) for i, j in ends]
        both = [(a, b) for a, b in zip(x, moved, strict=True) if b is not None]
        a, b = np.array(both).T
        # ranks of x among the pairs that stay
        np.testing.assert_allclose(value, stats.spearmanr(a, b).statistic, atol=1e-12)


def test_the_cube_holds_every_merged_pair_and_fills_only_when_asked():
    ends = ends_of(5)
    merges = merges_table(ends)
    lost = (merges["method"] == "ties") & (merges["task_a"] == "T1") & (merges["task_b"] == "T3")
    part, tasks = merges[~lost], [f"T{k}" for k in range(5)]
    cube = outcome_cube(part, tasks, ["tsv", "ties"], "normalized")
    assert np.isnan(cube[1, 3, 1]) and not np.isnan(cube[1, 3, 0])
    assert np.isnan(np.diagonal(cube)).all()
    one = merges.iloc[2]  # (T0, T3) by tsv
    expected = (one["acc_a"] / one["single_a"] + one["acc_b"] / one["single_b"]) / 2
    np.testing.assert_allclose([cube[0, 3, 0], cube[3, 0, 0]], expected)

    filled = outcome_cube(part, tasks, ["tsv", "ties"], "normalized", fill=True)
    np.testing.assert_array_equal(filled[~np.isnan(cube)], cube[~np.isnan(cube)])
    held = np.array([(i, j) for i, j in ends if (i, j) != (1, 3)])
    design = np.zeros((len(held), 5))
    for k, (i, j) in enumerate(held):
        design[k, [i, j]] = 1
    effects = np.linalg.solve(design.T @ design, design.T @ cube[held[:, 0], held[:, 1], 1])
    np.testing.assert_allclose(filled[1, 3, 1], effects[1] + effects[3])
    left = outcome_cube(part, tasks, ["ties"], "residual")[..., 0]
    np.testing.assert_allclose(np.nansum(left, axis=0), 0, atol=1e-12)

    order = permutations(5, 3)
    moved = permuted(cube, ends, order)
    i, j = ends[7]
    np.testing.assert_array_equal(moved[2, 7], cube[order[2, i], order[2, j]])
    with pytest.raises(MergelibError, match="method 'slerp'"):
        outcome_cube(part, tasks, ["slerp"])
    with pytest.raises(MergelibError, match="target 'loss'"):
        outcome_cube(part, tasks, ["tsv"], "loss")


def test_settling_separates_task_effects_from_the_pair():
    rng = np.random.default_rng(0)
    ends = ends_of(9)
    effect, pair = rng.normal(size=9), rng.normal(size=len(ends))
    planted = 10 * (effect[ends[:, 0]] + effect[ends[:, 1]])
    reference = pd.DataFrame(named(ends) | {GRADIENT: planted + pair, ACTIVATION: planted + pair})
    table = reference.assign(size=2)
    table[GRADIENT] = planted + rng.normal(size=len(ends))  # another pair's luck each time
    found = calibration_size.settle(table, reference, [ACTIVATION, GRADIENT], draws=50)
    found = found.set_index("metric")
    assert found.loc[ACTIVATION, ["rho", "rho_pair"]].to_list() == pytest.approx([1, 1])
    expected = stats.spearmanr(table[GRADIENT], reference[GRADIENT]).statistic
    assert found.loc[GRADIENT, "rho"] == pytest.approx(expected)
    assert found.loc[GRADIENT, "additive"] > 0.95 and abs(found.loc[GRADIENT, "rho_pair"]) < 0.5
    design = (ends[:, :1] == np.arange(9)) * 1.0 + (ends[:, 1:] == np.arange(9))
    hat = design @ np.linalg.pinv(design)
    left = [v - hat @ v for v in (table[GRADIENT].to_numpy(), reference[GRADIENT].to_numpy())]
    assert found.loc[GRADIENT, "rho_pair"] == pytest.approx(stats.spearmanr(*left).statistic)
    x = table[GRADIENT].to_numpy()
    share = 1 - np.sum(left[0] ** 2) / np.sum((x - x.mean()) ** 2)
    assert found.loc[GRADIENT, "additive"] == pytest.approx(share)


def test_outcomes_are_correlated_over_the_pairs_that_are_known():
    ends = ends_of(6)
    table, merges = sizes_table(ends), merges_table(ends)
    table.loc[3, GRADIENT] = np.nan
    metrics = [ACTIVATION, GRADIENT]
    found = calibration_size.with_outcomes(table, merges, ["tsv"], metrics, "raw", draws=30)
    y = merges[merges["method"] == "tsv"][["acc_a", "acc_b"]].mean(axis=1).to_numpy()
    cube = outcome_cube(merges, [f"T{k}" for k in range(6)], ["tsv"], "raw")
    orders = permutations(6, 30)
    for _, row in found.iterrows():
        x = table.loc[table["size"] == row["size"], row["metric"]].to_numpy()
        kept = ~np.isnan(x)
        assert row["n_pairs"] == kept.sum()
        assert row["rho"] == pytest.approx(stats.spearmanr(x[kept], y[kept]).statistic)
        null = [
            abs(stats.spearmanr(x[kept], cube[o[ends[kept, 0]], o[ends[kept, 1]], 0]).statistic)
            for o in orders
        ]
        assert row["null_95"] == pytest.approx(np.quantile(null, 0.95))
        assert row["p"] == (1 + sum(v >= abs(row["rho"]) - 1e-12 for v in null)) / 31


def test_forecasts_are_ridge_with_tasks_left_out():
    ends = ends_of(7)
    table, merges = sizes_table(ends), merges_table(ends)
    rng = np.random.default_rng(5)
    weights = pd.DataFrame(named(ends) | {"task_vector_dot_product": rng.normal(size=len(ends))})
    found = calibration_size.forecasts(
        table,
        weights,
        merges,
        ["tsv"],
        ("residual", "normalized"),
        sets=("activation", "both"),
        draws=4,
    )
    assert found["target"].unique().tolist() == ["residual", "normalized"]
    summary = calibration_size.summarize_forecasts(found)
    assert summary["r"].tolist() == found["r"].tolist()  # of one method
    found = found[found["target"] == "normalized"]
    assert set(found["n_pairs"]) == {21}
    part = merges[merges["method"] == "tsv"]
    y = (part["acc_a"] / part["single_a"] + part["acc_b"] / part["single_b"]).to_numpy() / 2
    cube = outcome_cube(merges, [f"T{k}" for k in range(7)], ["tsv"])
    moved = [cube[o[ends[:, 0]], o[ends[:, 1]], 0] for o in permutations(7, 4)]
    at = table[table["size"] == 4].reset_index(drop=True)
    X = np.column_stack([at[ACTIVATION], at[GRADIENT], weights["task_vector_dot_product"]])

    def r(split: str, X: np.ndarray, y: np.ndarray) -> float:
        model = make_pipeline(MinMaxScaler((-1, 1)), Ridge(alpha=1.0))
        held = [{k} for k in range(7)] if split == "loto" else [set(e) for e in ends.tolist()]
        folds, once = [], []
        for out in held:
            inside = np.array([not out & set(e) for e in ends.tolist()])
            test = np.array([out <= set(e) for e in ends.tolist()])
            predicted = model.fit(X[inside], y[inside]).predict(X[test])
            once.extend(zip(predicted, y[test], strict=True))
            if split == "loto":
                folds.append(np.corrcoef(predicted, y[test])[0, 1])
        return np.mean(folds) if split == "loto" else np.corrcoef(np.array(once).T)[0, 1]

    for split in ("loto", "l2to"):
        for name, columns in (("activation", [0]), ("both", [0, 1, 2])):
            row = found[(found["split"] == split) & (found["features"] == name)]
            row = row[row["size"] == 4].iloc[0]
            assert row["r"] == pytest.approx(r(split, X[:, columns], y))
            null = [r(split, X[:, columns], v) for v in moved]
            assert row["null_mean"] == pytest.approx(np.mean(null))
            assert row["p"] == (1 + sum(v >= row["r"] for v in null)) / 5
    table.loc[:20, ACTIVATION] = np.nan
    with pytest.raises(MergelibError, match="every size"):
        calibration_size.forecasts(table, weights, merges, ["tsv"])


@pytest.mark.parametrize("size", [1, 2, 5, 8, 10, 30, 100, 200])
def test_the_published_factor_is_what_the_loop_makes_of_a_constant_gradient(size):
    total = sum(np.mean(np.ones(len(range(k, min(k + 8, size))))) for k in range(0, size, 8))
    assert calibration_size.published_scale(size) == pytest.approx(total / size)


# ---- the released tables ----------------------------------------------------------------------


def test_the_frozen_sizes_are_those_of_a_checkout(released, tmp_path):
    made = checked_out_sizes(released)
    write_sizes(made, tmp_path / FILE)
    assert (tmp_path / FILE).read_bytes() == (PUBLISHED / SETTING / FILE).read_bytes()
    pd.testing.assert_frame_equal(read_sizes(PUBLISHED / SETTING), made, check_exact=True)


def test_a_metric_that_is_no_float32_is_not_frozen(tmp_path):
    table = read_sizes(PUBLISHED / SETTING)
    table.loc[0, ACTIVATION] = 0.1
    with pytest.raises(MergelibError, match=f"{ACTIVATION} .*0.1.* is no float32"):
        write_sizes(table, tmp_path / FILE)
    assert not (tmp_path / FILE).exists()


def test_agreement_with_200_images_is_the_released_summary(released):
    table = read_sizes(PUBLISHED / SETTING)
    reference = table[table["size"] == 200].drop(columns="size")
    found = calibration_size.settle(table, reference, draws=1)
    theirs = pd.read_csv(
        released / "results" / "figs" / "calibration_sensitivity" / "summary_table.csv",
        index_col="Metric",
    )
    ours = found.pivot(index="metric", columns="size", values="rho").loc[theirs.index]
    np.testing.assert_allclose(ours, theirs, atol=5e-4)  # to three decimals
    assert ours.loc["encoder_gradient_cosine_similarity", 100] == pytest.approx(-0.023, abs=5e-4)


@pytest.mark.parametrize("method", ["arithmetic", "isotropic", "tsv"])
def test_correlations_with_raw_accuracy_are_the_released_ones(released, method):
    table = read_sizes(PUBLISHED / SETTING)
    merges = read_setting(released, SETTING).merges
    found = calibration_size.with_outcomes(table, merges, [method], target="raw", draws=0)
    theirs = pd.read_csv(
        released / "results" / "figs" / "calibration_sensitivity"
        / f"perf_correlation_{method}.csv",
        index_col="Metric",
    )  # fmt: skip
    ours = found.pivot(index="metric", columns="size", values="rho").loc[theirs.index]
    np.testing.assert_allclose(ours, theirs, atol=5e-4)


def test_the_encoder_gradients_shrink_as_recorded():
    found = calibration_size.scale(read_sizes(PUBLISHED / SETTING))
    expected = [3.07, 0.79, 0.73, 0.25, 0.16, 0.13]
    np.testing.assert_allclose(found["median"], expected, atol=6e-3)


def test_an_absent_size_is_named(tmp_path):
    with pytest.raises(MergelibError, match=r"calibration_sensitivity/2/pairwise_metrics_N20.json"):
        checked_out_sizes(tmp_path)


def test_a_design_is_compared_with_the_other_half_of_the_images():
    ends, parts = ends_of(6), []
    for heads, images, draw in itertools.product(("real", "random"), ("shared", "own"), (0, 1)):
        part = sizes_table(ends, seed=len(parts)).rename(columns={ACTIVATION: "x"})
        part[list(calibration_size.DATA_DRIVEN)] = np.nan
        part[GRADIENT] = np.random.default_rng(len(parts)).normal(size=len(part))
        if heads == "real":
            part[ACTIVATION] = part["x"]
        parts.append(part.assign(heads=heads, images=images, draw=draw))
    table = pd.concat(parts, ignore_index=True)
    found = calibration_size.settle_designs(table, draws=5).set_index(
        ["heads", "images", "metric", "size"]
    )
    assert len(found) == 2 * (2 + 2 + 1 + 1)
    key = ("random", "own", GRADIENT, 2)
    at = {k: table[(table["heads"] == "random") & (table["images"] == "own")
                   & (table["draw"] == k) & (table["size"] == n)][GRADIENT]
          for k, n in ((0, 2), (1, 4))}  # fmt: skip
    assert found.loc[key, "rho"] == pytest.approx(stats.spearmanr(at[0], at[1]).statistic)

    one = calibration_size.one_design(table, "random", "own", draw=1)
    assert list(one.columns) == ["size", "task_a", "task_b", *calibration_size.DATA_DRIVEN]
    real = table[(table["heads"] == "real") & (table["images"] == "shared") & (table["draw"] == 1)]
    np.testing.assert_array_equal(one[ACTIVATION], real[ACTIVATION])
    assert one[one["size"] == 4][GRADIENT].tolist() == at[1].tolist()
    with pytest.raises(MergelibError, match="no random heads with others images"):
        calibration_size.one_design(table, "random", "others")
