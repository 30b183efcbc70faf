"""Gains over a control against literal loops."""

import itertools

import numpy as np
import pandas as pd
import pytest

from mergelib.core.errors import MergelibError
from mergelib.pairs.tables import outcomes
from studies.gains import against_others, gains, retraining, summarize_gains

pytestmark = [pytest.mark.numeric, pytest.mark.slow]

TASKS = ["c", "a", "b", "d"]
PAIRS = list(itertools.combinations(TASKS, 2))


@pytest.fixture
def merges() -> pd.DataFrame:
    rng = np.random.default_rng(2)
    rows = [
        (a, b, method, *rng.uniform(0.4, 0.9, 2), *rng.uniform(0.9, 1.0, 2), variant, run)
        for variant, run in itertools.product(("none", "weak", "strong"), ("0", "1", "2"))
        for (a, b), method in itertools.product(PAIRS, ("ties", "tsv"))
    ]
    accuracies = ["acc_a", "acc_b", "single_a", "single_b"]
    names = ["task_a", "task_b", "method", *accuracies, "variant", "run"]
    return outcomes(pd.DataFrame(rows, columns=names))


def one(merges, pair, method, variant, run):
    wanted = dict(task_a=pair[0], task_b=pair[1], method=method, variant=variant, run=run)
    row = merges[np.logical_and.reduce([merges[k] == v for k, v in wanted.items()])].iloc[0]
    return (row.acc_a / row.single_a + row.acc_b / row.single_b) / 2


def controls(merges, pair, method):
    return [one(merges, pair, method, "none", run) for run in "012"]


@pytest.mark.parametrize("paired", [True, False])
def test_gains_compare_each_run_with_its_control(merges, paired):
    shuffled = merges.sample(frac=1, random_state=0)
    found = gains(shuffled, "normalized", "none", paired=paired)
    assert len(found) == 2 * 3 * 2 * len(PAIRS)
    for row in found.itertuples():
        pair = (row.task_a, row.task_b)
        base = controls(merges, pair, row.method)
        expected = one(merges, pair, row.method, row.variant, row.run)
        expected -= base[int(row.run)] if paired else np.mean(base)
        np.testing.assert_allclose(row.gain, expected, atol=1e-15)


def test_a_run_without_its_control_has_no_gain(merges):
    kept = merges[~((merges["variant"] == "none") & (merges["run"] == "1"))]
    assert set(gains(kept, "normalized", "none")["run"]) == {"0", "2"}
    assert set(gains(kept, "normalized", "none", paired=False)["run"]) == {"0", "1", "2"}
    holed = merges.assign(normalized=merges["normalized"].where(merges["variant"] != "weak"))
    assert set(gains(holed, "normalized", "none")["variant"]) == {"strong"}
    with pytest.raises(MergelibError, match="no row has a control"):
        gains(merges[merges["variant"] != "none"], "normalized", "none")
    with pytest.raises(MergelibError, match="repeats a row"):
        gains(pd.concat([merges, merges.head(1)]), "normalized", "none")
    with pytest.raises(MergelibError, match="no column variant"):
        gains(merges.drop(columns="variant"), "normalized", "none")


def test_summary_averages_runs_within_pairs(merges):
    table = gains(merges, "normalized", "none")
    found = summarize_gains(table, draws=4000).set_index(["method", "variant"])
    assert len(found) == 4
    for (method, variant), row in found.iterrows():
        cells = np.array(
            [
                [
                    one(merges, pair, method, variant, run) - one(merges, pair, method, "none", run)
                    for pair in PAIRS
                ]
                for run in "012"
            ]
        )
        assert (row["units"], row["runs"]) == (6, 3)
        np.testing.assert_allclose(row["mean"], cells.mean())
        np.testing.assert_allclose(row["run_sd"], np.std(cells.mean(axis=1), ddof=1))
        np.testing.assert_allclose(row["run_min"], cells.mean(axis=1).min())
        np.testing.assert_allclose(row["run_max"], cells.mean(axis=1).max())
        assert row["low"] <= row["mean"] <= row["high"]
    each = summarize_gains(table, by=("variant", "run"), draws=50)
    assert len(each) == 12 and (each["runs"] == 1).all()


def test_single_tasks_have_gains_too():
    rng = np.random.default_rng(0)
    rows = [(t, s, k, rng.uniform()) for t in TASKS for s in ("none", "weak") for k in "01"]
    tasks = pd.DataFrame(rows, columns=["task", "variant", "run", "fine_tuned"])
    table = gains(tasks, "fine_tuned", "none", ["task"])
    found = summarize_gains(table, ["task"], draws=20000).iloc[0]
    means = tasks.groupby(["variant", "task"])["fine_tuned"].mean()
    each = (means["weak"] - means["none"]).to_numpy()
    np.testing.assert_allclose(found["mean"], each.mean())
    # all samples of four tasks, exactly
    every = np.array([np.mean(s) for s in itertools.product(each, repeat=4)])
    np.testing.assert_allclose(
        [found["low"], found["high"]], np.quantile(every, [0.025, 0.975]), atol=0.01
    )


def test_retraining_compares_the_control_with_itself(merges):
    found = retraining(merges, "normalized", "none").set_index(["method", "run_a", "run_b"])
    assert len(found) == 6
    for (method, a, b), row in found.iterrows():
        expected = np.mean(
            [one(merges, p, method, "none", b) - one(merges, p, method, "none", a) for p in PAIRS]
        )
        np.testing.assert_allclose(row["change"], expected, atol=1e-14)
    with pytest.raises(MergelibError, match="has 1 run"):
        retraining(merges[merges["run"] == "0"], "normalized", "none")


def test_a_control_run_is_compared_with_its_others(merges):
    holed = merges.drop(merges[(merges["run"] == "2") & (merges["variant"] == "none")].index[:3])
    lost = {(r.task_a, r.task_b, r.method) for r in merges.itertuples()} - {
        (r.task_a, r.task_b, r.method)
        for r in holed[(holed["run"] == "2") & (holed["variant"] == "none")].itertuples()
    }
    found = against_others(holed, "normalized", "none")
    assert len(found) == 3 * 2 * len(PAIRS) - len(lost) == 33
    for row in found.itertuples():
        base = controls(merges, (row.task_a, row.task_b), row.method)
        gone = (row.task_a, row.task_b, row.method) in lost
        others = [v for k, v in enumerate(base) if k != int(row.run) and not (gone and k == 2)]
        np.testing.assert_allclose(row.gain, base[int(row.run)] - np.mean(others), atol=1e-15)
