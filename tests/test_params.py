"""Parameter files: every mistake has one clear line."""

import pytest
import yaml

from mergelib.cli import main
from mergelib.core.errors import MergelibError
from mergelib.pipeline.params import load

GOOD = {
    "name": "tiny",
    "tasks": ["braille", "digits"],
    "methods": {"weight_avg": {}, "ties": {"density": 0.3}},
    "sizes": {"train": 8, "calibration": 4, "test": 4},
    "pool_per_task": 2,
    "finetune": {"steps": 1, "learning_rate": 1.0e-4},
}


def write(tmp_path, changes):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(GOOD | changes))
    return file


def test_a_good_file(tmp_path):
    run = load(write(tmp_path, {}))
    assert run.finetune.steps == 1 and run.finetune.batch == 64


@pytest.mark.parametrize("name", ["smoke", "glyph20", "more_methods"])
def test_the_files_that_come_with_the_project(root, name):
    assert load(root / "params" / f"{name}.yaml").name == name


WRONG = {
    "unknown task": ({"tasks": ["braille", "digit"]}, "unknown task 'digit'; did you mean"),
    "unknown method": ({"methods": {"tie": {}}}, "unknown merging method 'tie'"),
    "unknown metric": ({"metrics": ["cosine"]}, "unknown metric 'cosine'"),
    "unknown parameter": ({"task": []}, "unknown parameter 'task'; did you mean 'tasks'"),
    "nested unknown": ({"finetune": {"step": 1}}, "finetune: unknown parameter 'step'"),
    "wrong type": ({"seed": "one"}, "seed must be int, not 'one'"),
    "a float that YAML reads as text": (
        {"finetune": {"learning_rate": "3e-4"}},
        "learning_rate must be float",
    ),
    "truth for a number": ({"finetune": {"steps": True}}, "steps must be int"),
    "method parameter": ({"methods": {"ties": {"density": 3}}}, "density"),
    "unknown method parameter": ({"methods": {"ties": {"k": 3}}}, "unknown ties parameter 'k'"),
    "list item": ({"tasks": ["braille", 3]}, r"tasks\[1\] must be str"),
    "a name that leads elsewhere": ({"name": "../tiny"}, "name must be one of a folder"),
    "the folder above as a name": ({"name": ".."}, "name must be one of a folder"),
    "one task": ({"tasks": ["braille"]}, "at least two"),
    "a task twice": ({"tasks": ["braille", "braille"]}, "twice"),
    "pool too large": ({"pool_per_task": 9}, "pool_per_task"),
    "unknown edition": ({"edition": "published"}, "edition must be one of"),
    "an older file's mode": ({"mode": "paper"}, "'mode' is called 'edition': rename it"),
    "unknown rule": ({"finetune": {"rule": "l3"}}, "unknown fine-tuning rule 'l3'"),
    "an older file's regularizer": ({"finetune": {"regularizer": "l3"}}, "is called 'rule'"),
    "a strength below 0": (
        {"finetune": {"rule": "l2_to_base", "strength": -1}},
        "finetune.strength wants",
    ),
    "a backbone without weights": ({"backbone": "ViT-B-32"}, "wants weights"),
    "a strength of nothing": ({"finetune": {"strength": 0.1}}, "finetune.strength wants"),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_named(tmp_path, name):
    changes, words = WRONG[name]
    file = write(tmp_path, changes)
    with pytest.raises(MergelibError, match=words) as caught:
        load(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("text", ["[1, 2", "just words", "\x00"])
def test_files_that_are_no_mapping(tmp_path, text):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(MergelibError, match=r"run\.yaml"):
        load(tmp_path / "run.yaml")


def test_a_missing_key_and_a_missing_file(tmp_path):
    (tmp_path / "run.yaml").write_text("name: x\n")
    with pytest.raises(MergelibError, match="parameter 'tasks' is missing"):
        load(tmp_path / "run.yaml")
    with pytest.raises(MergelibError, match="none.yaml is missing"):
        load(tmp_path / "none.yaml")


def test_the_command_line_says_one_line_and_writes_nothing(tmp_path, capsys):
    file = write(tmp_path, {"tasks": ["braille", "digit"]})
    paths = ["--store", str(tmp_path / "store"), "--tables", str(tmp_path / "tables")]
    assert main(["run", "--params", str(file), *paths]) == 2
    said = capsys.readouterr().err
    assert said.startswith("mergelib: error: ") and said.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["run.yaml"]
