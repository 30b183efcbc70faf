"""`mergelib finetune`: one task, its log, several seeds, and what is refused."""

import numpy as np
import pytest
import yaml
from PIL import Image

from mergelib.cli import main
from mergelib.core.store import load_tensors, read_json, read_table
from mergelib.models.backbones import load
from mergelib.models.progress import LOG
from mergelib.pipeline import params
from mergelib.pipeline.keys import path
from mergelib.pipeline.units import data, tuned

RUN = {
    "name": "one",
    "tasks": ["digits", "braille"],
    "methods": {"weight_avg": {}},
    "sizes": {"train": 40, "calibration": 10, "test": 10},
    "pool_per_task": 2,
    "finetune": {"steps": 2, "batch": 8, "learning_rate": 1.0e-3},
}


@pytest.fixture
def words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN))
    return ["finetune", "--params", "run.yaml", "--store", "s", "--out", "o", "--task", "digits"]


def test_seeds_and_a_recipe_of_one_s_own(words, tmp_path, capsys):
    change = ["--set", "optimizer=sgd", "steps=3", "validate_every=2", "save_every=1"]
    assert main([*words, "--jobs", "1", "--seeds", "0", "5", *change]) == 0
    said = capsys.readouterr().out.splitlines()
    names = {f"digits-{seed}{s}" for seed in (0, 5) for s in (".safetensors", ".json", ".csv")}
    assert {file.name for file in (tmp_path / "o").iterdir()} == names
    assert len(said) == 2 and said[1].startswith("o/digits-5.safetensors: ")
    log = read_table(tmp_path / "o" / "digits-0.csv")
    assert list(log.columns) == list(LOG) and log["step"].tolist() == [1, 2, 3]
    assert log["validation_loss"].notna().tolist() == [False, True, False]
    one, other = (load_tensors(tmp_path / "o" / f"digits-{n}.safetensors") for n in (0, 5))
    assert any((one[name] != other[name]).any() for name in one)
    assert f"{read_json(tmp_path / 'o' / 'digits-0.json')['test']['fine_tuned']:.3f}" in said[0]
    assert not list((tmp_path / "s" / "resume").glob("*"))


REFUSED = {
    "steps": "no KEY=VALUE",
    "step=3": "unknown parameter 'step'",
    "steps=x": "steps must be int",
    "optimizer=adam": r"finetune.optimizer must be one of ('adamw', 'sgd')",
    "schedule=linear": "finetune.schedule must be one of",
    "augment=flip": "finetune.augment must be one of",
    "momentum=1.0": "finetune.momentum must be",
    "accumulate=9": "finetune.accumulate must be between 1 and finetune.batch",
    "patience=2": "give finetune.validate_every",
    "save_every=-1": "must be 0 or more",
}


def test_a_folder_of_one_s_own(words, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for k in range(40):
        file = tmp_path / "shapes" / ("dots", "bars")[k % 2] / f"{k}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file)
    own = RUN | {"tasks": [{"name": "shapes", "folder": "shapes"}, "digits"], "head": "prototypes"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(own))
    words[-1] = "shapes"
    assert main([*words, "--set", "augment=crop", "validate_every=1"]) == 0
    assert "of 10 test images" in capsys.readouterr().out
    before = load("glyph-vit").visual_state()
    after = load_tensors(tmp_path / "o" / "shapes-0.safetensors")
    assert set(after) == set(before) and any((after[n] != before[n]).any() for n in before)


@pytest.mark.parametrize("change", REFUSED)
def test_recipes_that_are_none(words, tmp_path, capsys, change):
    assert main([*words, "--set", change]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and REFUSED[change] in said
    assert [file.name for file in tmp_path.iterdir()] == ["run.yaml"]


def test_a_task_that_the_file_does_not_have(words, tmp_path, capsys):
    assert main([*words[:-1], "digit"]) == 2
    assert "unknown task of the run 'digit'; did you mean 'digits'" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["run.yaml"]


def test_what_is_kept_on_the_way_is_no_part_of_a_key(words, tmp_path):
    run = params.load(tmp_path / "run.yaml")
    often = params.with_recipe(run, ["save_every=1"], "here")
    other = params.with_recipe(run, ["augment=crop"], "here")
    places = [path(tmp_path, each, "tuned", "digits") for each in (run, often, other)]
    assert places[0] == places[1] != places[2]


def test_a_state_left_beside_a_finished_model_goes(words, tmp_path):
    run = params.load(tmp_path / "run.yaml")
    store = tmp_path / "s"
    data.make(store, run, "digits")
    tuned.make(store, run, "digits")
    left = tuned.resume(store, run, "digits")
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"")
    assert main([*words, "--jobs", "1"]) == 0
    assert not left.exists()
