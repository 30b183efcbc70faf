"""The second world beside the benchmark, against numpy, scipy and literal loops."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mergelib.pairs.inference import permutations
from mergelib.pairs.tables import Tables
from mergelib.pairs.targets import additive_fit
from studies import second_world
from studies.inputs import pairs_of
from studies.two_sources import Source

pytestmark = pytest.mark.numeric

TASKS = [f"t{k}" for k in range(7)]
PAIRS = list(itertools.combinations(range(7), 2))
METHODS = ("tsv", "ties")


@pytest.fixture
def source() -> Source:
    rng = np.random.default_rng(5)
    keys = {key: [TASKS[p[j]] for p in PAIRS] for j, key in enumerate(("task_a", "task_b"))}
    metrics = pd.DataFrame(keys | {name: rng.normal(size=len(PAIRS)) for name in "abc"})
    single = np.array([0.9, 0.3, 0.5, 0.8, 0.49, 0.7, 0.95])
    merges = pd.concat(
        pd.DataFrame(
            keys
            | {"method": method, "seed": 0}
            | {f"acc_{s}": rng.uniform(0.2, 0.6, len(PAIRS)) for s in "ab"}
            | {f"single_{s}": single[[p[j] for p in PAIRS]] for j, s in enumerate("ab")}
        )
        for method in METHODS
    )
    tasks = pd.DataFrame({"task": TASKS, "fine_tuned": single, "n_test": 50 + np.arange(7)})
    held = Tables(metrics, merges, tasks, {}, METHODS)
    return Source("There", "there", held, pairs_of(held))


def normalized(source: Source) -> np.ndarray:
    return (source.pairs.accuracy / source.pairs.single).mean(axis=-1)


def test_the_committed_world_is_read_under_its_name(root):
    world = second_world.second_world(str(root / "book" / "tables" / "real20"))
    assert world.short == "real20" and len(world.pairs) == len(world.tables.metrics)
    assert set(world.methods) == set(world.tables.merges["method"])


def test_without_weak_tasks_their_pairs_are_gone(source):
    strong = second_world.without_weak(source)
    kept = {"t0", "t2", "t3", "t5", "t6"}  # one half is not less than one half
    assert set(strong.pairs.tasks) == set(strong.tables.tasks["task"]) == kept
    assert len(strong.pairs) == len(list(itertools.combinations(kept, 2)))


def test_what_task_effects_leave_beside_the_noise_of_test_splits(source):
    found = second_world.left_and_noise(source)
    y, ends = normalized(source), source.pairs.ends
    left = y - additive_fit(y, ends, len(TASKS))[0][ends].sum(axis=1)
    n = source.tables.tasks["n_test"].to_numpy()
    for k, method in enumerate(METHODS):
        assert found.loc[method, "left"] == pytest.approx(np.std(left[:, k], ddof=1))
        variance = []
        for row, (i, j) in enumerate(ends):
            (p, q), (s, t) = source.pairs.accuracy[row, k], source.pairs.single[row, k]
            variance.append((p * (1 - p) / n[i] / s**2 + q * (1 - q) / n[j] / t**2) / 4)
        assert found.loc[method, "noise"] == pytest.approx(np.sqrt(np.mean(variance)))


def test_noise_is_unknown_without_the_number_of_test_images(source):
    held = replace(source.tables, tasks=source.tables.tasks.drop(columns="n_test"))
    assert second_world.left_and_noise(replace(source, tables=held))["noise"].isna().all()


def test_a_metric_alone_and_its_null_are_plain_correlations(source):
    pairs, y = source.pairs, normalized(source)
    r = second_world.metric_r(pairs, "normalized", ["c", "a"], 4, 3)
    assert r.shape == (5, 2)
    orders = np.vstack([np.arange(7), permutations(7, 4, 3)])
    row = {frozenset(e): k for k, e in enumerate(pairs.ends.tolist())}
    for draw, order in enumerate(orders):
        moved = [y[row[frozenset((order[i], order[j]))]] for i, j in pairs.ends]
        for k, column in enumerate((2, 0)):
            each = [stats.pearsonr(pairs.X[:, column], m).statistic for m in np.transpose(moved)]
            assert r[draw, k] == pytest.approx(np.mean(each))


def test_the_largest_metric_is_held_against_the_largest_of_each_permutation():
    r = np.array([[0.1, -0.5], [0.2, 0.6], [-0.4, 0.3], [0.1, 0.0], [-0.5, 0.1]])
    point, p = second_world.largest(r)
    assert point == pytest.approx(np.quantile([0.6, 0.4, 0.1, 0.5], 0.95))
    assert p == pytest.approx(3 / 5)  # 0.6 and 0.5 reach 0.5


def test_two_worlds_are_alike_as_their_columns_correlate():
    rng = np.random.default_rng(2)
    one, two = rng.normal(size=(2, 9, 6))
    r, p = second_world.profiles_alike(one, two)
    each = [stats.pearsonr(one[0], row).statistic for row in two]
    assert r == pytest.approx(each[0])
    assert p == pytest.approx(np.mean([e >= each[0] for e in each]))


def test_the_foremost_metrics_of_any_column_keep_their_order():
    table = pd.DataFrame({"x": [0.1, -0.9, 0.2, 0.3], "y": [0.5, 0.1, 0.101, 0.1]}, list("abcd"))
    assert second_world.foremost_metrics(table, 1) == ["a", "b"]
    assert second_world.foremost_metrics(table, 2) == ["a", "b", "d"]  # printed, b and c are one


def test_chance_stands_after_the_fit_that_it_is_of():
    table = pd.DataFrame(
        {
            "model": ["ridge", "ridge", "constant", "constant"],
            "r": [0.5, 0.7, 0.1, np.nan],
            "null_95": [0.2, 0.4, np.nan, np.nan],
        }
    )
    found = second_world.beside_chance(table, ("ridge", "constant"))
    assert list(found.index) == ["ridge", "null_95", "constant"]
    np.testing.assert_allclose(found, [0.6, 0.3, 0.1])
