"""The study behind the forecast: pools, draws, left-out protocol; what ships with the package."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from bounds import bound
from forecast_world import METHODS, bank, tables

from mergelib.core.store import file_digest, load_tensors, read_json, read_table, save_tensors
from mergelib.forecasting.bank import assemble, read_bank
from mergelib.forecasting.calibration import calibrate, held_out, variance_of, with_paired
from mergelib.forecasting.document import read_forecaster
from mergelib.forecasting.forecaster import Forecaster, columns, paired
from mergelib.forecasting.model import SHIPPED
from mergelib.forecasting.moments import moments_of_pairs, summed
from mergelib.forecasting.statistics import COUNTS, Outputs, statistics
from mergelib.models.heads import logits
from mergelib.pipeline.keys import path
from mergelib.pipeline.params import Run, Sizes
from mergelib.pipeline.task_data import head
from mergelib.pipeline.units import data
from studies.forecasting import protocol, scores, table, worlds
from studies.forecasting.pools import make_pool, pool
from studies.forecasting.probes import merge_file, singles_file

pytestmark = pytest.mark.numeric

FROZEN = Path(__file__).resolve().parents[1] / "book" / "tables" / "forecast"
EXACT = bound(torch.float64, 10_000, 1e3)


# ---- Pools and draws ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run():
    sizes = Sizes(train=40, calibration=12, test=30)
    return Run("small", ["digits", "color"], {"weight_avg": {}, "tsv": {}}, sizes=sizes)


@pytest.fixture(scope="module")
def store(tmp_path_factory, run):
    folder = tmp_path_factory.mktemp("store")
    for task in run.tasks:
        data.make(folder, run, task)
    return folder


def test_a_pool_is_the_calibration_split_and_images_that_no_split_has(store, run):
    for task in run.tasks:
        images, labels = pool(make_pool(store, run, task, 60))
        held = load_tensors(path(store, run, "data", task))
        assert len(images) == len(labels) == 60
        assert torch.equal(images[:12], held["calibration/images"])
        seen = {x.tobytes() for s in ("train", "test") for x in held[f"{s}/images"].numpy()}
        every = [x.tobytes() for x in images.numpy()]
        assert len(set(every)) == 60 and not set(every) & seen
        fewer, _ = pool(make_pool(store, run, task, 25))
        assert torch.equal(fewer, images[:25])


def test_draws_are_nested_and_those_of_a_task(run):
    orders = table.draws(run, "digits", 50)
    assert orders.shape == (20, 50)
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order[:5]) for order in orders}) == 20
    np.testing.assert_array_equal(orders, table.draws(run, "digits", 50))
    assert not np.array_equal(orders, table.draws(run, "color", 50))


def test_rows_are_the_statistics_of_the_drawn_images(store, run):
    rng = torch.Generator().manual_seed(0)
    pair, size = ("digits", "color"), 60
    for task in pair:
        make_pool(store, run, task, size)
        base = torch.randn(size, 128, generator=rng)
        tuned = base + 0.5 * torch.randn(size, 128, generator=rng)
        save_tensors(singles_file(store, run, task, size), {"base": base, "tuned": tuned})
    for method in run.methods:
        found = {s: torch.randn(size, 128, generator=rng) for s in "ab"}
        save_tensors(merge_file(store, run, *pair, method, size), found)
    rows = table.rows(store, run, pair, size, sizes=(7, 100))
    assert len(rows) == 2 * 2 * 20 * 2 and set(rows["images"]) == {7, 60}
    for method, which, draw, n in (("tsv", 1, 4, 7), ("weight_avg", 0, 19, 100)):
        task = pair[which]
        order = table.draws(run, task, size)[draw][:n]
        singles = load_tensors(singles_file(store, run, task, size))
        merged = load_tensors(merge_file(store, run, *pair, method, size))["ab"[which]]
        _, labels = pool(make_pool(store, run, task, size))
        three = (merged[order], singles["tuned"][order], singles["base"][order])
        wanted = statistics(
            *(Outputs(z, logits(z, head(store, run, task))) for z in three), labels[order]
        )
        at = {"method": method, "side": "ab"[which], "draw": draw, "n": n}
        of = rows[(rows[list(at)] == pd.Series(at)).all(axis=1)]
        for name, value in wanted.unlabelled.items():
            # head products of other batches round in float32, logits are up to 100
            assert of[name].item() == pytest.approx(value, abs=bound(torch.float32, 128, 100))
        assert [of[name].item() for name in COUNTS] == [getattr(wanted, name) for name in COUNTS]


def test_rounding_loses_no_more_than_it_says():
    values = np.random.default_rng(0).normal(size=1000) * 10.0 ** np.arange(-5, 5).repeat(100)
    held = pd.DataFrame({"x": values, "k": np.arange(1000)})
    found = table.rounded(held, bits=10)
    assert found["x"].dtype == np.float32 and found["k"].equals(held["k"])
    assert np.abs(found["x"] / values - 1).max() <= 2.0**-10
    assert len(np.unique(np.frexp(found["x"])[0])) <= 2**10 + 1


def test_worlds_stand_side_by_side_and_are_replaced(tmp_path):
    one, other = tables(4, 0), tables(5, 1)
    other = {name: t.assign(world="second") for name, t in other.items()}
    for name, held in (("made", one), ("second", other), ("made", one)):
        worlds.write_world(tmp_path, name, held, {"seed": 0})
    both = read_bank(tmp_path)
    assert sorted(set(both.world)) == ["made", "second"]
    assert len(both.ends) == 6 + 10 and len(both.tasks) == 9
    assert set(read_json(tmp_path / "meta.json")) == {"made", "second"}
    held = assemble(**one)
    np.testing.assert_allclose(both.kept[both.world == "made"], held.kept, atol=EXACT)


# ---- The protocol -------------------------------------------------------------------------------


def test_a_fold_learns_its_errors_from_pairs_inside_it():
    world = bank(6)
    level = (False, True, "labels")
    names, few = columns(level), replace(world, X=world.X[:, :, :, : protocol.INNER_DRAWS])
    of_pairs = moments_of_pairs(world)
    found = protocol.evaluate(world, of_pairs, names, paired(level), 0.1, 0.5)
    for k in (0, 8):
        inside = np.flatnonzero(world.without(world.ends[k]))
        assert len(inside) == 6
        masks = [world.without([*world.ends[k], *world.ends[p]]) for p in inside]
        folds = summed(of_pairs, np.array(masks))
        sides = held_out(few, folds, np.arange(6), inside, names, 0.1, 0.5)
        wanted = calibrate(few, inside, sides, paired(level))
        got = found.calibration[k]
        # left-out forecasts of a fold are kept in float32
        close = {"rtol": 1e-4, "atol": 1e-6}
        np.testing.assert_allclose(got.mean.variance, wanted.mean.variance, **close)
        np.testing.assert_allclose(got.worse.quantiles, wanted.worse.quantiles, rtol=1e-3)
        fold = summed(of_pairs, world.without(world.ends[k])[None])
        own, _ = held_out(world, fold, np.array([0]), np.array([k]), names, 0.1, 0.5)
        at = np.array([k])
        variance = variance_of(world, at, wanted.side, [0, 1, 2])
        own = with_paired(world, at, own, variance, wanted.gamma, paired(level))[0]
        np.testing.assert_allclose(got.gamma, wanted.gamma, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(found.mean[k], own.mean(axis=1), atol=1e-5)
        np.testing.assert_allclose(found.worse[k], own.min(axis=1), atol=1e-5)


def test_scores_are_what_they_say():
    world = bank(6)
    rng = np.random.default_rng(0)
    made = world.mean[:, :, None, None] + rng.normal(0, 0.05, (15, 3, 6, 3))
    sizes = world.sizes.tolist()
    found = scores.errors(world, {"x": made, "flat": world.mean}, sizes)
    row = found.query("forecast == 'x' and n == 20 and method == 'two'")
    r = [np.corrcoef(made[:, 1, k, 1], world.mean[:, 1])[0, 1] for k in range(6)]
    assert row["r"].item() == pytest.approx(np.mean(r), abs=1e-12)
    assert row["r_sd"].item() == pytest.approx(np.std(r), abs=1e-12)
    mae = np.abs(made[:, 1, :, 1] - world.mean[:, 1, None]).mean(axis=0)
    assert row["mae"].item() == pytest.approx(mae.mean(), abs=1e-12)
    assert found.query("forecast == 'flat'")["mae"].max() == 0
    regret = scores.regrets(world, {"oracle": world.mean, "x": made}, sizes).set_index("forecast")
    assert regret.loc["oracle", "regret"] == 0
    best = world.mean.max(axis=1)
    lost = [best[p] - world.mean[p, made[p, :, k, 2].argmax()] for p in range(15) for k in range(6)]
    x = regret.loc["x"].set_index("n")
    assert x.loc[80, "regret"] == pytest.approx(np.mean(lost), abs=1e-12)
    assert set(METHODS) == set(world.methods)


# ---- What is frozen and what ships --------------------------------------------------------------


@pytest.mark.slow
def test_what_ships_follows_from_the_bank():
    shipped, meta = read_forecaster(SHIPPED), read_json(SHIPPED)["meta"]
    assert meta["bank"] == file_digest(FROZEN / "probes.parquet")
    made = read_bank(FROZEN)
    of_pairs = moments_of_pairs(made)
    total = summed(of_pairs, np.ones((1, len(made.ends))))
    assert shipped.methods_ == made.methods and shipped.moments_.names == made.names
    for n in (5, 33, 100):
        wanted = total.at(n)
        # twelve digits are written
        np.testing.assert_allclose(shipped.moments_.at(n), wanted, rtol=1e-10)
    level, every = (False, True, "scores"), np.arange(len(made.ends))
    folds = summed(of_pairs.of(columns(level)), np.array([made.without(e) for e in made.ends]))
    sides = held_out(made, folds, every, every, columns(level))
    wanted = calibrate(made, every, sides, paired(level))
    got = shipped.calibration_[level]
    np.testing.assert_allclose(got.mean.variance, wanted.mean.variance, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(got.worse.quantiles, wanted.worse.quantiles, rtol=1e-6, atol=1e-9)
    assert shipped.get_params() == Forecaster().get_params()


def test_the_frozen_errors_are_of_this_bank():
    found = read_table(FROZEN / "errors.csv")
    made = read_bank(FROZEN)
    level = (False, True, "scores")
    names, every = columns(level), np.arange(len(made.ends))
    few = replace(made, X=made.X[:, :, :, :, 2:3], images=made.images[..., 2:3])
    masks = np.array([made.without(e) for e in made.ends])
    folds = summed(moments_of_pairs(made).of(names), masks)
    own, _ = held_out(few, folds, every, every, names)
    mae = np.abs(own.mean(axis=2)[..., 0] - made.mean[..., None]).mean(axis=(0, 2))
    held = found.query("forecast == 'unlabelled + known' and n == 20").set_index("method")["mae"]
    np.testing.assert_allclose(held.loc[list(made.methods)], mae, rtol=1e-6)


def test_a_world_without_its_arguments_is_refused(capsys, tmp_path):
    from studies.forecasting.__main__ import main

    assert main(["--to", str(tmp_path / "x"), "--calibration", str(tmp_path / "c.json")]) == 1
    assert "give both" in capsys.readouterr().err
    assert main(["--to", str(tmp_path / "x"), "--stages", "fit", "--calibration",
                 str(tmp_path / "c.json")]) == 1  # fmt: skip
    assert "is missing" in capsys.readouterr().err and not (tmp_path / "c.json").exists()
