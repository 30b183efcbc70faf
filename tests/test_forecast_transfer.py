"""The forecast in another world than the bank's: what it says there, and how much wider it is."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from bounds import bound
from forecast_world import DRAWS, METHODS, SIZES, bank, tables

from mergelib.forecasting.calibration import KINDS
from mergelib.forecasting.document import read_forecaster, write_forecaster
from mergelib.forecasting.evidence import Evidence, Known, Probe
from mergelib.forecasting.features import KNOWN, OF_FEATURES
from mergelib.forecasting.forecaster import Forecaster, columns, levels, paired
from mergelib.forecasting.transfer import asked, beyond, excess, excesses, holds, widened, wrong
from studies.forecasting import transfer as study

pytestmark = pytest.mark.numeric

EXACT = bound(torch.float64, 10_000, 1e3)  # sums of some thousand terms, solved with a ridge
LABELS, FEATURES, NOTHING = (False, True, "labels"), (True, True, "features"), (True, True, "")


@pytest.fixture(scope="module")
def fitted():
    return Forecaster().fit(bank())


@pytest.fixture(scope="module")
def other():
    return bank(5, seed=9)


def moved(world, by: float):
    """The world with every outcome moved, by one number."""
    return replace(world, kept=world.kept + by)


def test_a_world_is_asked_about_as_a_user_would(fitted, other):
    _, found = asked(fitted, other, FEATURES)
    weights = [n for n in columns(FEATURES) if n not in (*KNOWN, *OF_FEATURES)]
    for pair, method, draw, size in ((0, 0, 0, 0), (4, 2, 3, 1), (9, 1, 5, 2)):
        row = other.X[pair, method, :, draw, size]

        def of(names, side, row=row):
            return {name: row[side, other.names.index(name)] for name in names}

        known = [Known(*of(("zero_shot", "fine_tuned"), side).values()) for side in (0, 1)]
        images = other.images[pair, :, size]
        probes = [Probe(int(images[side]), of(OF_FEATURES, side)) for side in (0, 1)]
        given = Evidence(of(weights, 0), (known[0], known[1]), {METHODS[method]: tuple(probes)})
        said = fitted.predict(given, [METHODS[method]])[METHODS[method]]
        np.testing.assert_allclose(found[pair, method, :, draw, size], said.sides, atol=EXACT)


def test_methods_go_by_name(fitted, other):
    some = [2, 0]
    few = replace(
        other,
        methods=tuple(METHODS[m] for m in some),
        X=other.X[:, some],
        kept=other.kept[:, some],
    )
    for one, two in zip(asked(fitted, few, LABELS), asked(fitted, other, LABELS), strict=True):
        np.testing.assert_allclose(one, two[:, some], atol=EXACT)
    off = wrong(few, *asked(fitted, few, LABELS))["mean"]
    errors = fitted.calibration_[LABELS].mean
    slow = np.mean(
        [
            off[p, k, r, s] ** 2 - errors.spread(m, (1 / other.images[p, :, s]).mean()) ** 2
            for p in range(len(few.ends))
            for k, m in enumerate(some)
            for r in range(DRAWS)
            for s in range(len(SIZES))
        ]
    )
    assert excess(few, some, errors, off) == pytest.approx(slow, abs=EXACT)


def test_a_world_that_is_moved_widens_by_what_it_is_moved(fitted, other):
    by = 0.2
    plain, far = (excesses(fitted, world, FEATURES) for world in (other, moved(other, by)))
    off = wrong(other, *asked(fitted, other, FEATURES))
    for kind in KINDS:  # E (e + b)^2 - E e^2 = b^2 + 2 b E e
        wanted = by**2 + 2 * by * off[kind].mean()
        assert far[kind] - plain[kind] == pytest.approx(wanted, abs=EXACT)
    wide = widened(fitted, [other, moved(other, by)])
    shift = wide.calibration_[FEATURES].mean.shift
    assert shift == pytest.approx(max(plain["mean"], far["mean"], 0), abs=EXACT)
    assert wide.beyond_[FEATURES].mean.shift == shift  # of pairs beyond the bank none tells
    for errors, before in zip(
        (wide.calibration_[FEATURES].worse, wide.calibration_[FEATURES].mean),
        (fitted.calibration_[FEATURES].worse, fitted.calibration_[FEATURES].mean),
        strict=True,
    ):
        assert errors.spread(1, 0.05) ** 2 == pytest.approx(
            before.spread(1, 0.05) ** 2 + errors.shift
        )
        assert errors.middle(1, 0.05) == before.middle(1, 0.05)
    assert all(fitted.calibration_[level].mean.shift == 0 for level in levels())


def test_paired_answers_count_for_more_where_the_forecast_is_worth_less(fitted, other):
    far = moved(other, -0.3)
    wide = widened(fitted, [far])
    (_, near), (before, found) = (asked(f, other, LABELS) for f in (fitted, wide))
    estimate = other.X[..., other.names.index(paired(LABELS)[0])]
    controls = [other.X[..., other.names.index(name)] for name in paired(LABELS)[2:]]
    gamma = fitted.calibration_[LABELS].gamma
    estimate = estimate + sum(g * u for g, u in zip(gamma, controls, strict=True))
    inside = (np.minimum(near, found) > 0) & (np.maximum(near, found) < 1.05)
    assert (np.abs(found - estimate) <= np.abs(near - estimate) + EXACT)[inside].all()
    assert np.abs(found - before).mean() > np.abs(near - before).mean()


def test_the_widening_is_kept_in_the_document(fitted, other, tmp_path):
    wide = widened(fitted, [moved(other, 0.2), moved(bank(5, seed=4), 0.3)])
    write_forecaster(tmp_path / "x.json", wide, {})
    again = read_forecaster(tmp_path / "x.json")
    for level in levels():
        for kind in KINDS:
            for held in ("calibration_", "beyond_"):
                one, two = (getattr(getattr(f, held)[level], kind).shift for f in (wide, again))
                assert two == pytest.approx(one, rel=1e-10)
    assert again.beyond_[FEATURES].mean.shift > again.calibration_[FEATURES].mean.shift


def test_pairs_whose_accuracies_the_bank_has_nothing_like_are_beyond_it(fitted, other):
    mixed, own = bank(5, seed=4), tables()["tasks"]
    own["base_knowledge"] = own["zero_shot"] / own["fine_tuned"]
    theirs = tables(5, seed=4)["tasks"]
    outside = []
    for row in theirs.to_dict("records"):
        row["base_knowledge"] = row["zero_shot"] / row["fine_tuned"]
        names = ("zero_shot", "fine_tuned", "base_knowledge")
        wanted = {n: row[n] for n in names if not own[n].min() <= row[n] <= own[n].max()}
        assert fitted.beyond(Known(row["zero_shot"], row["fine_tuned"])) == wanted
        outside.append(bool(wanted))
    found = beyond(fitted, mixed, FEATURES)
    assert found.tolist() == [outside[a] or outside[b] for a, b in mixed.ends]
    assert 0 < found.sum() < len(found)
    assert not beyond(fitted, mixed, (True, False, "features")).any()  # nothing tells
    assert not beyond(fitted, other, FEATURES).any()
    for row in own.to_dict("records"):  # the ends of a range, in the twelve digits of a file
        for x in (0.0, 1e-12, -1e-12):
            assert not fitted.beyond(Known(row["zero_shot"] + x, row["fine_tuned"] + x))


def test_beyond_the_bank_it_is_as_wide_as_worlds_were_off_there(fitted, other):
    mixed = bank(5, seed=4)
    far = beyond(fitted, mixed, FEATURES)
    by = np.where(far, 0.3, 0.0)[:, None, None]
    wide = widened(fitted, [other, replace(mixed, kept=mixed.kept + by)])
    for held, part, off in ((wide.calibration_, mixed.of(~far), 0.0),
                            (wide.beyond_, mixed.of(far), 0.3)):  # fmt: skip
        found = [excesses(fitted, moved(part, off), FEATURES)["mean"]]
        found += [0.0, excesses(fitted, other, FEATURES)["mean"]]
        assert held[FEATURES].mean.shift == pytest.approx(max(found), abs=EXACT)
    near, away = (mixed.X[k, 0, :, 0, 0] for k in (np.argmin(far), np.argmax(far)))
    names = [mixed.names.index(name) for name in ("zero_shot", "fine_tuned")]
    widths = []
    for sides in (near[:, names], away[:, names]):
        said = wide.predict(Evidence(known=(Known(*sides[0]), Known(*sides[1]))), METHODS)
        widths.append(np.diff(said[METHODS[0]].interval80)[0])
    assert widths[1] > widths[0]


def test_the_study_s_table_says_what_each_world_s_intervals_hold(fitted, other):
    worlds = {"near": other, "far": moved(bank(5, seed=4), 0.25)}
    table = study.transfer(fitted, worlds, {"features": FEATURES, "nothing": NOTHING})
    assert len(table) == 3 * (len(SIZES) + 1)  # the far one has pairs beyond the bank as well
    off = wrong(worlds["far"], *asked(fitted, worlds["far"], FEATURES))["mean"]
    mask = beyond(fitted, worlds["far"], FEATURES)
    far = table[(table["world"] == "far") & (table["forecast"] == "features")]
    for reach, some in (("within", ~mask), ("beyond", mask)):
        of = far[far["reach"] == reach]
        assert (of["pairs"] == some.sum()).all()
        np.testing.assert_allclose(of["mae"], np.abs(off[some]).mean(axis=(0, 1, 2)), atol=EXACT)
        np.testing.assert_allclose(of["bias"], off[some].mean(axis=(0, 1, 2)), atol=EXACT)
    near = table[table["world"] == "near"]
    assert (near["wide80"] >= near["plain80"]).all()  # the other world was moved
    assert (near["wide80"] > 0.99).all()


def test_a_world_is_asked_about_by_halves_of_its_tasks(fitted, other):
    world = moved(bank(6, seed=9), 0.25)
    assert set(world.ends.ravel()) == set(range(6))
    table = study.halves(fitted, world, [other], {"features": FEATURES}, splits=2, seed=3)
    alone = study.transfer(fitted, {"far": world, "other": other}, {"features": FEATURES})
    alone = alone[alone["world"] == "far"]
    rng, found = np.random.default_rng(3), []
    for _ in range(2):
        order = rng.permutation(6)
        for known, half in ((order[:3], order[3:]), (order[3:], order[:3])):
            one, two = (world.of(np.isin(world.ends, x).all(axis=1)) for x in (known, half))
            wide = widened(fitted, [other, one])
            far = beyond(fitted, two, FEATURES)
            off = wrong(two, *asked(wide, two, FEATURES))["mean"]
            found += [
                (reach, np.abs(off[some, ..., 0]).mean(), some.sum())
                for reach, some in (("within", ~far), ("beyond", far))
                if some.any()
            ]
    for reach in dict.fromkeys(each[0] for each in found):
        row = table[(table["reach"] == reach) & (table["n"] == SIZES[0])].iloc[0]
        of = [each[1:] for each in found if each[0] == reach]
        assert row["asked"] == len(of)
        assert [row["mae"], row["pairs"]] == pytest.approx(np.mean(of, axis=0), abs=EXACT)
        assert row["low80"] <= row["wide80"] <= row["wide95"]
    within = table[table["reach"] == "within"]
    assert within["wide80"].min() > alone[alone["reach"] == "within"]["wide80"].max()


def test_the_released_tables_are_a_world_without_images():
    folder = Path(study.__file__).parents[2] / "tables/published/ViT-B-16_AdamW"
    methods = ("tsv", "weight_avg", "isotropic")
    world = study.released(folder, "clip", methods)
    metrics, merges, tasks = (
        pd.read_csv(folder / f"{name}.csv") for name in ("metrics", "merges", "tasks")
    )
    assert not holds(world, FEATURES) and holds(world, NOTHING)
    assert len(world.ends) == 182  # of 190: what the authors' run did not finish is left out
    at = tasks.set_index("task")
    for k in (0, 77, 181):
        a, b = (world.tasks[t].removeprefix("clip:") for t in world.ends[k])
        row = merges.query("task_a == @a and task_b == @b and method == 'tsv'").iloc[0]
        assert world.kept[k, 0] == pytest.approx(
            [row["acc_a"] / row["single_a"], row["acc_b"] / row["single_b"]]
        )
        of = metrics.query("task_a == @a and task_b == @b").iloc[0]
        for side, task, partner in ((0, a, b), (1, b, a)):
            held = dict(zip(world.names, world.X[k, 1, side, 0, 0], strict=True))
            assert held["subspace_overlap"] == of["subspace_overlap"]
            assert held["zero_shot"] == at.at[task, "zero_shot"]
            assert held["other:fine_tuned"] == at.at[partner, "fine_tuned"]
