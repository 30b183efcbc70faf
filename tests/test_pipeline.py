"""The pipeline end to end on four tasks: whole, killed and continued, and with broken input."""

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from published_pairs import published_gradients

from mergelib.cli import main
from mergelib.core.store import load_tensors, read_json, save_tensors
from mergelib.metrics.encoder import mean_activation
from mergelib.metrics.registry import published_metrics
from mergelib.models.accuracy import accuracy
from mergelib.models.backbones import GLYPH_VIT, load
from mergelib.pipeline import loaded, params, task_data
from mergelib.pipeline.keys import key, path
from mergelib.pipeline.run import execute, locked
from mergelib.pipeline.tables import metrics_table
from mergelib.pipeline.units import data, factors, merged, summary, tuned
from mergelib.tasks import TASKS

pytestmark = pytest.mark.numeric

PUBLISHED = published_metrics()
FILES = ("metrics.csv", "merges.csv", "tasks.csv", "meta.json")


@pytest.fixture(scope="module")
def smoke(root):
    return root / "params" / "smoke.yaml"


def command(smoke, folder):
    return [
        *(sys.executable, "-m", "mergelib.cli", "run", "--params", str(smoke)),
        *("--store", str(folder / "store"), "--tables", str(folder / "tables")),
    ]


@pytest.fixture(scope="module")
def done(smoke, tmp_path_factory):
    """An undisturbed run in a process of its own."""
    folder = tmp_path_factory.mktemp("undisturbed")
    subprocess.run(command(smoke, folder), check=True, capture_output=True, timeout=900)
    return folder


@pytest.mark.slow
def test_the_tables_are_whole(smoke, done):
    run = params.load(smoke)
    pairs = list(itertools.combinations(run.tasks, 2))
    metrics = pd.read_csv(done / "tables" / "metrics.csv")
    assert list(metrics.columns) == ["task_a", "task_b", *PUBLISHED] and len(PUBLISHED) == 28
    assert list(zip(metrics.task_a, metrics.task_b, strict=True)) == pairs
    assert np.isfinite(metrics[PUBLISHED].to_numpy()).all()
    merges = pd.read_csv(done / "tables" / "merges.csv")
    assert len(merges) == len(pairs) * len(run.methods)
    accuracies = merges[["acc_a", "acc_b", "single_a", "single_b"]].to_numpy()
    assert ((accuracies >= 0) & (accuracies <= 1)).all()
    assert np.allclose(accuracies * 60, np.round(accuracies * 60))  # 60 test images a task
    tasks = pd.read_csv(done / "tables" / "tasks.csv").set_index("task")
    assert list(tasks.index) == run.tasks
    single = merges.set_index("task_a")["single_a"].groupby("task_a").first()
    assert (tasks.fine_tuned[single.index] == single).all()
    meta = read_json(done / "tables" / "meta.json")
    assert meta["edition"] == "corrected" and meta["backbone"] == GLYPH_VIT


@pytest.mark.slow
def test_a_merge_by_hand_gives_the_table_s_accuracy(smoke, done):
    run = params.load(smoke)
    merges = pd.read_csv(done / "tables" / "merges.csv")
    row = merges[merges.method == "weight_avg"].iloc[1]
    states = [
        load_tensors(path(done / "store", run, "tuned", task)) for task in (row.task_a, row.task_b)
    ]
    backbone = load()
    backbone.model.visual.load_state_dict(
        {name: (states[0][name] + states[1][name]) / 2 for name in states[0]}
    )
    for side, task in (("acc_a", row.task_a), ("acc_b", row.task_b)):
        test = task_data.split(done / "store", run, task, "test")
        with torch.no_grad():
            features = backbone.model.visual(backbone.normalize(test.images))
        guess = (features @ task_data.head(done / "store", run, task).T).argmax(1)
        # Rounding of the weights may turn an image on the edge, no more.
        assert float((guess == test.labels).float().mean()) == pytest.approx(row[side], abs=0.02)


@pytest.mark.slow
def test_a_compiled_encoder_has_the_weights_of_every_merge(smoke, done, monkeypatch):
    compiled = []

    def stand_in(module):  # a compiler is not at hand everywhere
        compiled.append(module)
        return lambda images: module(images)

    monkeypatch.setattr(torch, "compile", stand_in)
    loaded._compiled.cache_clear()
    run, store = replace(params.load(smoke), compile=True), done / "store"
    files = merged.make(store, run, *run.tasks[:2])
    loaded._compiled.cache_clear()
    assert len(compiled) == 1
    merges = pd.read_csv(done / "tables" / "merges.csv")
    pair = merges[(merges.task_a == run.tasks[0]) & (merges.task_b == run.tasks[1])]
    for file, row in zip(files, pair.itertuples(), strict=True):
        found = read_json(file)
        assert (found["acc_a"], found["acc_b"]) == (row.acc_a, row.acc_b)


@pytest.mark.slow
def test_a_metric_by_hand(smoke, done):
    run = params.load(smoke)
    base = load().visual_state()
    vectors = [
        np.concatenate(
            [(state[name].double() - base[name].double()).flatten().numpy() for name in base]
        )
        for state in (load_tensors(path(done / "store", run, "tuned", task)) for task in run.tasks)
    ]
    metrics = pd.read_csv(done / "tables" / "metrics.csv")
    for row, (i, j) in zip(metrics.itertuples(), itertools.combinations(range(4), 2), strict=True):
        a, b = vectors[i], vectors[j]
        cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        assert row.task_vector_cosine_similarity == pytest.approx(cosine, abs=1e-9)


@pytest.mark.slow
def test_a_protecting_merge_weighs_by_what_the_base_lacks(smoke, done):
    run, store = replace(params.load(smoke), methods={"base_protecting": {}}), done / "store"
    pair = run.tasks[:2]
    tasks = pd.read_csv(done / "tables" / "tasks.csv").set_index("task").loc[list(pair)]
    lacks = 1 - tasks["zero_shot_calibration"] / tasks["fine_tuned_calibration"]
    w = (lacks.clip(0) / lacks.clip(0).sum()).to_numpy()
    assert merged.knowledge(store, run, pair) == pytest.approx(w)
    (file,) = merged.make(store, run, *pair)
    base = load().visual_state()
    a, b = (load_tensors(path(store, run, "tuned", task)) for task in pair)
    by_hand = {n: base[n] + w[0] * (a[n] - base[n]) + w[1] * (b[n] - base[n]) for n in base}
    visual = load().model.visual
    visual.load_state_dict(by_hand)
    images, labels = task_data.ready(store, run, pair[0], "test")
    expected = accuracy(visual, images, labels, task_data.head(store, run, pair[0]))
    assert read_json(file)["acc_a"] == pytest.approx(expected, abs=0.02)


@pytest.mark.slow
def test_extra_metrics_come_when_they_are_named(smoke, done):
    names = ["base_knowledge", "cross_task_accuracy_of_b", "input_gradient_alignment"]
    run, store = replace(params.load(smoke), metrics=names), done / "store"
    for task in run.tasks:  # cross-task accuracies are found where they are named
        summary.make(store, run, task)
    found = metrics_table(store, run)
    assert set(found.columns) == {"task_a", "task_b", *names}
    visual = load().model.visual
    tasks = pd.read_csv(done / "tables" / "tasks.csv").set_index("task")
    knowledge = tasks["zero_shot_calibration"] / tasks["fine_tuned_calibration"]
    for row in found.head(3).itertuples():
        visual.load_state_dict(load_tensors(path(store, run, "tuned", row.task_b)))
        images, labels = task_data.ready(store, run, row.task_a, "calibration")
        under_other = accuracy(visual, images, labels, task_data.head(store, run, row.task_a))
        assert row.cross_task_accuracy_of_b == pytest.approx(under_other)
        both = [knowledge[row.task_a], knowledge[row.task_b]]
        assert row.base_knowledge == pytest.approx(np.mean(both))
        assert -1 <= row.input_gradient_alignment <= 1


@pytest.mark.slow
def test_a_paper_run_repeats_the_published_choices(smoke, done, tmp_path):
    run = replace(params.load(smoke), edition="paper", methods={"weight_avg": {}})
    run = replace(run, tasks=run.tasks[:3])
    store = tmp_path / "store"
    for part in ("base", "data", "tuned"):
        shutil.copytree(done / "store" / part, store / part)
    made = execute(run, store, tmp_path / "tables", jobs=1)
    metrics = made["metrics"]
    assert list(metrics.columns) == ["task_a", "task_b", *PUBLISHED]
    assert read_json(tmp_path / "tables" / "meta.json")["calibration"]["split"] == "test"
    visuals = [load().model.visual for _ in run.tasks]
    for visual, task in zip(visuals, run.tasks, strict=True):
        visual.load_state_dict(load_tensors(path(store, run, "tuned", task)))
    splits = [task_data.split(store, run, task, "test") for task in run.tasks]
    images = [load().normalize(part.images) for part in splits]
    labels = [part.labels for part in splits]
    # random heads, test images of the pair's own tasks
    classes = [len(TASKS[task].class_names) for task in run.tasks]
    data = (images, labels, classes, run.tasks, run.seed, run.pool_per_task)
    expected = published_gradients(visuals, *data)
    columns = list(expected.columns)
    pd.testing.assert_frame_equal(metrics[columns], expected, rtol=1e-5, atol=1e-12)
    # batches of equal weight, over images drawn from the test splits by Python's generator
    stream = random.Random(42)
    chosen = [sorted(stream.sample(range(60), run.pool_per_task)) for _ in run.tasks]
    pooled = torch.cat([part[i] for part, i in zip(images, chosen, strict=True)])
    means = [mean_activation(visual, pooled, edition="paper") for visual in visuals]
    length = metrics["activation_l2_distance"][0]
    assert length == pytest.approx(float((means[0] - means[1]).norm()), rel=1e-5)
    # three matrices of the text side, on which identical (zero) task vectors overlap wholly
    clean = pd.read_csv(done / "tables" / "metrics.csv").merge(metrics, on=["task_a", "task_b"])
    name = "right_subspace_overlap_top_k"
    matrices = sum(value.ndim == 2 for value in load().visual_state().values())
    counted = (clean[f"{name}_x"] * matrices + 3) / (matrices + 3)
    np.testing.assert_allclose(clean[f"{name}_y"], counted, rtol=1e-9)


@pytest.mark.slow
def test_killed_three_times_it_ends_with_the_same_bits(smoke, done, tmp_path):
    watched = (("tuned/*.safetensors", 2), ("summary/*.safetensors", 1), ("merged/*.json", 13))
    for pattern, count in watched:
        running = subprocess.Popen(
            command(smoke, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while len(list((tmp_path / "store").glob(pattern))) < count and running.poll() is None:
            time.sleep(0.02)
        running.send_signal(signal.SIGKILL)
        running.wait()
        assert running.returncode == -signal.SIGKILL  # it was in the middle of its work
        assert not (tmp_path / "tables").exists()
    kept = {file: os.stat(file).st_mtime_ns for file in (tmp_path / "store").glob("tuned/*.json")}
    subprocess.run(command(smoke, tmp_path), check=True, capture_output=True, timeout=900)
    for name in FILES:
        assert (tmp_path / "tables" / name).read_bytes() == (done / "tables" / name).read_bytes()
    assert kept and all(os.stat(file).st_mtime_ns == at for file, at in kept.items())
    assert not list((tmp_path / "store").rglob("*.tmp"))


@pytest.mark.slow
def test_nothing_is_done_twice_and_nothing_asks_for_the_network(
    smoke, done, tmp_path, no_network, monkeypatch
):
    run = params.load(smoke)
    for unit in (data, tuned, summary, factors, merged):
        monkeypatch.setattr(unit, "make", None)  # a call would fail
    execute(run, done / "store", tmp_path, jobs=1)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (done / "tables" / name).read_bytes()


def test_a_slice_runs_with_the_network_blocked(smoke, tmp_path, no_network):
    run = params.load(smoke)
    small = replace(run, tasks=["digits", "braille"], methods={"tsv": {}, "dare": {}})
    small = replace(small, finetune=replace(run.finetune, steps=1))
    made = execute(small, tmp_path / "store", tmp_path / "tables", jobs=1)
    assert len(made["merges"]) == 2 and len(made["metrics"]) == 1


@pytest.mark.slow
def test_threads_change_no_bit(smoke, tmp_path):
    run = params.load(smoke)
    small = replace(run, tasks=["digits", "braille"], methods={"tsv": {}})
    small = replace(small, finetune=replace(run.finetune, steps=2))
    tables = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            folder = tmp_path / str(threads)
            execute(small, folder, folder / "tables", jobs=1)
            tables.append([(folder / "tables" / name).read_bytes() for name in FILES])
    finally:
        torch.set_num_threads(before)
    assert tables[0] == tables[1]


def test_a_key_follows_what_it_depends_on(smoke):
    run = params.load(smoke)
    slower = replace(run, finetune=replace(run.finetune, learning_rate=1e-4))
    other = replace(run, methods=run.methods | {"ties": {"density": 0.5}})
    assert key(run, "data", "digits") == key(slower, "data", "digits")
    assert key(run, "tuned", "digits") != key(slower, "tuned", "digits")
    pair = ("digits", "braille")
    for method, same in (("ties", False), ("tsv", True)):
        keys = [key(each, "merged", *pair, method) for each in (run, other)]
        assert (keys[0] == keys[1]) is same


@pytest.mark.slow
def test_another_backbone_runs_the_same_line(smoke, tmp_path):
    run = params.load(smoke)
    sizes = replace(run.sizes, train=4, calibration=2, test=3)
    small = replace(run, backbone="ViT-S-32-alt", tasks=["digits", "animals"], sizes=sizes)
    small = replace(small, methods={"weight_avg": {}}, pool_per_task=1)
    small = replace(small, finetune=replace(run.finetune, steps=1, batch=2))
    made = execute(small, tmp_path / "store", tmp_path / "tables", jobs=1)
    assert np.isfinite(made["metrics"][PUBLISHED].to_numpy()).all()
    assert read_json(tmp_path / "tables" / "meta.json")["source"] == "ViT-S-32-alt"


@pytest.fixture
def models(tmp_path):
    """A base and two models of it, as files."""
    base = load().visual_state()
    torch.manual_seed(0)
    for name in ("base", "a", "b"):
        shift = 0.0 if name == "base" else 0.01
        save_tensors(
            tmp_path / f"{name}.safetensors",
            {key: value + shift * torch.randn_like(value) for key, value in base.items()},
        )
    return tmp_path


def merge_of(models, **changes):
    given = {"--base": "base.safetensors", "--method": "tsv", "--out": "out.safetensors"} | changes
    words = ["merge", "--models", str(models / "a.safetensors"), str(models / "b.safetensors")]
    for option, value in given.items():
        words += [option, value if option == "--method" else str(models / value)]
    return words


def test_merge_and_metrics_of_files(models):
    assert main(merge_of(models)) == 0
    merged = load_tensors(models / "out.safetensors")
    assert all(torch.isfinite(value).all() for value in merged.values())
    words = ["--models", *(str(models / f"{name}.safetensors") for name in "ab")]
    out = ["--out", str(models / "table.csv")]
    assert main(["metrics", "--base", str(models / "base.safetensors"), *words, *out]) == 0
    table = pd.read_csv(models / "table.csv")
    assert table.shape == (1, 2 + 18) and table.task_b[0] == "b"


def broken(models, name):
    file = models / "b.safetensors"
    state = load_tensors(file)
    if name == "another architecture":
        save_tensors(file, state | {"proj": torch.zeros(2, 2)})
    elif name == "missing tensor":
        save_tensors(file, {key: value for key, value in state.items() if key != "proj"})
    elif name == "NaN":
        save_tensors(file, state | {"proj": torch.full_like(state["proj"], torch.nan)})
    elif name == "truncated":
        file.write_bytes(file.read_bytes()[:5000])
    elif name == "absent":
        file.unlink()


@pytest.mark.parametrize(
    "name", ["another architecture", "missing tensor", "NaN", "truncated", "absent"]
)
def test_broken_checkpoints_have_one_clear_line(models, name, capsys):
    broken(models, name)
    assert main(merge_of(models)) == 2
    said = capsys.readouterr().err
    assert (
        said.startswith("mergelib: error: ") and said.count("\n") == 1 and "b.safetensors" in said
    )
    assert not (models / "out.safetensors").exists() and not list(models.glob(".*"))


@pytest.mark.slow
def test_unknown_method_on_the_command_line(models):
    ended = subprocess.run(
        [sys.executable, "-m", "mergelib.cli", *merge_of(models, **{"--method": "tvs"})],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("mergelib: error: unknown merging method 'tvs'; did you mean")
    assert "Traceback" not in ended.stderr


def test_a_truncated_checkpoint_in_the_store_is_named(smoke, tmp_path, capsys):
    run = params.load(smoke)
    small = replace(run, tasks=["digits", "braille"], methods={"tsv": {}})
    small = replace(small, finetune=replace(run.finetune, steps=0))
    execute(small, tmp_path / "store", tmp_path / "tables", jobs=1)
    file = path(tmp_path / "store", small, "tuned", "digits")
    file.write_bytes(file.read_bytes()[:2000])
    for stored in (tmp_path / "store" / "summary").iterdir():
        stored.unlink()
    with pytest.raises(Exception, match=file.name) as caught:
        execute(small, tmp_path / "store", tmp_path / "again", jobs=1)
    assert type(caught.value).__name__ == "MergelibError" and "truncated" in str(caught.value)
    assert not (tmp_path / "again").exists()


def test_a_store_is_for_one_run_at_a_time(smoke, tmp_path):
    run = params.load(smoke)
    with locked(tmp_path), pytest.raises(Exception, match="in use by another run"):
        execute(run, tmp_path, tmp_path / "tables", jobs=1)
