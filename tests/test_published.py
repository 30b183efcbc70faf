"""The released tables: read whole, refused when damaged; published numbers as oracles."""

import argparse
import json
from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from mergelib.commands import published
from mergelib.core.errors import MergelibError
from mergelib.core.store import read_json, read_table
from mergelib.pairs.correlation import score
from mergelib.pairs.covariates import with_task_covariates
from mergelib.pairs.tables import FINAL_METHODS, assemble
from mergelib.pairs.targets import target
from mergelib.predict.agreement import agreement, agreement_of_files
from mergelib.predict.baselines import all_baselines
from mergelib.predict.crossval import fold_seeds, held_out
from mergelib.predict.folds import Linear
from mergelib.predict.qap import qap
from mergelib.predict.splits import LeaveOneTaskOut, LeaveTwoTasksOut, fold_masks
from mergelib.published.predictors import adam
from mergelib.published.released import (
    SETTINGS,
    TASKS,
    find_checkout,
    metric_names,
    read_setting,
)
from studies.released_fits import fit_folder, read_fits

pytestmark = [pytest.mark.numeric, pytest.mark.slow]

SEEDS = "loto_cv_l1_lambda1.0_random_seeds/seed_{}"


@pytest.fixture(scope="module")
def tables(released):
    return {s: read_setting(released, s) for s in SETTINGS}


def problem(tables, name="raw", methods=FINAL_METHODS):
    pairs = assemble(tables.metrics, tables.merges, methods)
    _, train, test = fold_masks(LeaveOneTaskOut(), pairs.ends)
    return pairs, target(pairs, name), train, test


# --- reading -----------------------------------------------------------------------------------


def test_pairs_that_enter_a_fit_are_those_of_the_released_fits(tables):
    counts = {"ViT-B-16_AdamW": 185, "ViT-B-32_AdamW": 186, "ViT-B-16_SGD": 173}
    for setting, n in counts.items():
        pairs = assemble(tables[setting].metrics, tables[setting].merges, FINAL_METHODS)
        assert (len(pairs), pairs.n_dropped) == (n, 190 - n)
        assert pairs.X.shape == (n, 28) and pairs.tasks == tuple(TASKS)
    one = tables["ViT-B-16_AdamW"]
    assert len(assemble(one.metrics, one.merges, ["ties"], keep_incomplete=True)) == 187
    assert len(assemble(one.metrics, one.merges, ["tsv"], keep_incomplete=True)) == 185
    assert one.meta["missing"]["merges"]["tsv"] == 2
    assert one.meta["missing"]["metric_values"] == 3


def test_normalized_accuracy_is_the_stored_one(released, tables):
    for setting in ("ViT-B-16_AdamW", "ViT-B-32_AdamW"):
        pairs = assemble(tables[setting].metrics, tables[setting].merges, ["tsv"])
        held = read_json(released / "results" / setting / "tsv/all_pairwise_summary_N20.json")
        keys = ["__".join(pairs.tasks[k] for k in ends) for ends in pairs.ends]
        for name, stored in (("raw", "acc/test/avg"), ("normalized", "normalized_acc/test/avg")):
            expected = [held[key]["avg"][0][stored] for key in keys]
            np.testing.assert_allclose(target(pairs, name)[:, 0], expected, atol=2e-7)


def test_redundant_metrics_are_the_identities_of_their_formulas(tables):
    m = tables["ViT-B-16_AdamW"].metrics
    v, rank = m["singular_value_ratio"], m["effective_rank"]
    np.testing.assert_allclose(m["spectral_gap"], 1 - v, atol=1e-5)
    np.testing.assert_allclose(m["stable_rank"], (1 + v) ** 2 / (1 + v**2), atol=1e-5)
    np.testing.assert_allclose(m["effective_rank_mergeability_score"], 2 - rank, atol=1e-5)


def test_sgd_merges_are_those_of_adamw(tables):
    assert "1896 of 1896" in tables["ViT-B-16_SGD"].meta["note"]


def test_the_command_writes_one_folder_a_setting(released, tables, tmp_path, capsys):
    found = call(["--from", released, "--to", tmp_path, "--json"])
    assert json.loads(capsys.readouterr().out) == found
    for setting in SETTINGS:
        folder = tmp_path / setting
        names = {p.name for p in folder.iterdir()}
        assert names == {"metrics.csv", "merges.csv", "tasks.csv", "meta.json"}
        again = read_table(folder / "metrics.csv")
        # a column of whole numbers reads as such
        pd.testing.assert_frame_equal(
            again, tables[setting].metrics, check_exact=True, check_dtype=False
        )
        tasks = read_table(folder / "tasks.csv")
        assert tasks["zero_shot"].between(0, 1).all() and len(tasks) == 20


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_repositorys_own_copy_is_what_the_checkout_gives(tables, root, setting):
    """What `mergelib published` makes today is what the repository holds."""
    folder, made = root / "book" / "tables" / "published" / setting, tables[setting]
    for name in ("metrics", "merges", "tasks"):
        # a column of whole numbers reads as such
        pd.testing.assert_frame_equal(
            read_table(folder / f"{name}.csv"),
            getattr(made, name),
            check_exact=True,
            check_dtype=False,
        )
    assert read_json(folder / "meta.json") == made.meta


# --- published numbers -------------------------------------------------------------------------


def test_stored_coefficients_give_the_stored_correlations(released, tables):
    runs = {s: ["loto_cv_l1_lambda1.0"] for s in SETTINGS}
    runs["ViT-B-16_AdamW"] += [SEEDS.format(s) for s in range(10)]
    for setting, names in runs.items():
        pairs, y, train, test = problem(tables[setting])
        for run in names:
            fits = read_fits(fit_folder(released, setting, run))
            assert set(fits) == set(FINAL_METHODS)
            for method, fit in fits.items():
                X = pairs.X[:, [pairs.metrics.index(m) for m in fit.metrics]]
                for k, task in enumerate(fit.tasks):
                    f = pairs.tasks.index(task)
                    low, high = X[train[f]].min(0), X[train[f]].max(0)
                    Z = 2 * (X - low) / np.where(high > low, high - low, 1) - 1
                    observed = y[test[f], FINAL_METHODS.index(method)]
                    r = np.corrcoef(Z[test[f]] @ fit.coef[k], observed)[0, 1]
                    assert abs(r - fit.r[k]) < 1e-6, (setting, run, method, task)


def test_the_abstracts_agreement_figures(released):
    run = fit_folder(released, "ViT-B-16_AdamW", "loto_cv_l1_lambda1.0")
    final = agreement_of_files([run / f"{m}_loto_results.json" for m in FINAL_METHODS])
    assert round(100 * final["top5_overlap"], 1) == 64.0
    assert round(100 * final["sign_agreement"], 1) == 79.3
    run = fit_folder(released, None, "loto_cv_no_leakage(MAIN)")
    methods = ("weight_avg", "arithmetic", "tsv", "isotropic")
    first = agreement_of_files([run / f"{m}_loto_results.json" for m in methods])
    assert round(100 * first["top5_overlap"], 1) == 46.7
    assert round(100 * first["sign_agreement"], 1) == 55.4
    other = fit_folder(released, "ViT-B-32_AdamW", "loto_cv_l1_lambda1.0")
    fits = {m: f.mean for m, f in read_fits(other).items()}
    assert round(100 * agreement(fits)["top5_overlap"], 1) == 66.0


def test_ten_seeds_of_our_own_agree_with_the_ten_released(released, tables):
    pairs, y, train, test = problem(tables["ViT-B-16_AdamW"])
    seeds = np.stack([fold_seeds(s, pairs.methods, len(train)) for s in range(10)], axis=-1)
    fit = adam.fit_folds(adam.L1, pairs.X, y, train, test, seeds, 1.0)
    ours = []
    for s in range(10):
        one = Linear(fit.low, fit.span, fit.coef[:, :, s], fit.intercept[:, :, s])
        ours.append(score(one.predict(pairs.X), y, test).r_fold_mean)
    theirs = []
    for s in range(10):
        folder = fit_folder(released, "ViT-B-16_AdamW", SEEDS.format(s))
        fits = read_fits(folder)
        theirs.append([fits[m].r.mean() for m in FINAL_METHODS])
    gap = np.abs(np.mean(ours, axis=0) - np.mean(theirs, axis=0))
    # How a processor rounds moves a fit as far as its start does, all ten in one direction.
    spread = np.sqrt((np.var(ours, axis=0, ddof=1) + np.var(theirs, axis=0, ddof=1)) / 2)
    assert (gap < 3 * spread).all()


def test_ridge_and_additive_effects_give_the_specified_numbers(tables):
    pairs, y, train, test = problem(tables["ViT-B-16_AdamW"])
    ridge = score(held_out("ridge", pairs.X, y, pairs.ends, train, test).prediction, y, test)
    np.testing.assert_allclose(ridge.r_fold_mean, [0.618, 0.478, 0.651, 0.501, 0.617], atol=6e-4)
    np.testing.assert_allclose(ridge.r_concatenated, [0.416, 0.164, 0.446, 0.204, 0.414], atol=6e-4)
    effects = score(all_baselines(pairs, y, train)["additive_task_effects"], y, test)
    np.testing.assert_allclose(effects.r_fold_mean, [0.957, 0.991, 0.950, 0.997, 0.954], atol=6e-4)


def test_leave_one_task_out_has_a_null_far_above_zero(tables):
    for setting, mean in (("ViT-B-16_AdamW", 0.50), ("ViT-B-32_AdamW", 0.53)):
        pairs, y, train, test = problem(tables[setting])
        null = qap("ridge", pairs.X, y, pairs.ends, train, test, n=60)
        assert abs(null.mean("r_fold_mean").mean() - mean) < 0.05


def test_what_is_known_before_merging_beats_the_published_predictor(tables):
    """Leave two tasks out, normalized accuracy, each pair once, mean over the five methods."""
    for setting in ("ViT-B-16_AdamW", "ViT-B-32_AdamW"):
        pairs, y, _, _ = problem(tables[setting], "normalized")
        _, train, test = fold_masks(LeaveTwoTasksOut(), pairs.ends)
        known = with_task_covariates(pairs, tables[setting].tasks)
        r = {}
        for name, X in (("ridge", known.X), ("paper-l1", pairs.X)):
            fit = held_out(name, X, y, pairs.ends, train, test)
            r[name] = score(fit.prediction, y, test).r_pooled.mean()
        assert r["ridge"] > r["paper-l1"] + 0.2


# --- damaged input -----------------------------------------------------------------------------


def call(words):
    parser = argparse.ArgumentParser()
    published.add_arguments(parser)
    return published.run(parser.parse_args([str(w) for w in words]))


@pytest.fixture
def checkout(tmp_path):
    """A checkout's layout with four tasks and made-up numbers."""
    root = tmp_path / "checkout"
    tasks = ["SUN397", "Cars", "MNIST", "DTD"]
    rng = np.random.default_rng(0)
    pairs = [f"{a}__{b}" for a, b in combinations(tasks, 2)]

    def write(path, value):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))

    metrics = {m: {"pairs": {p: rng.random() for p in pairs}} for m in metric_names()}
    merged = {}
    for pair in pairs:
        merged[pair] = {t: [{f"acc/test/{t}": rng.random()}] for t in pair.split("__")}
    for setting in SETTINGS:
        write(
            root / "results/mergeability" / setting / "pairwise_metrics_N20.json",
            {"datasets": tasks, "metrics": metrics},
        )
        for method in FINAL_METHODS:
            write(root / "results" / setting / method / "all_pairwise_summary_N20.json", merged)
    single = dict.fromkeys(tasks, 0.9)
    write(root / "results/finetuning/accs.json", {"ViT-B-16": single, "ViT-B-32": single})
    return root


METRICS = "results/mergeability/ViT-B-32_AdamW/pairwise_metrics_N20.json"
MERGES = "results/ViT-B-32_AdamW/ties/all_pairwise_summary_N20.json"


def test_a_failed_merge_stays_missing_and_is_counted(checkout, tmp_path, capsys):
    held = json.loads((checkout / MERGES).read_text())
    held["Cars__DTD"] = {"error": "out of memory"}
    (checkout / MERGES).write_text(json.dumps(held))
    found = call(["--from", checkout, "--to", tmp_path / "out"])
    assert found["ViT-B-32_AdamW"]["missing"]["merges"]["ties"] == 1
    assert found["ViT-B-32_AdamW"]["missing"]["zero_shot"] == 4
    shown = capsys.readouterr().out
    assert "ties 1" in shown and "zero_shot.csv is not beside" in shown
    merges = read_table(tmp_path / "out/ViT-B-32_AdamW/merges.csv")
    assert (merges.method == "ties").sum() == 5


@pytest.mark.parametrize(
    ("path", "damage", "message"),
    [
        (METRICS, None, "missing"),
        (MERGES, None, "missing"),
        (METRICS, lambda text: text[: len(text) // 2], "truncated"),
        (MERGES, lambda text: "[]", "not a map of pairs"),
        (MERGES, lambda text: text.replace("acc/test/Cars", "acc"), "no acc/test/Cars"),
        (METRICS, lambda text: text.replace('"Cars__DTD"', '"Cars__Dtd"', 1), "without Cars__DTD"),
        (METRICS, lambda text: text.replace('"stable_rank"', '"rank"'), "no metric stable_rank"),
        ("results/finetuning/accs.json", lambda text: "{}", "no backbone ViT-B-16"),
    ],
)
def test_a_damaged_file_is_named_and_nothing_is_written(checkout, tmp_path, path, damage, message):
    file = checkout / path
    if damage is None:
        file.unlink()
    else:
        file.write_text(damage(file.read_text()))
    with pytest.raises(MergelibError, match=message) as error:
        call(["--from", checkout, "--to", tmp_path / "out"])
    assert file.name in str(error.value) and str(file.parent) in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(MergelibError, match="git checkout d8068e73"):
        call(["--from", tmp_path / "none", "--to", tmp_path / "out"])


def test_a_checkout_is_found_where_it_is_named_or_lies(tmp_path, monkeypatch):
    root = tmp_path / "mergelib"
    monkeypatch.delenv("MERGELIB_RELEASED", raising=False)
    with pytest.raises(MergelibError, match=r"no checkout .* \.\./demystifying-mergeability or"):
        find_checkout("", root)
    second, first, named = (
        tmp_path / name for name in ("shared/published", "demystifying-mergeability", "elsewhere")
    )
    for folder in (second, first, named):
        (folder / "results").mkdir(parents=True)
        assert find_checkout("", root) == (folder if folder != named else first)
    assert find_checkout(named, root) == named
    monkeypatch.setenv("MERGELIB_RELEASED", str(named))
    assert find_checkout("", root) == named
    with pytest.raises(MergelibError, match="at nowhere"):
        find_checkout("nowhere", root)
