"""Published figures against the released tables: verdicts, and the numbers they rest on."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mergelib.core.errors import MergelibError
from mergelib.core.store import read_json
from mergelib.predict.agreement import agreement_of_files
from studies.reproduction.figures import (
    COEFFICIENTS,
    DIFFERS,
    EVERY_WAY,
    EXACT,
    IMPOSSIBLE,
    NO_WAY,
    ROUNDING,
    SOME_WAY,
    SPREAD,
    TABLES,
    by_figure,
    derive,
    gather,
    judge,
    read_figures,
    read_own,
    reproduce,
    tally,
)
from studies.reproduction.folds import read_released
from studies.reproduction.own import KEYS, difference_of, fit_seeds
from studies.reproduction.runs import RUNS, left_out, problem
from studies.reproduction.stored import missing_weight, p_value, recovered
from studies.reproduction.summaries import identical
from studies.reproduction.tables import by_place, figure_rows, outcomes
from studies.survival_tables import read_frozen

pytestmark = [pytest.mark.numeric, pytest.mark.slow]

B16, B32, SGD = "ViT-B-16_AdamW", "ViT-B-32_AdamW", "ViT-B-16_SGD"


@pytest.fixture(scope="module")
def folder(root):
    return root / "book" / "tables" / "published"


@pytest.fixture(scope="module")
def figures(folder):
    return read_figures(folder / "figures.csv")


@pytest.fixture(scope="module")
def own(folder):
    return read_own(folder / "own_fits.csv")


@pytest.fixture(scope="module")
def evidence(released, own):
    return gather(released, own)


@pytest.fixture(scope="module")
def table(evidence, figures):
    return reproduce(evidence, figures)


def run_of(name, version="v8", setting=B16):
    return next(r for r in RUNS if (r.version, r.setting, r.name) == (version, setting, name))


# --- verdicts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "digits", "ours", "verdict"),
    [
        (46.7, 1, 46.6667, EXACT),
        (0.5, 1, 0.55, EXACT),  # a tie may round either way
        (55.3, 1, 55.357, ROUNDING),
        (0.30, 2, 0.31, ROUNDING),
        (0.30, 2, 0.3101, DIFFERS),
        (-0.11, 2, 0.11, DIFFERS),
        (2, 0, 2.0, EXACT),
        (0.43, 2, math.nan, IMPOSSIBLE),
    ],
)
def test_a_determined_figure_is_judged_by_its_printed_digits(value, digits, ours, verdict):
    assert judge(value, digits, ours) == verdict


def test_a_fitted_figure_is_judged_by_the_spread_of_the_seeds():
    # ten runs of ours and one published: the prediction interval, by hand
    reach = stats.t(9).ppf(0.975) * 0.02 * math.sqrt(1.1) + 0.0005
    for off, verdict in ((0.99 * reach, SPREAD), (1.01 * reach, DIFFERS)):
        assert judge(0.6, 3, 0.6 + off, 0.02, 10) == verdict
        assert judge(0.6, 3, 0.6 - off, 0.02, 10) == verdict
    # ten published runs: the interval of a difference of means
    reach = stats.t(9).ppf(0.975) * 0.02 * math.sqrt(0.2) + 0.0005
    assert judge(0.6, 3, 0.6 + 0.99 * reach, 0.02, 10, 10) == SPREAD
    assert judge(0.6, 3, 0.6 + 1.01 * reach, 0.02, 10, 10) == DIFFERS
    assert judge(64.0, 1, 64.0, 0.0, 10) == SPREAD


def test_one_fit_in_twenty_of_the_same_kind_falls_outside():
    rng = np.random.default_rng(0)
    drawn = rng.normal(0.5, 0.02, (2000, 11))
    verdicts = [judge(x[0], 6, x[1:].mean(), x[1:].std(ddof=1), 10) for x in drawn]
    assert 0.035 < verdicts.count(DIFFERS) / 2000 < 0.065


def test_a_figure_comes_back_in_every_way_or_in_some_or_in_none():
    verdicts = [EXACT, SPREAD, EXACT, DIFFERS, DIFFERS, IMPOSSIBLE]
    table = pd.DataFrame({"id": list("aabbcd"), "verdict": verdicts})
    table = table.assign(where="text", version="v8")
    found = by_figure(table).set_index("id")["outcome"].to_dict()
    assert found == {"a": EVERY_WAY, "b": SOME_WAY, "c": NO_WAY, "d": IMPOSSIBLE}


def test_a_table_of_figures_has_one_row_each_with_both_ways(table, figures):
    rows = figure_rows(table)
    assert rows["id"].is_unique and len(rows) == len(figures)
    row = rows.set_index("id").loc["v8-ViT-B-16_AdamW-l1-sign_agreement-all"]
    assert row["printed"] == "79.3" and row["data"] == "79.29" and "±" in row["own"]
    assert sum(outcomes(table).values()) == len(figures)
    assert by_place(table)["figures"].sum() == len(figures)
    counts = by_figure(table).groupby(["version", "outcome"]).size().to_dict()
    frozen = read_frozen()["reproduced"].set_index(["version", "outcome"])["figures"].to_dict()
    assert counts == frozen


def test_averages_extremes_and_changes_are_derived_per_seed():
    rows = [
        ("v8", B16, run, method, "r_fold_mean", "", seed, value)
        for run, values in (("l1", (0.6, 0.4)), ("without gradient", (0.3, 0.2)))
        for method, value in zip(("tsv", "ties"), values, strict=True)
        for seed in (0, 1)
    ]
    frame = pd.DataFrame(rows, columns=[*KEYS, "seed", "value"])
    frame.loc[frame["seed"] == 1, "value"] += 0.01 * (frame["run"] == "l1")
    found = derive(frame).set_index(["run", "method", "quantity", "seed"])["value"]
    assert found["l1", "average", "r_fold_mean", 0] == pytest.approx(0.5)
    assert found["l1", "lowest", "r_fold_mean", 1] == pytest.approx(0.41)
    assert found["l1", "highest", "r_fold_mean", 0] == pytest.approx(0.6)
    assert found["without gradient", "tsv", "change in r", 0] == pytest.approx(-0.3)
    assert found["without gradient", "average", "change in r", 1] == pytest.approx(-0.26)
    assert ("l1", "tsv", "change in r", 0) not in found.index


def test_a_missing_weight_is_found_from_the_two_correlations():
    rng = np.random.default_rng(0)
    X, w = rng.normal(size=(60, 3)), np.array([3.0, -5.0, 2.5])
    y = X @ w + rng.normal(size=60)
    sides = np.arange(60) < 45, np.arange(60) >= 45
    r = tuple(stats.pearsonr(X[rows] @ w, y[rows])[0] for rows in sides)
    found = missing_weight(X[:, :2] @ w[:2], X[:, 2], y, sides, r, 2.3)
    assert found == pytest.approx(2.5, abs=1e-6)


def test_p_is_pearsons_own():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 30))
    r, p = stats.pearsonr(x, y)
    assert p_value(np.array(r), 30) == pytest.approx(p)


def test_a_damaged_list_of_figures_is_refused(folder, tmp_path):
    text = (folder / "figures.csv").read_text()
    path = tmp_path / "figures.csv"
    path.write_text(text.replace("digits", "decimals", 1))
    with pytest.raises(MergelibError, match="no column digits"):
        read_figures(path)
    path.write_text(text + text.splitlines()[1] + "\n")
    with pytest.raises(MergelibError, match="repeats the id"):
        read_figures(path)


# --- the released data -------------------------------------------------------------------------


def test_stored_coefficients_give_the_stored_correlations(evidence):
    checks = evidence.checks
    assert checks.groupby("version")["method"].count().to_dict() == {"v1": 12 * 4, "v8": 32 * 5}
    # without a penalty single precision shows in the sixth decimal
    assert (checks.loc[checks["run"] != "no penalty", "raw"] < 1e-6).all()
    assert (checks["raw"] < 5e-6).all()
    # normalized accuracy, the target of the paper's text, is not what they were fitted to
    by_run = checks.groupby(["version", "setting", "run"])["normalized"].max()
    assert (by_run > 0.2).all()
    pairs = checks.groupby(["version", "setting"])["n_pairs"].agg(["min", "max"])
    expected = {("v1", B16): 179, ("v8", B16): 185, ("v8", B32): 186, ("v8", SGD): 173}
    for at, n in expected.items():
        assert tuple(pairs.loc[at]) == (n, n)


def test_the_first_versions_main_run_had_a_29th_metric(evidence, released):
    """A slow literal formula: 28 listed weights miss the stored r, one more gives it."""
    run = run_of("dense", "v1")
    at = problem(run, evidence.data)
    assert len(at.pairs.metrics) == 29
    held = read_released(run, at, released)
    table, shares = recovered(evidence.data)
    assert (table["held-out r, as listed"] > 0.02).all()
    assert (table[["held-out r, completed", "training r, completed"]] < 1e-6).all(axis=None)
    assert table["least sum, completed"].min() > 0.9
    assert table["largest sum, completed"].max() < 1.1
    assert table["least sum, as listed"].min() < -200
    f, k = 3, run.methods.index("tsv")
    inside = at.train[f]
    low, high = at.pairs.X[inside].min(0), at.pairs.X[inside].max(0)
    Z = 2 * (at.pairs.X - low) / (high - low) - 1
    r = stats.pearsonr(Z[at.test[f]] @ held.coef[f, k], at.y[at.test[f], k])[0]
    assert abs(r - held.r[f, k]) > 1e-3
    assert shares["top5_overlap"] == pytest.approx(46.67, abs=0.01)


def test_the_abstracts_figures(table, released):
    found = table[(table["where"] == "abstract") & (table["how"] == COEFFICIENTS)]
    verdicts = found.set_index(["version", "quantity"])["verdict"]
    assert verdicts["v8", "top5_overlap"] == verdicts["v8", "sign_agreement"] == EXACT
    assert verdicts["v1", "top5_overlap"] == EXACT
    assert verdicts["v1", "sign_agreement"] == ROUNDING  # 55.36 printed as 55.3
    run = run_of("l1")
    paths = [run.path(released) / f"{m}_loto_results.json" for m in run.methods]
    other = agreement_of_files(paths)
    ours = found.set_index(["version", "quantity"])["ours"]
    assert ours["v8", "sign_agreement"] == pytest.approx(100 * other["sign_agreement"])
    assert round(ours["v1", "sign_agreement"], 1) == 55.4


def test_all_that_the_tables_determine_is_exact_but_for_one_cell(table):
    """Mean accuracies to 4 decimals, gains to 0.01, rank correlations to 3 decimals."""
    found = table[table["how"] == TABLES]
    assert len(found) > 280
    other = found[found["verdict"] != EXACT]
    assert set(other["run"]) == {"grad_magnitude_1"} and set(other["version"]) == {"v1"}
    assert set(other["method"]) == {"weight_avg", "average"}
    rows = table.set_index("id")
    one = rows.loc["v8-ViT-B-16_AdamW-grad_magnitude_1-gain-average"]
    assert one["ours"] == pytest.approx(0.41, abs=0.005)
    one = rows.loc["v8-ViT-B-16_AdamW-n=10-rho_with_n=200-encoder_gradient_l2_distance-none"]
    assert one["ours"] == pytest.approx(0.431, abs=5e-4)


def test_what_stored_coefficients_do_not_give_is_known(table):
    found = table[(table["how"] == COEFFICIENTS) & (table["verdict"] == DIFFERS)]
    assert found["where"].value_counts().to_dict() == {
        "table of L1 against backward elimination": 13,  # of older runs
        "table of greedy selection": 1,
        "text": 1,  # the range's lower end: 0.328, printed 0.34
    }


def test_every_figure_is_in_the_table_and_most_reproduce(table, figures):
    assert set(table["id"]) == set(figures["id"])
    assert not table.duplicated(["id", "how"]).any()
    counts = tally(table, ["how"]).sum()
    assert counts.sum() == len(table)
    assert counts[[EXACT, ROUNDING, SPREAD]].sum() > 0.9 * len(table)
    impossible = table[table["verdict"] == IMPOSSIBLE]
    assert (impossible["how"] == "none").all() and (impossible["note"] != "").all()
    own = table[table["how"].str.startswith("own")]
    # one in twenty by chance; ablations share their base run
    assert (own["verdict"] == DIFFERS).mean() < 0.15


def test_the_released_ablations_of_one_backbone_left_categories_in_part(released):
    removed = {}
    for setting in (B16, B32):
        for name in ("gradient", "activation", "subspace", "task vector", "effective rank"):
            run = run_of(f"without {name}", setting=setting)
            removed[setting, name] = len(left_out(run, released))
    assert list(removed.values()) == [4, 3, 6, 3, 1, 6, 4, 6, 5, 7]
    path = run_of("without effective rank").path(released) / "tsv_loto_results.json"
    assert "stable_rank" in read_json(path)["average_coefficients"]


def test_sgd_merges_are_those_of_adamw(evidence):
    counts = identical(evidence.data.tables, SGD, B16)
    assert (counts["pairs"] == counts["identical"]).all() and counts["pairs"].sum() == 948


# --- our own fits ------------------------------------------------------------------------------


def test_the_frozen_fits_hold_every_run(own):
    seen = set(own[["version", "setting", "run"]].itertuples(index=False, name=None))
    assert seen == {(r.version, r.setting, r.name) for r in RUNS}
    assert not own.duplicated([*KEYS, "seed"]).any()
    assert set(own.groupby(["version", "setting", "run"])["seed"].nunique()) == {3, 10}


def test_fits_made_here_are_the_frozen_ones_up_to_rounding(evidence, own):
    run = run_of("no penalty", setting=B32)
    some = fit_seeds(run, evidence.data, range(2))
    kept = some[some["quantity"] == "r_fold_mean"]
    assert len(kept) == 10
    assert difference_of(kept, own) < 0.01
    one = fit_seeds(run, evidence.data, [1], ["ties"])
    assert set(one["method"]) == {"ties"} and difference_of(one[:1], some) < 0.01
    with pytest.raises(MergelibError, match="lacks some"):
        difference_of(one.assign(seed=99), own)
