"""`mergelib fit` and `mergelib agreement`: one JSON object, one clear error."""

import argparse
import json

import numpy as np
import pandas as pd
import pytest
from test_predict import tables

from mergelib.commands import agreement, fit
from mergelib.core.errors import MergelibError
from mergelib.core.store import write_table


def call(module, *words):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return module.run(parser.parse_args([str(w) for w in words]))


@pytest.fixture
def files(tmp_path):
    metrics, merges = tables(n_tasks=6)
    metrics.loc[0, "m0"] = None
    write_table(tmp_path / "metrics.csv", metrics)
    write_table(tmp_path / "merges.csv", merges)
    return ["--metrics", tmp_path / "metrics.csv", "--merges", tmp_path / "merges.csv"]


def test_one_json_object_with_the_promised_keys(files, capsys):
    returned = call(fit, *files, "--method", "tsv", "--qap", 5, "--json")
    printed = json.loads(capsys.readouterr().out)
    assert printed == returned
    assert set(printed) >= {
        "r_fold_mean", "r_concatenated", "r_pooled", "rho_fold_mean", "n_pairs", "n_dropped",
        "folds", "coefficients", "baselines", "qap",
    }  # fmt: skip
    assert (printed["n_pairs"], printed["n_dropped"], len(printed["folds"])) == (14, 1, 6)
    assert set(printed["qap"]) >= {"p", "null_mean", "null_95"}


def test_the_readable_table_names_every_baseline(files, capsys):
    record = call(fit, *files, "--predictor", "ols", "--bootstrap", 20)
    shown = capsys.readouterr().out
    assert all(name in shown for name in record["baselines"]) and "14 pairs (1 dropped)" in shown


def test_task_covariates_and_another_setting(files, tmp_path, capsys):
    tasks = pd.DataFrame(
        {"task": [f"T{k}" for k in range(6)], "zero_shot": np.linspace(0.2, 0.7, 6)}
    )
    tasks = tasks.assign(fine_tuned=0.9, n_classes=10, n_train=500)
    write_table(tmp_path / "tasks.csv", tasks)
    words = [*files, "--tasks", tmp_path / "tasks.csv", "--split", "l2to", "--json"]
    plain = call(fit, *words)
    known = call(fit, *words, "--task-covariates")
    assert len(known["coefficients"]) == len(plain["coefficients"]) + 10
    assert "base_knowledge" in plain["baselines"]
    other = ["--to-metrics", files[1], "--to-merges", files[3]]
    assert call(fit, *files, *other, "--json")["transfer"]["r"] > 0  # its own training data
    capsys.readouterr()
    with pytest.raises(MergelibError, match="--tasks FILE"):
        call(fit, *files, "--task-covariates")
    with pytest.raises(MergelibError, match="together"):
        call(fit, *files, *other[:2])


def test_strength_can_be_chosen_by_nesting(files, capsys):
    record = call(fit, *files, "--alpha", "auto", "--json")
    capsys.readouterr()
    assert len(record["alpha"]) == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "magic"], "Known: weight_avg, tsv"),
        (["--alpha", "much"], "give a number or auto"),
        (["--qap", "-3"], "give at least 0"),
        (["--residual-of", "x"], "Known: raw, normalized"),
        (["--metrics", "nowhere.csv"], "nowhere.csv is missing"),
    ],
)
def test_bad_input_is_one_clear_error(files, words, message):
    with pytest.raises(MergelibError, match=message):
        call(fit, *files, *words)


def test_saved_fits_agree(files, tmp_path, capsys):
    saved = []
    for method in ("tsv", "weight_avg"):
        record = call(fit, *files, "--method", method, "--json")
        saved.append(tmp_path / f"{method}.json")
        saved[-1].write_text(json.dumps(record))
    capsys.readouterr()
    found = call(agreement, *saved, "--json")
    assert json.loads(capsys.readouterr().out) == found
    assert 0 <= found["top5_overlap"] <= 1 and 0 <= found["sign_agreement"] <= 1
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(MergelibError, match="holds no coefficients"):
        call(agreement, *saved, tmp_path / "other.json")
