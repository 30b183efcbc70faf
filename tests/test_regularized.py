"""Studies of penalties: published anchors, names of released runs, literal sums."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest

from mergelib.core.errors import MergelibError
from studies import regularization
from studies.freeze import main
from studies.gains import against_others, retraining, summarize_gains
from studies.inputs import PUBLISHED as FROZEN
from studies.regularization import (
    DOWNLOADED,
    INERT,
    Study,
    beside_control,
    by_task,
    contents,
    control_over_base,
    denominators,
    published_gains,
    published_run,
    read_study,
    released_study,
    shared_results,
)
from studies.retrainings import FILES, checked_out, named, read_retrainings, write_retrainings

pytestmark = [pytest.mark.numeric, pytest.mark.slow]

SETTING = "ViT-B-16_AdamW"


@pytest.mark.parametrize(
    ("suffix", "variant", "run"),
    [
        ("", DOWNLOADED, DOWNLOADED),
        ("grad_magnitude", INERT, "grad_magnitude"),
        ("grad_magnitude_0.001", INERT, "grad_magnitude 0.001"),
        ("gargiulo_uv_0_0001", INERT, "gargiulo_uv 0.0001"),
        ("gargiulo_u_1e-05", INERT, "gargiulo_u 1e-05"),
        ("grad_magnitude_1_gargiulo_u_0_001", INERT, "grad_magnitude 1 + gargiulo_u 0.001"),
        ("tv_subspace_v_0.01", "tv_subspace_v 0.01", "tv_subspace_v 0.01"),
        (
            "tv_subspace_u_0.0001_gargiulo_u_0.0001",
            "tv_subspace_u 0.0001",
            "tv_subspace_u 0.0001 + gargiulo_u 0.0001",
        ),
        ("moderate_update_grad_magnitude", "moderate_update", "moderate_update + grad_magnitude"),
    ],
)
def test_names_of_released_runs(suffix, variant, run):
    assert named(suffix) == (variant, run)


def test_a_name_of_another_form_is_refused():
    with pytest.raises(MergelibError, match="'dropout_0.1' names no penalty"):
        named("dropout_0.1")
    with pytest.raises(MergelibError, match="ViT-B-32_AdamW has no regularized runs"):
        read_study(setting="ViT-B-32_AdamW")


# ---- A small study of the released form ---------------------------------------------------------

VARIANTS = (DOWNLOADED, INERT, "strong")


@pytest.fixture(scope="module")
def small():
    """Four tasks, two methods; the downloaded models once, two runs of each other variant."""
    rng = np.random.default_rng(0)
    runs = [(v, r) for v in VARIANTS for r in ("x", "y") if v != DOWNLOADED or r == "x"]
    single = {(t, v, r): rng.uniform(0.7, 0.9) for v, r in runs for t in "abcd"}
    rows = []
    for (v, r), (a, b), method in itertools.product(
        runs, itertools.combinations("abcd", 2), ("tsv", "ties")
    ):
        accuracy = rng.uniform(0.4, 0.7, 2)
        base, own = (
            np.array([single[t, *of] for t in (a, b)]) for of in ((DOWNLOADED, "x"), (v, r))
        )
        values = (accuracy.mean(), (accuracy / base).mean(), (accuracy / own).mean())
        rows.append((a, b, method, v, r, *accuracy, *base, *values))
    columns = ["acc_a", "acc_b", "base_a", "base_b", "raw", "fixed", "own"]
    merges = pd.DataFrame(rows, columns=["task_a", "task_b", "method", "variant", "run", *columns])
    tasks = pd.DataFrame(
        [(*of, value) for of, value in single.items()],
        columns=["task", "variant", "run", "fine_tuned"],
    )
    return Study(merges, merges, tasks, {"source": "test"})


def test_what_a_study_holds(small):
    table = contents(small)
    assert list(table.index) == list(VARIANTS)
    assert table["runs"].tolist() == [1, 2, 2] and (table["pairs"] == 6).all()
    assert shared_results(small.every).empty


def test_gains_by_task_and_by_denominator(small):
    frame = small.merges.set_index(["task_a", "task_b", "method", "variant", "run"])
    found = by_task(small)
    for task in "abcd":
        shares = []
        for a, b in itertools.combinations("abcd", 2):
            if task not in (a, b):
                continue
            side = "a" if a == task else "b"
            old = frame.loc[(a, b, "ties", DOWNLOADED, "x")]
            for r in "xy":
                new = frame.loc[(a, b, "ties", INERT, r)]
                shares.append((new[f"acc_{side}"] - old[f"acc_{side}"]) / old[f"base_{side}"])
        assert found.loc[task, "ties"] == pytest.approx(np.mean(shares))
    assert found.loc["all", "ties"] == pytest.approx(found.loc[list("abcd"), "ties"].mean())
    assert found.mean(axis=1).iloc[:4].is_monotonic_decreasing
    table = denominators(small).loc[("tsv", "strong")]
    for value in ("raw", "fixed", "own"):
        means = small.merges[small.merges["method"] == "tsv"].groupby("variant")[value].mean()
        assert table[value] == pytest.approx(means["strong"] - means[DOWNLOADED])
    assert table["runs"] == 2
    placebo = control_over_base(small, draws=20).set_index("method")
    expected = small.merges[small.merges["method"] == "tsv"].groupby("variant")["fixed"].mean()
    assert placebo.loc["tsv", "mean"] == pytest.approx(expected[INERT] - expected[DOWNLOADED])


def test_variants_beside_the_controls_runs(small):
    active = summarize_gains(small.gains(), draws=20)
    assert set(active["variant"]) == {"strong"}
    again = against_others(small.merges, "fixed", INERT)
    found = beside_control(active, summarize_gains(again, by=("run",), draws=20))
    change = retraining(small.merges, "fixed", INERT).set_index("method")["change"]
    for row in found.itertuples():
        size = abs(change[row.method])  # of two runs, one against the other
        np.testing.assert_allclose([row.lowest, row.highest], [-size, size])
        assert row.control_runs == 2
        expected = "within" if abs(row.mean) <= size else "above" if row.mean > 0 else "below"
        assert row.beyond == expected


def test_copies_are_found_and_counted_once():
    rng = np.random.default_rng(1)
    first = pd.DataFrame({"task_a": list("aab"), "task_b": list("bcc"), "method": "tsv"})
    runs = {name: rng.uniform(size=(3, 2)) for name in ("x", "y", "z")}
    runs["z"][:2] = runs["x"][:2]
    merges = pd.concat(
        [
            first.assign(variant=INERT, run=name, acc_a=v[:, 0], acc_b=v[:, 1])
            for name, v in runs.items()
        ],
        ignore_index=True,
    )
    found = shared_results(merges)
    assert found.to_dict("records") == [
        {"method": "tsv", "run_a": "x", "run_b": "z", "equal": 2, "pairs": 3}
    ]
    assert set(regularization.without_copies(merges)["run"]) == {"x", "y"}


# ---- The released study -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def held():
    return read_study()


@pytest.fixture(scope="module")
def checkout(released):
    return checked_out(released)


def test_the_frozen_retrainings_are_those_of_a_checkout(checkout, tmp_path):
    folder = FROZEN / SETTING
    write_retrainings(checkout, tmp_path)
    assert len(list(tmp_path.iterdir())) == len(FILES)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes(), path.name
    frozen = read_retrainings(folder)
    for name in ("merges", "singles", "many"):
        kept, made = getattr(frozen, name), getattr(checkout, name)
        pd.testing.assert_frame_equal(kept, made, check_exact=True)
    assert frozen.meta == checkout.meta


def test_an_accuracy_that_is_no_float32_is_not_frozen(tmp_path):
    held = read_retrainings(FROZEN / SETTING)
    held.merges.loc[0, "acc_a"] = 0.1
    with pytest.raises(MergelibError, match="0.1 is no float32"):
        write_retrainings(held, tmp_path)


def test_released_means_are_the_published_ones(held):
    mean = 100 * held.every.groupby(["method", "run"])["fixed"].mean()
    published = {
        ("arithmetic", DOWNLOADED): 91.02,
        ("arithmetic", "grad_magnitude 1"): 91.74,
        ("tsv", DOWNLOADED): 98.18,
        ("tsv", "grad_magnitude 1"): 98.57,
        ("dare", "gargiulo_v 1e-05"): 96.15,
        ("weight_avg", "tv_subspace_u 0.0001"): 96.60,
        ("ties", "tv_subspace_v 0.01"): 82.95,
        ("arithmetic", "moderate_update"): 88.08,
    }
    for key, value in published.items():
        assert mean[key] == pytest.approx(value, abs=0.006)


def test_published_gains_come_from_the_files(held):
    table = published_gains(held, draws=100).set_index(["version", "method"])
    eighth = 100 * table.loc["v8", ["published", "files"]]
    np.testing.assert_allclose(eighth["published"], eighth["files"], atol=0.006)
    # the first version's weight_avg file (136 pairs) is not among the released ones
    first = (100 * table.loc["v1", ["published", "files"]]).drop(["weight_avg", "mean"])
    np.testing.assert_allclose(first["published"], first["files"], atol=0.006)
    assert 100 * table.loc[("v1", "isotropic"), "common"] == pytest.approx(0.57, abs=0.006)
    assert table.loc[("v1", "isotropic"), "pairs"] == 184


def test_released_values_are_the_stored_ones(checkout, released):
    held = released_study(checkout)
    path = released / "results" / SETTING / "tsv_grad_magnitude_1"
    stored = json.loads((path / "all_pairwise_summary_N20.json").read_text())
    rows = held.every[(held.every["method"] == "tsv") & (held.every["run"] == "grad_magnitude 1")]
    for row in rows.itertuples():
        mean = stored[f"{row.task_a}__{row.task_b}"]["avg"][0]
        assert row.fixed == pytest.approx(mean["normalized_acc/test/avg"], abs=1e-6)
        assert row.raw == pytest.approx(mean["acc/test/avg"], abs=1e-6)


def test_released_copies_and_stale_merges(held):
    found = shared_results(held.every).set_index(["method", "run_a", "run_b"])["equal"]
    assert found[("arithmetic", "grad_magnitude 0.1", "grad_magnitude 0.001")] == 190
    many = read_retrainings(FROZEN / SETTING).many
    assert (many["same_bits"] == (many["method"] == "tsv")).all()
    value = many.set_index(["tasks", "method", "run"])["normalized"]
    assert value[(8, "arithmetic", "gargiulo_u 0.0001")] == pytest.approx(0.7930, abs=6e-5)
    assert value[(20, "ties", "gargiulo_u 0.0001")] == pytest.approx(0.7586, abs=6e-5)


def test_released_runs_without_a_gradient_are_the_control(held):
    runs = held.merges[held.merges["variant"] == INERT].groupby("method")["run"].nunique()
    # seven gargiulo; grad_magnitude 1, .1, .001 and one of unnamed strength; copies once
    assert runs.to_dict() == {
        "arithmetic": 9,
        "dare": 5,
        "isotropic": 3,
        "ties": 8,
        "tsv": 10,
        "weight_avg": 10,
    }
    placebo = control_over_base(held, draws=50).set_index("method")
    # the seven gargiulo runs alone: +0.54 to +0.77, -0.04 to -0.18
    assert 100 * placebo.loc["arithmetic", "run_max"] == pytest.approx(0.77, abs=0.006)
    assert 100 * placebo.loc["ties", "run_min"] == pytest.approx(-0.18, abs=0.006)
    assert placebo["runs"].to_dict() == runs.to_dict()
    assert set(held.gains()["variant"]).isdisjoint({INERT, DOWNLOADED})
    assert held.merges["own"].notna().groupby(held.merges["run"]).all()[DOWNLOADED]


def test_the_published_run_among_the_others(held):
    found = 100 * published_run(held)
    placebo = 100 * control_over_base(held, draws=5).set_index("method")
    assert found.loc["dare", "published"] == pytest.approx(0.65, abs=0.006)
    both = found[["published", "highest"]].max(axis=1)
    np.testing.assert_allclose(both, placebo.loc[both.index, "run_max"])
    both = found[["published", "lowest"]].min(axis=1)
    np.testing.assert_allclose(both, placebo.loc[both.index, "run_min"])


def test_the_command_refuses_what_is_no_checkout(tmp_path, capsys):
    assert main(["--from", str(tmp_path), "--to", str(tmp_path / "out")]) == 1
    assert "no folder results" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
