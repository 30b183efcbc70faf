"""What the study of fine-tuning rules says, against sums written out on made tables."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mergelib.core.errors import MergelibError
from mergelib.core.store import write_json, write_table
from studies.training import results

pytestmark = pytest.mark.numeric

TASKS, SEEDS, METHODS = ("a", "b", "c", "d"), (1, 2, 3), ("tsv", "ties")
VARIANTS = [
    ("control", 0.0, 2),
    ("control", 0.0, 4),
    ("control", 0.0, 8),
    ("near", 0.5, 4),
    ("near", 0.7, 8),
    ("far", 1.0, 4),
]


def made(folder, seed=0):
    """Tables of three seeds, four tasks and two methods; more steps are better, "near" best."""
    rng = np.random.default_rng(seed)
    merges, many, tasks, metrics = [], [], [], []
    for rule, strength, steps in VARIANTS:
        for s in SEEDS:
            of = (rule, strength, steps, s)
            lift = {"control": 0.0, "near": 0.05, "far": -0.1}[rule]
            single = {t: 0.7 + 0.02 * steps + lift / 5 + rng.normal(0, 0.004) for t in TASKS}
            tasks += [(*of, t, 0.3, single[t], single[t], 1.0) for t in TASKS]
            for a, b in itertools.combinations(TASKS, 2):
                metrics.append((*of, a, b, rng.normal(), lift + rng.normal(0, 0.001)))
                for m in METHODS:
                    acc = 0.6 + 0.01 * steps + lift + rng.normal(0, 0.01, 2)
                    best = acc + 0.02
                    merges.append((*of, a, b, m, *acc, single[a], single[b], *best))
            many += [(*of, m, t, 0.5 + lift + 0.01 * s, 0.6 + lift) for m in METHODS for t in TASKS]
    key = ["rule", "strength", "steps", "seed"]
    pair = ["task_a", "task_b"]
    accuracy = ["acc_a", "acc_b", "single_a", "single_b", "best_a", "best_b"]
    frames = {
        "merges": pd.DataFrame(merges, columns=[*key, *pair, "method", *accuracy]),
        "many": pd.DataFrame(many, columns=[*key, "method", "task", "acc", "best"]),
        "tasks": pd.DataFrame(
            tasks,
            columns=[*key, "task", "zero_shot", "fine_tuned", "fine_tuned_calibration", "length"],
        ),
        "metrics": pd.DataFrame(metrics, columns=[*key, *pair, "noise", "driver"]),
    }
    frames["search"] = frames["scales"] = frames["tasks"]  # not asked here
    for name, frame in frames.items():
        write_table(folder / f"{name}.csv", frame)
    write_json(folder / "meta.json", {"name": "made"})
    return frames


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("results")
    made(place)
    return place


@pytest.fixture(scope="module")
def held(folder):
    return results.read(folder)


def mean_of(frame, variant, values):
    rule, strength, steps = variant
    here = (frame["rule"] == rule) & (frame["strength"] == strength) & (frame["steps"] == steps)
    return frame[here][list(values)].to_numpy().mean()


def test_a_gain_is_the_mean_over_merges_less_the_controls_of_the_same_steps(held):
    table = results.gains(held, draws=50).set_index(["rule", "strength", "steps"])
    assert list(table.index) == VARIANTS[3:]
    for variant in VARIANTS[3:]:
        control = ("control", 0.0, variant[2])
        row = table.loc[variant]
        for name, values, sign in (
            ("gain", ("acc_a", "acc_b"), 1),
            ("tuned", ("best_a", "best_b"), 1),
            ("lost", ("single_a", "single_b"), -1),
        ):
            change = sum(
                k * mean_of(held.merges, v, values) for k, v in ((1, variant), (-1, control))
            )
            assert row[name] == pytest.approx(sign * change, abs=1e-12), name
        assert row["raw"] == pytest.approx(mean_of(held.merges, variant, ("acc_a", "acc_b")))
        assert row["low"] < row["gain"] < row["high"]
        assert row["lost_low"] < row["lost"] < row["lost_high"]
    assert table.loc[("near", 0.5, 4), "low"] > 0 > table.loc[("far", 1.0, 4), "high"]


def test_a_rule_of_fewer_seeds_is_compared_with_controls_of_the_same(held):
    late, some = ("far", 1.0, 4), held.merges["seed"].isin(SEEDS[:1])
    of_late = pd.MultiIndex.from_frame(held.merges[results.NAMED]).isin([late])
    part = replace(held, merges=held.merges[~of_late | some])
    alone = replace(held, merges=held.merges[some])
    found, whole, first = (
        results.gains(each, draws=30, seed=1).set_index(results.NAMED)
        for each in (part, held, alone)
    )
    assert list(found.index) == list(whole.index)
    assert found.loc[late, "seeds"] == 1 and whole.loc[late, "seeds"] == len(SEEDS)
    pd.testing.assert_series_equal(found.loc[late], first.loc[late])
    pd.testing.assert_frame_equal(found.drop(index=late), whole.drop(index=late))
    first_method = results.by_method(part, late, draws=20)
    pd.testing.assert_frame_equal(first_method, results.by_method(alone, late, draws=20))
    lacking = held.merges["rule"] != "control"
    with pytest.raises(MergelibError, match="lacks a control of"):
        results.gains(replace(held, merges=held.merges[lacking]))


@pytest.mark.parametrize(
    ("name", "values"), [("equal", ("acc_a", "acc_b")), ("both", ("best_a", "best_b"))]
)
def test_at_equal_accuracy_is_read_off_the_line_of_controls(held, name, values):
    table = results.gains(held, draws=5).set_index(["rule", "strength", "steps"])
    single, raw = (
        [mean_of(held.merges, v, columns) for v in VARIANTS]
        for columns in (("single_a", "single_b"), values)
    )
    for k, variant in list(enumerate(VARIANTS))[3:]:
        row = table.loc[variant]
        if not single[0] <= single[k] <= single[2]:
            assert np.isnan(row[name])
            continue
        low = 0 if single[k] < single[1] else 1
        share = (single[k] - single[low]) / (single[low + 1] - single[low])
        there = raw[low] + share * (raw[low + 1] - raw[low])
        assert row[name] == pytest.approx(raw[k] - there, abs=1e-12)
    assert table[name].isna().sum() == 1  # the one above every control


def test_power_is_how_often_an_interval_of_a_normal_estimate_excludes_zero():
    draws = np.random.default_rng(0).normal(size=400_000)
    for effect, se in ((0.04, 0.02), (0.04, 0.01), (0.0, 0.02)):
        half = 1.96 * se
        often = (effect + se * draws > half).mean()
        found = results.power(pd.Series([-half]), pd.Series([half]), effect)
        assert found[0] == pytest.approx(often, abs=5 * 0.5 / len(draws) ** 0.5)


def test_the_interval_draws_tasks_and_seeds_each_apart(held):
    merges = held.merges
    index = merges.groupby(results.UNIT, sort=False)["raw"].mean().index
    drawn = results.weights(index, 300, 1)
    for row in drawn[:50]:
        by_seed = {s: row[index.get_level_values("seed") == s] for s in SEEDS}
        shown = [w for w in by_seed.values() if w.any()]
        if not shown:  # one task alone was drawn
            continue
        times = np.array([w.sum() for w in by_seed.values()]) / shown[0].sum()
        # every seed has the same weights of pairs, up to how often it was drawn
        for w in shown:
            np.testing.assert_allclose(w / w.sum(), shown[0] / shown[0].sum())
        whole = times / times.sum() * len(SEEDS)
        np.testing.assert_allclose(whole, whole.round(), atol=1e-12)
    # each unit once on average over many samples: E[times of a] E[times of b] = (T − 1) / T
    mean = results.weights(index, 4000, 2).mean(axis=0)
    np.testing.assert_allclose(mean, 1 - 1 / len(TASKS), atol=0.1)


def test_the_interval_of_a_gain_is_that_of_literal_draws(held):
    drawn = results.means(held.merges, "raw", 20, 3)
    merges = held.merges
    wide = merges.groupby([*results.UNIT, *results.NAMED], sort=False)["raw"].mean()
    index = wide.unstack(results.NAMED).index
    weights = results.weights(index, 20, 3)
    for k in range(20):
        if not weights[k].any():
            assert drawn.iloc[k + 1].isna().all()
            continue
        for variant in VARIANTS:
            total = top = 0.0
            for unit, w in zip(index, weights[k], strict=True):
                total += w
                top += w * wide.loc[(*unit, *variant)]
            assert drawn.iloc[k + 1][variant] == pytest.approx(top / total, rel=1e-12)
    table = results.gains(held, draws=20, seed=3).set_index(results.NAMED)
    column = ("near", 0.5, 4)
    change = (drawn[column] - drawn[("control", 0.0, 4)]).to_numpy()[1:]
    low, high = np.nanquantile(change, [0.025, 0.975])
    assert table.loc[column, ["low", "high"]].tolist() == pytest.approx([low, high])


def test_by_method_and_of_all(held):
    table = results.by_method(held, ("near", 0.7, 8), draws=30).set_index("method")
    for method in METHODS:
        part = held.merges[held.merges["method"] == method]
        for name, values in (("gain", ("acc_a", "acc_b")), ("tuned", ("best_a", "best_b"))):
            own, control = (mean_of(part, v, values) for v in (VARIANTS[4], VARIANTS[2]))
            assert table.loc[method, name] == pytest.approx(own - control, abs=1e-12)
        assert table.loc[method, "tuned_low"] < table.loc[method, "tuned_high"]
    every = results.of_all(held).set_index(results.NAMED)
    assert every.loc[("far", 1.0, 4), ["gain", "tuned"]].tolist() == pytest.approx([-0.1, -0.1])
    assert (every["seeds"] == 3).all()
    np.testing.assert_allclose(every["least"], every["most"], atol=1e-12)


def test_a_metric_that_moves_with_the_gain_is_seen(held):
    table = results.drivers(held).set_index("metric")
    assert list(table.index) == ["noise", "driver"]
    assert table.loc["driver", "r_variants"] > 0.99
    assert abs(table.loc["noise", "r_pairs"]) < 0.9
    assert table["n_variants"].tolist() == [3, 3] and table["n_pairs"].tolist() == [6, 6]


def test_a_missing_table_is_named(folder, tmp_path):
    for file in folder.iterdir():
        if file.name != "many.csv":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(MergelibError, match=r"many\.csv is missing"):
        results.read(tmp_path)
