"""Gains over a control against literal loops."""

import itertools

import numpy as np
import pandas as pd
import pytest

from mergelib.describe import outcomes
from mergelib.errors import MergelibError
from mergelib.gains import gains, retraining, summarize_gains

TASKS = ["c", "a", "b", "d"]
PAIRS = list(itertools.combinations(TASKS, 2))


@pytest.fixture
def merges() -> pd.DataFrame:
    rng = np.random.default_rng(2)
    rows = [
        (a, b, method, *rng.uniform(0.4, 0.9, 2), *rng.uniform(0.9, 1.0, 2), strength, seed)
        for strength, seed in itertools.product((0.0, 0.1, 1.0), (0, 1, 2))
        for (a, b), method in itertools.product(PAIRS, ("ties", "tsv"))
    ]
    names = [
        "task_a",
        "task_b",
        "method",
        "acc_a",
        "acc_b",
        "single_a",
        "single_b",
        "strength",
        "seed",
    ]
    return outcomes(pd.DataFrame(rows, columns=names))


def one(merges, pair, method, strength, seed):
    wanted = dict(task_a=pair[0], task_b=pair[1], method=method, strength=strength, seed=seed)
    row = merges[np.logical_and.reduce([merges[k] == v for k, v in wanted.items()])].iloc[0]
    return (row.acc_a / row.single_a + row.acc_b / row.single_b) / 2


def test_gains_pair_each_run_with_its_control(merges):
    shuffled = merges.sample(frac=1, random_state=0)
    found = gains(shuffled, "normalized")
    assert len(found) == 2 * 3 * 2 * len(PAIRS)
    for row in found.itertuples():
        pair = (row.task_a, row.task_b)
        expected = one(merges, pair, row.method, row.strength, row.seed)
        expected -= one(merges, pair, row.method, 0.0, row.seed)
        np.testing.assert_allclose(row.gain, expected, atol=1e-15)


def test_a_run_without_its_control_has_no_gain(merges):
    kept = merges[~((merges["strength"] == 0) & (merges["seed"] == 1))]
    assert set(gains(kept, "normalized")["seed"]) == {0, 2}
    with pytest.raises(MergelibError, match="no row has a control"):
        gains(merges[merges["strength"] > 0], "normalized")
    with pytest.raises(MergelibError, match="repeats a row"):
        gains(pd.concat([merges, merges.head(1)]), "normalized")
    with pytest.raises(MergelibError, match="no column strength"):
        gains(merges.drop(columns="strength"), "normalized")


def test_summary_averages_seeds_within_pairs(merges):
    table = gains(merges, "normalized")
    found = summarize_gains(table, draws=4000).set_index(["method", "strength"])
    assert len(found) == 4
    for (method, strength), row in found.iterrows():
        cells = np.array(
            [
                [
                    one(merges, pair, method, strength, seed) - one(merges, pair, method, 0.0, seed)
                    for pair in PAIRS
                ]
                for seed in (0, 1, 2)
            ]
        )
        assert (row["units"], row["seeds"]) == (6, 3)
        np.testing.assert_allclose(row["mean"], cells.mean())
        np.testing.assert_allclose(row["seed_sd"], np.std(cells.mean(axis=1), ddof=1))
        np.testing.assert_allclose(row["seed_min"], cells.mean(axis=1).min())
        np.testing.assert_allclose(row["seed_max"], cells.mean(axis=1).max())
        assert row["low"] <= row["mean"] <= row["high"]


def test_single_tasks_have_gains_too():
    rng = np.random.default_rng(0)
    rows = [(t, s, k, rng.uniform()) for t in TASKS for s in (0.0, 0.5) for k in (0, 1)]
    tasks = pd.DataFrame(rows, columns=["task", "strength", "seed", "fine_tuned"])
    table = gains(tasks, "fine_tuned", ["task"])
    found = summarize_gains(table, ["task"], draws=20000).iloc[0]
    means = tasks.groupby(["strength", "task"])["fine_tuned"].mean()
    each = (means[0.5] - means[0.0]).to_numpy()
    np.testing.assert_allclose(found["mean"], each.mean())
    # all samples of four tasks, exactly
    every = np.array([np.mean(s) for s in itertools.product(each, repeat=4)])
    np.testing.assert_allclose(
        [found["low"], found["high"]], np.quantile(every, [0.025, 0.975]), atol=0.01
    )


def test_retraining_compares_the_control_with_itself(merges):
    found = retraining(merges, "normalized").set_index(["method", "seed_a", "seed_b"])["change"]
    assert len(found) == 6
    for (method, a, b), change in found.items():
        expected = np.mean(
            [one(merges, p, method, 0.0, b) - one(merges, p, method, 0.0, a) for p in PAIRS]
        )
        np.testing.assert_allclose(change, expected, atol=1e-14)
    with pytest.raises(MergelibError, match="needs two or more"):
        retraining(merges[merges["seed"] == 0], "normalized")
