"""The study of fine-tuning rules: its file, what it chooses, its merges, and going on."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from mergelib.core.errors import MergelibError
from mergelib.core.store import load_tensors, read_json, read_table
from mergelib.merging.engine import merge
from mergelib.models.backbones import load as backbone
from mergelib.models.heads import zero_shot_head
from mergelib.pipeline import keys
from mergelib.pipeline.units import merged
from mergelib.tasks import TASKS, build
from studies.training import __main__ as command
from studies.training import frozen, scores, stages
from studies.training.variants import CONTROL, Variant, groups, load

TASKS_OF = ["latin_upper", "braille", "digits"]
GOOD = {
    "run": {
        "name": "small",
        "tasks": TASKS_OF,
        "sizes": {"train": 24, "calibration": 10, "test": 12},
        "pool_per_task": 3,
        "finetune": {"steps": 4, "batch": 12, "learning_rate": 1.0e-3},
        "methods": {"weight_avg": {}, "tsv": {}},
        "metrics": ["subspace_overlap", "encoder_gradient_l2_distance"],
    },
    "search_seed": 0,
    "seeds": [1, 2],
    "scales": [0.5, 1.0],
    "rules": [
        {"rule": "control", "steps": [2, 4]},
        {"rule": "coefficient_sampling", "strengths": [0.5, 0.7, 1.0]},
        {"rule": "lora", "strengths": [2.0], "steps": [2]},
    ],
}


def written(tmp_path, **changes):
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(GOOD | changes))
    return file


# ---- The file -----------------------------------------------------------------------------------


def test_the_file_of_the_project_asks_for_what_chapter_1_trains(root):
    plan = load(root / "params" / "training_to_merge.yaml")
    usual = yaml.safe_load((root / "params" / "glyph20.yaml").read_text())
    recipe = plan.run.finetune
    assert all(getattr(recipe, name) == value for name, value in usual["finetune"].items())
    sizes = plan.run.sizes
    assert all(getattr(sizes, name) == value for name, value in usual["sizes"].items())
    assert set(plan.run.tasks) <= set(usual["tasks"]) and len(plan.run.tasks) == 8
    assert plan.run.methods == usual["methods"] and len(plan.seeds) == 5
    assert {each.rule for each in plan.rules} == {
        CONTROL,
        *("gradient_norm", "l2_to_base", "sharpness_aware", "lora", "linearized"),
        *("interference", "coefficient_sampling", "coefficient_and_partner", "trajectory_average"),
    }
    # fewer steps, by 2 and by 4, are a control of their own; and every number of steps has one
    steps = {variant.steps for variant in plan.controls()}
    assert {recipe.steps, recipe.steps // 2, recipe.steps // 4} <= steps


def test_variants_are_the_files_lines(tmp_path):
    plan = load(written(tmp_path))
    assert plan.variants() == [
        *(Variant(CONTROL, 0.0, steps) for steps in (2, 4)),
        *(Variant("coefficient_sampling", strength, 4) for strength in (0.5, 0.7, 1.0)),
        Variant("lora", 2.0, 2),
    ]
    control, sampled = (plan.run_of(plan.variants()[k], 7).finetune for k in (0, 3))
    assert (control.rule, control.strength, control.steps, control.seed) == ("", 0.0, 2, 7)
    assert (sampled.rule, sampled.strength, sampled.steps) == ("coefficient_sampling", 0.7, 4)
    assert groups("abc") == [("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c")]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rules": [{"rule": "control"}, {"rule": "lorra"}]}, "did you mean 'lora'"),
        ({"rules": [{"rule": "lora"}]}, "no control of 4 steps"),
        ({"rules": [{"rule": "control"}, {"rule": "lora", "steps": [8]}]}, "no control of 8 steps"),
        ({"seeds": [0, 1]}, "seed 0 is searched with"),
        ({"scales": [0.5]}, "scales must hold 1"),
        ({"run": GOOD["run"] | {"tasks": ["digits"]}}, "at least two names"),
        ({"strength": [1]}, "unknown parameter 'strength'"),
    ],
)
def test_mistakes_are_named(tmp_path, changes, words):
    file = written(tmp_path, **changes)
    with pytest.raises(MergelibError, match=words) as caught:
        load(file)
    assert str(file) in str(caught.value) or "lorra" in str(caught.value)


def test_a_missing_file_is_named(tmp_path, capsys):
    assert command.main(["--params", str(tmp_path / "no.yaml")]) == 1
    assert "no.yaml is missing" in capsys.readouterr().err


# ---- What is chosen -----------------------------------------------------------------------------


def searched(rows):
    """A search's table: (rule, strength, steps, raw of two methods, single accuracy)."""
    parts = []
    for name, strength, steps, raws, single in rows:
        for method, raw in zip(("tsv", "ties"), raws, strict=True):
            of = (name, strength, steps, 0, method)
            # merges of all models say otherwise, and do not count
            parts += [(*of, 2, raw, single, 1.0), (*of, 8, 1 - raw, single, 1.0)]
    return pd.DataFrame(
        parts, columns=[*stages.NAMED, "seed", "method", "models", "raw", "fine_tuned", "length"]
    )


def test_the_best_and_the_best_that_costs_little():
    table = searched(
        [
            (CONTROL, 0.0, 4, (0.5, 0.5), 0.900),
            (CONTROL, 0.0, 2, (0.4, 0.4), 0.800),
            ("far", 0.1, 4, (0.52, 0.5), 0.899),
            ("far", 0.2, 4, (0.55, 0.5), 0.896),  # 0.4 points: allowed
            ("far", 0.4, 4, (0.6, 0.6), 0.890),  # the best, at one point
            ("near", 0.1, 4, (0.52, 0.5), 0.9),  # equal to the next: the smaller
            ("near", 0.2, 4, (0.5, 0.52), 0.9),
            ("near", 0.3, 4, (0.51, 0.5), 0.9),
            ("dear", 1.0, 2, (0.5, 0.5), 0.7),  # none is cheap: the two best
            ("dear", 2.0, 2, (0.4, 0.5), 0.7),
            ("dear", 3.0, 2, (0.3, 0.5), 0.7),
            ("lone", 1.0, 2, (0.3, 0.5), 0.8),
        ]
    )
    assert stages.chosen(table) == [
        Variant(CONTROL, 0.0, 4),
        Variant(CONTROL, 0.0, 2),
        Variant("far", 0.4, 4),
        Variant("far", 0.2, 4),
        Variant("near", 0.1, 4),
        Variant("near", 0.2, 4),
        Variant("dear", 1.0, 2),
        Variant("dear", 2.0, 2),
        Variant("lone", 1.0, 2),
    ]


def test_the_best_scale_of_each_and_of_equal_ones_the_nearest_to_one():
    rows = [
        ("a", 2, 0.5, 0.8), ("a", 2, 1.0, 0.7), ("a", 2, 2.0, 0.8),
        ("a", 8, 0.5, 0.6), ("a", 8, 1.0, 0.6), ("a", 8, 2.0, 0.5),
        ("b", 2, 0.5, 0.1), ("b", 2, 1.0, 0.2), ("b", 2, 2.0, 0.3),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["method", "models", "scale", "raw"])
    best = stages._best(table.assign(rule="r", strength=1.0, steps=4))
    assert table[best][["method", "models", "scale"]].to_numpy().tolist() == [
        ["a", 2, 0.5],
        ["a", 8, 1.0],
        ["b", 2, 2.0],
    ]


# ---- The merges, and the whole line -------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The small study, run through: plan, store and folder of tables."""
    place = tmp_path_factory.mktemp("study")
    plan = load(written(place))
    command.study(plan, place / "store", place / "tables", jobs=1)
    return plan, place / "store", place / "tables"


@pytest.mark.slow
@pytest.mark.numeric
def test_a_merge_is_the_librarys_and_a_scale_stretches_it(made):
    plan, store, folder = made
    variant = next(v for v in stages.chosen(read_table(folder / "search.csv")) if v.rule != CONTROL)
    run = plan.run_of(variant, plan.search_seed)
    apart = []
    for method in run.methods:
        for scale in plan.scales:
            found = scores.read_merges(store, run, method, "calibration", {2: [scale], 3: [scale]})
            assert len(found) == 3 * 2 + 3 and (found["scale"] == scale).all()
            for group in groups(run.tasks):
                files = [keys.path(store, run, "tuned", task) for task in group]
                base = load_tensors(keys.path(store, run, "base"))
                whole = merge(base, [load_tensors(file) for file in files], method)
                state = {n: base[n] + scale * (whole[n] - base[n]) for n in base}
                part = found[found["group"] == "+".join(group)].set_index("task")["accuracy"]
                apart += [part[task] - literal(state, run, task) for task in group]
    # one image may change its side, whose two best classes are even up to rounding
    images = np.abs(apart) * run.sizes.calibration
    assert images.max() < 1.5 and images.sum() < 2.5 and len(images) == 2 * 2 * 9


def literal(state, run, task):
    """Accuracy on the task's calibration split, one image at a time."""
    held = backbone()
    built = build(task, {"train": 24, "calibration": 10, "test": 12}, run.seed)
    head = zero_shot_head(held, TASKS[task].class_names, TASKS[task].templates)
    held.model.visual.load_state_dict(state)
    right = 0
    with torch.no_grad():
        for image, label in zip(built.calibration.images, built.calibration.labels, strict=True):
            features = held.model.visual(held.normalize(image[None]))
            scores_of = torch.nn.functional.normalize(features, dim=-1) @ head.T
            right += int(scores_of.argmax() == label)
    return right / len(built.calibration.labels)


@pytest.mark.slow
def test_the_judged_rows_are_those_of_the_pipeline(made):
    plan, store, folder = made
    tables = {name: read_table(folder / f"{name}.csv") for name in ("merges", "many", "tasks")}
    variants = stages.chosen(read_table(folder / "search.csv"))
    assert len(variants) == 2 + 2 + 1
    n_pairs, n_methods = 3, 2
    assert len(tables["merges"]) == len(variants) * len(plan.seeds) * n_pairs * n_methods
    assert len(tables["many"]) == len(variants) * len(plan.seeds) * len(TASKS_OF) * n_methods
    assert len(tables["tasks"]) == len(variants) * len(plan.seeds) * len(TASKS_OF)
    assert len(read_table(folder / "metrics.csv")) == len(variants) * len(plan.seeds) * n_pairs
    variant = variants[-1]
    run = plan.run_of(variant, 2)
    rows = tables["merges"]
    rows = rows[(rows["rule"] == variant.rule) & (rows["seed"] == 2)]
    for row in rows.itertuples():
        expected = merged.accuracies(store, run, (row.task_a, row.task_b), row.method)
        assert row.acc_a == pytest.approx(expected["acc_a"], abs=1e-6)
        assert row.acc_b == pytest.approx(expected["acc_b"], abs=1e-6)
    single = tables["tasks"]
    single = single[(single["rule"] == variant.rule) & (single["seed"] == 2)].set_index("task")
    assert rows["single_a"].tolist() == single.loc[rows["task_a"], "fine_tuned"].tolist()
    base = load_tensors(keys.path(store, run, "base"))
    model = load_tensors(keys.path(store, run, "tuned", "digits"))
    moved = np.concatenate([(model[n] - base[n]).double().numpy().ravel() for n in base])
    assert single.loc["digits", "length"] == pytest.approx(np.linalg.norm(moved), rel=1e-5)


@pytest.mark.slow
def test_where_a_scale_of_one_was_best_both_accuracies_are_one(made):
    _, _, folder = made
    scales = read_table(folder / "scales.csv")
    assert (scales[scales["best"]].groupby([*stages.NAMED, "method", "models"]).size() == 1).all()
    best = scales[scales["best"] & (scales["models"] == 2)].set_index([*stages.NAMED, "method"])
    rows = read_table(folder / "merges.csv").set_index([*stages.NAMED, "method"])
    same = best["scale"].reindex(rows.index).eq(1.0)
    assert (rows["acc_a"] == rows["best_a"])[same].all()


@pytest.mark.slow
def test_what_is_made_is_not_made_again(made, tmp_path, monkeypatch):
    plan, _, folder = made
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    empty = tmp_path / "store"

    def no_work(*given):
        raise AssertionError(f"made again: {given}")

    for name in ("search", "scales", "judge"):
        monkeypatch.setattr(stages, name, no_work)
    command.study(plan, empty, folder, jobs=1)  # from the tables alone, without the store
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert read_json(folder / "meta.json")["finetuning_seeds"] == [1, 2]
    more = replace(plan, seeds=[1, 2, 3])
    with pytest.raises(AssertionError, match="made again"):
        command.study(more, empty, folder, jobs=1)
    other = replace(plan, run=replace(plan.run, methods={"ties": {}}))
    assert frozen.known(folder, other, "search", plan.variants(), 0) == []


def test_a_part_of_the_study_asks_for_its_rules_and_the_control(tmp_path, monkeypatch):
    plan = load(written(tmp_path))
    seen = []
    monkeypatch.setattr(stages.Work, "prepare", lambda work: None)
    monkeypatch.setattr(stages, "search", lambda work, variants: seen.extend(variants))
    monkeypatch.setattr(frozen, "add", lambda *given: None)
    command.study(plan, tmp_path / "store", tmp_path / "tables", 1, "search", ["lora"])
    assert {variant.rule for variant in seen} == {CONTROL, "lora"}
    with pytest.raises(MergelibError, match="did you mean 'lora'"):
        command.study(plan, tmp_path / "store", tmp_path / "tables", rules=["lorra"])


def test_new_rows_take_the_place_of_old_ones(tmp_path):
    plan = load(written(tmp_path))
    one, other = Variant(CONTROL, 0.0, 4), Variant("lora", 2.0, 2)

    def table(variant, seed, values):
        rows = [(*variant, seed, task, value) for task, value in values.items()]
        return pd.DataFrame(rows, columns=[*stages.NAMED, "seed", "task", "value"])

    for variant, values in ((one, {"a": 1, "b": 2}), (other, {"a": 3}), (one, {"b": 5, "a": 4})):
        frozen.add(tmp_path, plan, "judge", [variant], 1, {"tasks": table(variant, 1, values)})
    frozen.add(tmp_path, plan, "judge", [one], 2, {"tasks": table(one, 2, {"a": 6})})
    found = read_table(tmp_path / "tasks.csv")
    assert found[["rule", "seed", "task", "value"]].to_numpy().tolist() == [
        [CONTROL, 1, "b", 5],
        [CONTROL, 1, "a", 4],
        [CONTROL, 2, "a", 6],
        ["lora", 1, "a", 3],
    ]
    assert frozen.known(tmp_path, plan, "judge", [one, other], 1) == [one, other]
    assert frozen.known(tmp_path, plan, "judge", [one, other], 2) == [one]
    assert frozen.known(tmp_path, plan, "search", [one, other], 1) == []
