"""The forecast's moments, fits, left-out errors and document, against slow ones."""

import itertools
import json

import numpy as np
import pytest
import torch
from bounds import bound
from forecast_world import METHODS, bank, tables
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from mergelib.core.errors import MergelibError
from mergelib.forecasting.bank import assemble, weight_metrics
from mergelib.forecasting.calibration import (
    MOST,
    calibrate,
    combined,
    control_coefficients,
    held_out,
    variance_of,
    with_paired,
)
from mergelib.forecasting.document import read_forecaster, to_document, write_forecaster
from mergelib.forecasting.evidence import Evidence, Known, Probe
from mergelib.forecasting.forecaster import Forecaster, columns, level_of, levels, paired
from mergelib.forecasting.intervals import GRID, Errors, errors_of, interval, reaches
from mergelib.forecasting.moments import Moments, moments_of_pairs, ridge, summed
from mergelib.forecasting.verdict import WILL, WILL_NOT, images_to_label, verdict

pytestmark = pytest.mark.numeric

EXACT = bound(torch.float64, 10_000, 1e3)  # sums of some thousand terms, solved with a ridge


@pytest.fixture(scope="module")
def made():
    return bank()


@pytest.fixture(scope="module")
def fitted(made):
    return Forecaster().fit(made)


# ---- The bank -----------------------------------------------------------------------------------


def test_the_bank_is_its_tables_whatever_their_order(made):
    held = tables()
    mixed = {name: t.sample(frac=1, random_state=3) for name, t in held.items() if name != "tasks"}
    first = held["probes"].drop_duplicates(["task_a", "task_b"])
    again = assemble(**mixed, tasks=held["tasks"])
    for method, side, draw, n in (("two", "b", 3, 20), ("three", "a", 0, 80)):
        for k, pair in enumerate(zip(first["task_a"], first["task_b"], strict=True)):
            of = held["probes"].query(
                "task_a == @pair[0] and task_b == @pair[1] and method == @method and side == @side"
                " and draw == @draw and n == @n"
            )
            assert len(of) == 1
            names = [made.tasks[t].removeprefix("made:") for t in made.ends[k]]
            assert tuple(names) == pair
            where = (METHODS.index(method), "ab".index(side), draw, (5, 20, 80).index(n))
            x = dict(zip(made.names, made.X[k][where], strict=True))
            assert x["soft"] == of["soft"].item()
            gain = of["merged_only"].item() - of["expert_only"].item()
            fine_tuned = x["fine_tuned"]
            assert x["paired"] == 1 + gain / (of["images"].item() * fine_tuned)
            merge = held["merges"].query(
                "task_a == @pair[0] and task_b == @pair[1] and method == @method"
            )
            own = merge[f"acc_{side}"].item() / merge[f"single_{side}"].item()
            assert made.kept[k, where[0], where[1]] == own
    order = [
        [i for i, e in enumerate(again.ends.tolist()) if set(e) == set(wanted)][0]
        for wanted in made.ends.tolist()
    ]
    methods = [again.methods.index(m) for m in made.methods]
    np.testing.assert_array_equal(again.kept[order][:, methods], made.kept)


def test_a_bank_with_a_hole_is_refused():
    held = tables(4)
    for name in ("probes", "merges", "metrics", "tasks"):
        with pytest.raises(MergelibError, match="make the bank again"):
            assemble(**(held | {name: held[name].drop(index=1)}))
    with pytest.raises(MergelibError, match="no column soft"):
        assemble(**(held | {"probes": held["probes"].drop(columns="soft")}))


# ---- Moments and fits ---------------------------------------------------------------------------


def test_moments_are_sums_over_sides_and_means_over_draws(made):
    names = ("soft", "drift", "fine_tuned")
    at = [made.names.index(name) for name in names]
    found = moments_of_pairs(made).of(names)
    for p, m, s in itertools.product((0, 9), range(len(METHODS)), range(3)):
        wanted = np.zeros((5, 5))
        for side in (0, 1):
            for row in made.X[p, m, side, :, s][:, at]:
                z = np.array([1.0, *row, made.kept[p, m, side]])
                wanted += np.outer(z, z) / len(made.X[p, m, side])
        np.testing.assert_allclose(found.total[p, s, m], wanted, atol=EXACT)


def test_between_sizes_products_are_a_line_in_one_over_n():
    rng = np.random.default_rng(0)
    of_size = rng.normal(size=(3, 1, 4, 4))
    of_size[:, 0, 0, 0] = [2.0, 7.0, 3.0]  # sides
    held = Moments(("x", "y"), np.array([5, 20, 80]), of_size)
    mean = of_size / of_size[:, :, :1, :1]
    for n, pair, share in ((10, (0, 1), 2 / 3), (40, (1, 2), 2 / 3), (20, (1, 2), 0.0)):
        wanted = (1 - share) * mean[pair[0]] + share * mean[pair[1]]
        np.testing.assert_allclose(held.at(n), wanted, atol=EXACT)
    for n, k in ((1, 0), (5, 0), (80, 2), (1000, 2)):
        np.testing.assert_allclose(held.at(n), mean[k], atol=EXACT)


@pytest.mark.parametrize("sharing", [0.0, 2.0])
def test_ridge_of_one_method_is_that_of_scikit_learn(sharing):
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, [1.0, 5.0, 0.1], (40, 3)), rng.normal(size=40)
    z = np.column_stack([np.ones(40), x, y])
    coef, intercept = ridge((z.T @ z / 40)[None], 0.3, sharing)
    scale = StandardScaler().fit(x)
    wanted = Ridge(alpha=0.3 * 40).fit(scale.transform(x), y)
    for k in (0, 1):  # the method's own, and what all methods, which is one, share
        np.testing.assert_allclose(coef[k], wanted.coef_ / scale.scale_, atol=EXACT)
        predicted = x @ coef[k] + intercept[k]
        np.testing.assert_allclose(predicted, wanted.predict(scale.transform(x)), atol=EXACT)


def test_sharing_goes_from_fits_of_each_method_to_one_slope_for_all(made):
    names = ["soft", "drift"]
    products = summed(moments_of_pairs(made).of(names), np.ones((1, len(made.ends)))).at(20)
    apart, _ = ridge(products, 0.1, 0.0)
    together, _ = ridge(products, 0.1, 1e9)
    for m in range(len(METHODS)):
        # alone, but in the units that methods share
        spread = np.sqrt(np.diagonal(_covariance(products[0]), axis1=1, axis2=2).mean(axis=0))[:2]
        c = _covariance(products[0])[m]
        unit = c[:2, :2] / np.outer(spread, spread) + 0.1 * np.eye(2)
        own = np.linalg.solve(unit, c[:2, 2] / spread) / spread
        np.testing.assert_allclose(apart[0, m], own, atol=EXACT)
        np.testing.assert_allclose(together[0, m], together[0, -1], rtol=1e-6)


def _covariance(products: np.ndarray) -> np.ndarray:
    mean = products[:, 0, 1:]
    return products[:, 1:, 1:] - mean[:, :, None] * mean[:, None, :]


def test_a_statistic_counts_as_much_as_its_images_make_it_worth():
    # y = 1 - loss, soft = y + noise of variance 0.1 / n: the slope is var y / (var y + 0.1 / n)
    world = bank(24, small=False)
    every = summed(moments_of_pairs(world).of(["soft"]), np.ones((1, len(world.ends))))
    variance = world.kept.var(axis=(0, 2)).mean()
    for n in (5, 20, 80):
        slope = ridge(every.at(n), 0.0, 1e9)[0][0, -1, 0]
        # some 1650 sides and 6 draws of each: the noise of the slope is a few hundredths
        assert slope == pytest.approx(variance / (variance + 0.1 / n), abs=0.08)


def test_left_out_forecasts_are_those_of_a_bank_without_the_two_tasks(made):
    names, of_pairs = columns((False, True, "labels")), moments_of_pairs(made)
    every = np.arange(len(made.ends))
    folds = summed(of_pairs, np.array([made.without(e) for e in made.ends]))
    own, other = held_out(made, folds, every, every, names, 0.1, 0.5)
    held = tables()
    for k in (0, 7, 20):
        gone = [made.tasks[t].removeprefix("made:") for t in made.ends[k]]
        less = {
            name: t[~t[[c for c in ("task_a", "task_b", "task") if c in t]].isin(gone).any(axis=1)]
            for name, t in held.items()
        }
        rest = assemble(**less)
        total = summed(moments_of_pairs(rest).of(names), np.ones((1, len(rest.ends))))
        at = [made.names.index(name) for name in names]
        for m, side, draw, s in itertools.product(range(3), (0, 1), (0, 5), range(3)):
            coef, intercept = ridge(total.at(made.images[k, side, s]), 0.1, 0.5)
            x = made.X[k, m, side, draw, s][at]
            for found, which in ((own, m), (other, -1)):
                wanted = min(max(x @ coef[0, which] + intercept[0, which], 0), MOST)
                assert found[k, m, side, draw, s] == pytest.approx(wanted, abs=EXACT)


def test_labels_count_by_their_precision(made):
    found = combined(0.9, 0.02**2, 0.8, 0.04**2)
    assert found == pytest.approx((0.9 / 0.02**2 + 0.8 / 0.04**2) / (1 / 0.02**2 + 1 / 0.04**2))
    assert combined(0.9, 0.01, 3.0, 1e-9) == MOST and combined(0.9, 0.01, -3.0, 1e-9) == 0
    pair, sides = np.array([3]), np.full((1, 3, 2, 6, 3), 0.9)
    variance = np.full((1, 3, 2, 3), 0.0015)
    gamma, names = np.array([0.5, -0.25]), paired((False, True, "labels"))
    got = with_paired(made, pair, sides, variance, gamma, names)
    x = dict(zip(made.names, made.X[3, 1, 0, 2, 1], strict=True))
    estimate = x["paired"] + 0.5 * x["expert_excess"] - 0.25 * x["base_excess"]
    wanted = combined(0.9, 0.0015, estimate, x["paired_variance"])
    assert got[0, 1, 0, 2, 1] == pytest.approx(wanted, abs=EXACT)
    assert with_paired(made, pair, sides, variance, gamma, ()) is sides


def test_control_variates_are_fitted_to_what_the_combination_is_off_by(made):
    names, pair = paired((False, True, "labels")), np.arange(4)
    sides = np.full((4, 3, 2, 6, 3), 0.9)
    variance = np.random.default_rng(0).uniform(0.001, 0.003, (4, 3, 2, 3))
    found = control_coefficients(made, pair, sides, variance, names)
    x, y = [], []
    for at in np.ndindex(sides.shape):
        row = dict(zip(made.names, made.X[:4][at], strict=True))
        s2 = variance[at[0], at[1], at[2], at[4]]
        weight = s2 / (s2 + row["paired_variance"])
        y.append(made.kept[at[:3]] - np.clip(0.9 + weight * (row["paired"] - 0.9), 0, MOST))
        x.append([weight * row["expert_excess"], weight * row["base_excess"]])
    np.testing.assert_allclose(found, np.linalg.lstsq(x, y, rcond=None)[0], atol=EXACT)
    assert control_coefficients(made, pair, sides, variance, names[:2]).shape == (0,)


def test_the_calibration_is_of_what_left_out_forecasts_were_off_by(made):
    pair, rng = np.arange(len(made.ends)), np.random.default_rng(0)
    forecasts = made.kept[None, ..., None, None] + rng.normal(0, 0.03, (2, 21, 3, 2, 6, 3))
    found = calibrate(made, pair, forecasts)
    off = made.kept[..., None, None] - forecasts
    np.testing.assert_allclose(found.side.variance[:3], (off[0] ** 2).mean(axis=(0, 2, 3)))
    np.testing.assert_allclose(found.side.variance[3], (off[1] ** 2).mean(axis=(0, 1, 2, 3)))
    mean, worse = off[0].mean(axis=2), made.worse[..., None, None] - forecasts[0].min(axis=2)
    np.testing.assert_allclose(found.mean.variance[:3], (mean**2).mean(axis=(0, 2)))
    np.testing.assert_allclose(found.worse.variance[:3], (worse**2).mean(axis=(0, 2)))
    scaled = worse[..., 1] / np.sqrt(found.worse.variance[:3, 1])[:, None]
    # the mean of 378 values from 201 of their quantiles
    spread = np.sqrt(found.worse.variance[1, 1])
    assert found.worse.middle(1, 1 / 20) == pytest.approx(scaled.mean() * spread, abs=0.01 * spread)


# ---- Errors, intervals, words -------------------------------------------------------------------


def test_errors_are_told_by_their_variance_and_quantiles():
    rng, sizes = np.random.default_rng(1), np.array([5, 20, 80])
    error = rng.normal(size=(300, 2, 8, 3)) * [0.06, 0.04, 0.03]
    error[:, 1] = -2 * error[:, 0]
    found, correlation = errors_of(error, 3 * error, sizes)
    np.testing.assert_allclose(found.variance[:2], (error**2).mean(axis=(0, 2)))
    np.testing.assert_allclose(found.variance[2], 9 * found.variance[:2].mean(axis=0))
    np.testing.assert_allclose(correlation, [[1, -1], [-1, 1]])
    for k, n in enumerate(sizes):
        spread, shape = found.spread(0, 1 / n), found.shape(1 / n)
        scaled = error[..., k] / np.sqrt(found.variance[:2, k])[:, None]
        np.testing.assert_allclose(shape, np.quantile(scaled, GRID))
        low, high = interval(0.9, spread, shape, 0.8)
        inside = (low <= 0.9 + error[:, 0, :, k]) & (0.9 + error[:, 0, :, k] <= high)
        # the quantiles are those of both methods, whose shapes are each other's mirror image
        assert inside.mean() == pytest.approx(0.8, abs=0.02)
    assert found.spread(0, 1 / 10) ** 2 == pytest.approx(found.variance[0, :2] @ [1 / 3, 2 / 3])
    assert found.spread(2, 1 / 500) ** 2 == pytest.approx(found.variance[2, 2])


def test_probabilities_are_shares_of_left_out_errors():
    shape = np.linspace(-1, 3, len(GRID))
    errors = Errors(np.array([10]), np.array([[0.01]]), shape[None])
    assert reaches(0.9, 0.9, 0.1, shape) == pytest.approx(0.75)
    assert reaches(0.5, 0.9, 0.1, shape) == 1
    assert reaches(1.3, 0.9, 0.1, shape) == 0
    assert errors.middle(0, 0.1) == pytest.approx(0.1)
    assert errors.spread(0, 0.3) == pytest.approx(0.1)
    assert interval(0.5, 0.1, shape, 0.5) == pytest.approx((0.5, 0.7))


def test_verdicts():
    assert verdict(0.8, None, 0) == WILL and verdict(0.2, 5, 1) == WILL_NOT
    assert verdict(0.5, 40, 1) == "unclear: label 40 more images of the second task"
    assert "too near" in verdict(0.5, None, 0)


def test_the_images_to_label_are_the_least_that_settle_it():
    sizes, normal = np.array([5, 20, 100]), np.linspace(-2.5, 2.5, len(GRID))
    errors = Errors(sizes, 1e-4 + 0.05 / sizes[None], np.tile(normal, (3, 1)))

    def p(n):
        return float(reaches(0.9, 0.85, errors.spread(0, 1 / n), normal))

    asked = images_to_label(errors, 0, 0.85, 0)
    assert 0.2 < p(asked - 1) < 0.8 and p(asked) <= 0.2
    assert images_to_label(errors, 0, 0.85, 10) == asked - 10
    assert images_to_label(errors, 0, 0.9, 0) is None


# ---- The estimator ------------------------------------------------------------------------------


def evidence(made, pair: int, method: int, draw: int, size: int, level) -> Evidence:
    """What the bank's own row says, as a user would give it."""
    weights, known, probe = level
    held = tables()
    names = [made.tasks[t].removeprefix("made:") for t in made.ends[pair]]
    rows = held["probes"].query(
        "task_a == @names[0] and task_b == @names[1] and method == @METHODS[@method]"
        " and draw == @draw"
    )
    rows = rows[rows["n"] == (5, 20, 80)[size]]
    from mergelib.forecasting.features import OF_FEATURES, UNLABELLED
    from mergelib.forecasting.statistics import COUNTS

    probes = []
    for _, row in rows.sort_values("side").iterrows():
        used = OF_FEATURES if probe == "features" else UNLABELLED
        counts = {name: int(row[name]) for name in COUNTS} if probe == "labels" else {}
        probes.append(Probe(int(row["images"]), {name: row[name] for name in used}, **counts))
    of = held["metrics"].query("task_a == @names[0] and task_b == @names[1]").iloc[0]
    tasks = held["tasks"].set_index("task").loc[names]
    return Evidence(
        {name: of[name] for name in weight_metrics()} if weights else {},
        tuple(Known(r.zero_shot, r.fine_tuned) for r in tasks.itertuples()) if known else None,
        {METHODS[method]: tuple(probes)} if probe else {},
    )


@pytest.mark.parametrize("level", levels())
def test_a_forecast_from_evidence_is_the_fit_on_the_bank_s_row(made, fitted, level):
    names, of_pairs = columns(level), moments_of_pairs(made)
    whole = summed(of_pairs, np.ones((1, len(made.ends))))
    # one side with fewer images than asked for; without a probe, the fit for most images
    pair, method, draw, size = (np.array([4]), 1, 2, 1) if level[2] else (np.array([9]), 1, 2, 2)
    own, other = held_out(made, whole, np.array([0]), pair, names)
    given = evidence(made, int(pair[0]), method, draw, size, level)
    assert level_of(given, METHODS[method]) == level
    found = fitted.predict(given, [METHODS[method]])[METHODS[method]]
    errors = fitted.calibration_[level]
    variances = [variance_of(made, pair, errors.side, which) for which in ([0, 1, 2], [3, 3, 3])]
    own, other = (
        with_paired(made, pair, x, variance, errors.gamma, paired(level))
        for x, variance in zip((own, other), variances, strict=True)
    )
    wanted = own[0, method, :, draw, size]
    np.testing.assert_allclose(found.sides, wanted, atol=EXACT)
    assert found.mean == pytest.approx(wanted.mean(), abs=EXACT)
    assert found.interval95[0] <= found.interval80[0] <= found.interval80[1] <= found.interval95[1]
    assert 0 <= found.p_worse_095 <= found.p_worse_090 <= 1
    if min(wanted) > 0 and max(wanted) < MOST:
        coef, intercept = ridge(whole.of(names).at(20)[0], fitted.strength, fitted.sharing)
        start = found.mean - sum(found.drivers.values())
        average = made.kept[:, method].mean()
        assert start == pytest.approx(average, abs=0.01)  # columns' means wander with 1 / n
    probes = {"new": given.probes["two"]} if given.probes else {}
    new = Evidence(given.metrics, given.known, probes)
    unseen = fitted.predict(new, ["new"])["new"]
    np.testing.assert_allclose(unseen.sides, other[0, method, :, draw, size], atol=EXACT)


def test_a_fitted_forecaster_comes_back_from_its_document(made, fitted, tmp_path):
    write_forecaster(tmp_path / "x.json", fitted, {"bank": "made"})
    again = read_forecaster(tmp_path / "x.json")
    for level in levels():
        given = evidence(made, 9, 0, 1, 2, level)
        one, two = (f.predict(given, ["one"])["one"] for f in (fitted, again))
        np.testing.assert_allclose(one.sides, two.sides, rtol=1e-8)
        np.testing.assert_allclose(one.interval95, two.interval95, rtol=1e-8)
        assert one.verdict == two.verdict
    assert fitted.recommend(fitted.predict(given, ["one"])) == ("one", 0.0)
    broken = json.loads((tmp_path / "x.json").read_text())
    del broken["products"]
    (tmp_path / "x.json").write_text(json.dumps(broken))
    with pytest.raises(MergelibError, match="x.json holds no forecaster"):
        read_forecaster(tmp_path / "x.json")
    assert to_document(fitted, {})["methods"] == list(METHODS)


def test_the_recommended_method_is_the_highest_and_its_regret_is_expected(made, fitted):
    given = Evidence(known=(Known(0.4, 0.9), Known(0.5, 0.9)))
    found = fitted.predict(given, METHODS)
    best, regret = fitted.recommend(found)
    assert best == max(found, key=lambda name: found[name].mean) == "one"  # loses least
    assert 0 <= regret < 0.05
    assert fitted.recommend(found) == (best, regret)
    with pytest.raises(MergelibError, match="at least one"):
        fitted.recommend({})


def test_evidence_that_does_not_fit_is_refused(made, fitted):
    some = Evidence(metrics={weight_metrics()[0]: 1.0})
    with pytest.raises(MergelibError, match="give all of them or none"):
        fitted.predict(some, ["one"])
    full = evidence(made, 0, 0, 0, 0, (False, False, "labels")).probes["one"]
    bare = evidence(made, 0, 0, 0, 0, (False, False, "features")).probes["one"]
    with pytest.raises(MergelibError, match="for both tasks, or for neither"):
        fitted.predict(Evidence(probes={"one": (full[0], bare[1])}), ["one"])
