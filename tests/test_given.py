"""Tasks of a user's own images: sources, splits, words, caches, and the run from YAML to tables."""

import html
import io
import re
import shlex
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from torchvision import transforms

from mergelib.cli import main
from mergelib.core.errors import MergelibError, MergelibNote
from mergelib.core.store import load_tensors
from mergelib.pipeline import estimate, keys, params
from mergelib.pipeline.run import execute
from mergelib.published import released
from mergelib.tasks.cached import write_splits
from mergelib.tasks.given import content, dealt, look_again, opened, read_given, row, words
from mergelib.tasks.images import fitted

SIZES = {"train": 50, "calibration": 10, "test": 40}
COLORS = {
    "red": (200, 30, 30),
    "green": (30, 180, 40),
    "blue": (30, 40, 200),
    "sea_green": (20, 150, 130),
    "gray": (120, 120, 120),
}


def picture(rng, color, size=(40, 34)):
    noise = rng.normal(0, 25, (size[1], size[0], 3))
    return Image.fromarray((np.array(color) + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture
def folder(tmp_path):
    """Five classes of twenty pictures."""
    rng = np.random.default_rng(0)
    for name, color in COLORS.items():
        (tmp_path / "colors" / name).mkdir(parents=True)
        for i in range(20):
            picture(rng, color).save(tmp_path / "colors" / name / f"{i}.png")
    return tmp_path / "colors"


def given(**raw):
    return read_given({"name": "mine", **raw}, "file.yaml")


def encoded(image):
    held = io.BytesIO()
    image.save(held, "PNG")
    return held.getvalue()


def packed(path, n=60, classes=3, test=20, **more):
    rng = np.random.default_rng(1)
    files = [encoded(picture(rng, [60 * (i % classes)] * 3, (20, 20))) for i in range(n)]
    held = {
        "data": np.frombuffer(b"".join(files), np.uint8),
        "offsets": np.cumsum([0, *map(len, files)]).astype(np.uint32),
        "label": (np.arange(n) % classes).astype(np.int16),
        "split": (np.arange(n) >= n - test).astype(np.uint8),
        "classes": np.array([f"class_{c}" for c in range(classes)]),
    }
    np.savez(path, **(held | more))
    return path


@pytest.mark.parametrize("shape", [(40, 34), (34, 41), (32, 32), (16, 16), (101, 33)])
def test_pictures_are_fitted_as_torchvision_does_it(shape):
    image = picture(np.random.default_rng(2), (90, 120, 40), shape)
    bicubic = transforms.InterpolationMode.BICUBIC
    theirs = transforms.CenterCrop(32)(transforms.Resize(32, bicubic)(image))
    assert np.array_equal(fitted(image, 32), np.asarray(theirs).transpose(2, 0, 1))


def test_splits_of_a_folder_are_disjoint_seeded_and_hold_the_shares_of_classes(folder):
    task = given(folder=str(folder))
    parts = dealt(task, SIZES, 0)
    chosen = [parts[split][1] for split in ("train", "calibration", "test")]
    assert [len(each) for each in chosen] == [50, 10, 40]
    assert len(np.unique(np.concatenate(chosen))) == 100
    labels = parts["test"][0].labels
    for each, share in zip(chosen, (10, 2, 8), strict=True):
        assert np.abs(np.bincount(labels[each], minlength=5) - share).max() <= 1
    again, other = dealt(task, SIZES, 0), dealt(task, SIZES, 1)
    assert np.array_equal(again["test"][1], parts["test"][1])
    assert not np.array_equal(other["test"][1], parts["test"][1])
    limited = dealt(given(folder=str(folder), sizes={"test": 5}), SIZES, 0)
    assert len(limited["test"][1]) == 5 and len(limited["train"][1]) == 50


def test_words_of_a_folder_are_its_names_or_those_given(folder, tmp_path):
    at = str(folder)
    names = ("blue", "gray", "green", "red", "sea green")
    assert words(given(folder=at)).names == names
    assert words(given(folder=at)).templates == ("a photo of a {}.",)
    mapping = {"blue": "azure", "gray": "grey", "green": "lime", "red": "rose", "sea_green": "teal"}
    wanted = ("azure", "grey", "lime", "rose", "teal")
    assert words(given(folder=at, classes=mapping)).names == wanted
    assert words(given(folder=at, classes=list(wanted))).names == wanted
    (tmp_path / "names.txt").write_text("\n".join(wanted))
    (tmp_path / "prompts.txt").write_text("a {} wall\nthe colour {}\n")
    files = {"classes": "names.txt", "templates": "prompts.txt"}
    found = given(folder=at, **{key: str(tmp_path / name) for key, name in files.items()})
    assert words(found).names == wanted
    assert words(found).templates == ("a {} wall", "the colour {}")
    assert row(found).source == "folder colors" and row(found).family == "own"
    for wrong, said in (({"red": "rose"}, "lack a name of 'blue'"), (["a", "b"], "2 names")):
        with pytest.raises(MergelibError, match=said):
            words(given(folder=at, classes=wrong))


def test_numbered_folders_are_classes_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 2, 1):
        (tmp_path / str(number)).mkdir()
        picture(np.random.default_rng(number), (number, 0, 0)).save(tmp_path / f"{number}/a.png")
    assert opened(given(folder=str(tmp_path)))[0].classes == ("1", "2", "10")


def test_a_csv_and_folders_of_splits(folder, tmp_path):
    files = sorted(folder.rglob("*.png"))
    table = pd.DataFrame({"file": [f.relative_to(folder) for f in files]})
    table["label"] = [f"{f.parent.name}ish" for f in files]
    table.to_csv(folder / "labels.csv", index=False)
    flat = given(folder=str(folder), labels="labels.csv")
    assert words(flat).names[0] == "blueish" and opened(flat)[0].count == 100
    (folder / "labels.csv").unlink()
    for split in ("train", "test"):
        shutil.copytree(folder, tmp_path / "both" / split)
    train, test = opened(given(folder=str(tmp_path / "both"), train="train", test="test"))
    assert train.count == test.count == 100 and test.classes == train.classes
    with pytest.raises(MergelibError, match="splits and no classes"):
        opened(given(folder=str(tmp_path / "both")))


def test_a_packed_file_keeps_its_own_test_split(tmp_path):
    task = given(npz=str(packed(tmp_path / "p.npz")))
    train, test = opened(task)
    assert (train.count, test.count) == (40, 20)
    assert train.classes == ("class_0", "class_1", "class_2")
    again = [picture(np.random.default_rng(1), (0, 0, 0), (20, 20))]
    assert np.array_equal(np.asarray(train.read(0)), np.asarray(again[0]))
    parts = dealt(task, SIZES, 0)
    assert parts["test"][0] is test and len(parts["calibration"][1]) == 4
    texts = np.array([f"sentence number {i} of a film that nobody saw" for i in range(60)])
    drawn = given(npz=str(packed(tmp_path / "t.npz", text=texts)))
    image = np.asarray(opened(drawn)[0].read(3))
    assert image.shape == (448, 448, 3) and 0.005 < (image < 128).mean() < 0.2
    assert not np.array_equal(image, np.asarray(opened(drawn)[0].read(4)))


def test_the_cache_holds_the_splits_and_is_named_by_their_content(folder, tmp_path):
    task = given(folder=str(folder))
    write_splits(tmp_path / "a.safetensors", task, SIZES, 0, 32)
    held = load_tensors(tmp_path / "a.safetensors")
    parts = dealt(task, SIZES, 0)
    for split, (images, chosen) in parts.items():
        assert held[f"{split}/labels"].tolist() == images.labels[chosen].tolist()
        wanted = np.stack([fitted(images.read(int(i)), 32) for i in chosen])
        assert np.array_equal(held[f"{split}/images"], wanted)
    assert [file.name for file in tmp_path.glob("*.safetensors")] == ["a.safetensors"]
    before = content(task, SIZES, 0)
    shutil.copytree(folder, tmp_path / "elsewhere")
    moved = given(folder=str(tmp_path / "elsewhere"))
    assert content(moved, SIZES, 0) == before != content(task, SIZES, 1)
    picture(np.random.default_rng(9), (1, 2, 3)).save(tmp_path / "elsewhere" / "red" / "0.png")
    look_again()
    assert content(moved, SIZES, 0) != before


def test_copies_of_held_out_images_are_left_out_and_told(folder, tmp_path):
    for split in ("train", "test"):
        shutil.copytree(folder, tmp_path / "both" / split)
    for file in (tmp_path / "both" / "test").rglob("*.png"):
        if int(file.stem) >= 2:  # two of twenty of each class stay as copies
            picture(np.random.default_rng(int(file.stem)), (9, 9, 9)).save(file)
    task = given(folder=str(tmp_path / "both"), train="train", test="test")
    sizes = {"train": 90, "calibration": 10, "test": 100}
    with pytest.warns(MergelibNote, match="are in another split too and are left out"):
        left = write_splits(tmp_path / "c.safetensors", task, sizes, 0, 32)
    assert sum(left.values()) == 10 and left["test"] == 0
    held = load_tensors(tmp_path / "c.safetensors")
    names = {s: {x.numpy().tobytes() for x in held[f"{s}/images"]} for s in SIZES}
    assert not names["train"] & names["test"] and not names["calibration"] & names["test"]


def test_what_cannot_be_used_is_named(folder, tmp_path):
    for raw, said in (
        ({}, "none of folder, npz"),
        ({"folder": "a", "npz": "b"}, "folder and npz"),
        ({"folder": "a", "templats": []}, "did you mean 'templates'"),
        ({"folder": 3}, "at must be str"),
        ({"folder": "a", "sizes": {"tset": 3}}, "not 'tset'"),
    ):
        with pytest.raises(MergelibError, match=said):
            given(**raw)
    with pytest.raises(MergelibError, match="task 'mine': the folder .* is missing"):
        opened(given(folder=str(tmp_path / "nowhere")))
    with pytest.raises(MergelibError, match="task 'mine': .* is missing"):
        opened(given(npz=str(tmp_path / "nowhere.npz")))
    with pytest.raises(MergelibError, match="do not fit"):
        opened(given(npz=str(packed(tmp_path / "x.npz", label=np.zeros(5, np.int16)))))
    (folder / "red" / "3.png").write_bytes(b"no image")
    with pytest.raises(MergelibError, match="3.png cannot be read"):
        write_splits(tmp_path / "d.safetensors", given(folder=str(folder)), SIZES, 0, 32)
    assert not list(tmp_path.glob("*.safetensors"))
    small = tmp_path / "small"
    for name in ("a", "b"):
        (small / name).mkdir(parents=True)
        picture(np.random.default_rng(0), (1, 2, 3)).save(small / name / "0.png")
    with pytest.raises(MergelibError, match="none of which is left for"):
        dealt(given(folder=str(small)), SIZES, 0)


EIGHT_LINES = """\
name: mine
tasks:
  - {name: colors, folder: colors}
  - {name: grays, npz: grays.npz}
head: prototypes
sizes: {train: 50, calibration: 10, test: 40}
finetune: {steps: 5, batch: 16}
methods: {weight_avg: {}, ties: {}}
"""


def test_a_folder_and_eight_lines_give_tables(folder, tmp_path, capsys):
    assert len(EIGHT_LINES.splitlines()) == 8
    packed(tmp_path / "grays.npz", n=140, test=30)
    (tmp_path / "mine.yaml").write_text(EIGHT_LINES)
    words = ["run", "--params", str(tmp_path / "mine.yaml"), "--store", str(tmp_path / "store")]
    assert main([*words, "--tables", str(tmp_path / "tables"), "--jobs", "1"]) == 0
    tasks = pd.read_csv(tmp_path / "tables" / "tasks.csv").set_index("task")
    assert tasks.loc["colors", ["n_classes", "n_train", "n_test"]].tolist() == [5, 50, 40]
    assert tasks.loc["grays", ["n_classes", "n_train", "n_test"]].tolist() == [3, 50, 30]
    assert tasks["source"].tolist() == ["folder colors", "npz grays.npz"]
    assert (tasks["zero_shot"] > 0.6).all()  # colours are told by their means
    merges = pd.read_csv(tmp_path / "tables" / "merges.csv")
    assert len(merges) == 2 and merges["acc_a"].between(0, 1).all()
    assert len(pd.read_csv(tmp_path / "tables" / "metrics.csv").columns) == 30
    # with nothing changed nothing is done again, wherever the images lie
    made = {f: f.stat().st_mtime_ns for f in (tmp_path / "store").rglob("*.safetensors")}
    shutil.move(folder, tmp_path / "moved")
    (tmp_path / "mine.yaml").write_text(EIGHT_LINES.replace("folder: colors", "folder: moved"))
    assert main([*words, "--tables", str(tmp_path / "tables"), "--jobs", "1"]) == 0
    assert made == {f: f.stat().st_mtime_ns for f in (tmp_path / "store").rglob("*.safetensors")}


@pytest.mark.slow
def test_three_folders_and_eight_lines_give_a_page(
    folder, tmp_path, capsys, monkeypatch, no_network
):
    names = ("colors", "tints_2", "hues & more")
    for name in names[1:]:
        shutil.copytree(folder, tmp_path / name)
        for file in (tmp_path / name).rglob("*.png"):  # the same classes, other pictures
            turned = Image.open(file).transpose(Image.Transpose.ROTATE_90)
            turned.resize((30 + 2 * names.index(name),) * 2).save(file)
    tasks = "\n".join(f"  - {{name: {name}, folder: {name}}}" for name in names)
    lines = EIGHT_LINES.split("\n")
    (tmp_path / "mine.yaml").write_text("\n".join([*lines[:2], tasks, *lines[4:]]))
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main(["run", "--params", "mine.yaml", "--store", "store", "--jobs", "1"]) == 0
    before = sorted(tmp_path.rglob("*"))
    # the last line is the command that makes the page
    words = shlex.split(capsys.readouterr().out.splitlines()[-1].partition(": mergelib ")[2])
    assert words == ["book", "--tables", "_build/tables/mine", "--out", "mine.html"]
    assert main(words) == 0
    assert capsys.readouterr().out == "1 page; open mine.html\n"
    assert sorted(set(tmp_path.rglob("*")) - set(before)) == [tmp_path / "mine.html"]
    text = (tmp_path / "mine.html").read_text(encoding="utf-8")
    for said in (*names, "weight average", "TIES", "weight_avg", "ties", "no interval: 3 tasks"):
        assert html.escape(said) in text, said
    for fault in ("Traceback", "Error", "nan", str(tmp_path), "<script", "<link"):
        assert not re.search(
            rf"(?<!\w){re.escape(fault)}(?!\w)", re.sub(r'"data:[^"]*"', "", text)
        ), fault


def test_a_dry_run_tells_what_it_takes_and_writes_nothing(folder, tmp_path, capsys):
    packed(tmp_path / "grays.npz", n=140, test=30)
    (tmp_path / "mine.yaml").write_text(EIGHT_LINES)
    before = sorted(tmp_path.rglob("*"))
    words = ["run", "--params", str(tmp_path / "mine.yaml"), "--store", str(tmp_path / "store")]
    assert main([*words, "--dry-run", "--jobs", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "units: 2 tasks, 2 heads, 2 fine-tuning, 2 summaries, 1 merges"
    assert lines[2] == "images: 100 train, 20 calibration, 70 test"
    assert lines[3].startswith("disk: ") and lines[4].startswith("time: ")
    assert lines[5:] == ["nothing is missing"]
    shutil.move(tmp_path / "grays.npz", tmp_path / "greys.npz")
    assert main([*words, "--dry-run"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("missing: task 'grays': ") and "grays.npz is missing" in last
    shutil.move(tmp_path / "greys.npz", tmp_path / "grays.npz")
    assert sorted(tmp_path.rglob("*")) == before


def test_the_disk_of_a_run_is_what_it_writes(folder, tmp_path):
    packed(tmp_path / "grays.npz", n=140, test=30)
    (tmp_path / "mine.yaml").write_text(EIGHT_LINES.replace("methods: {", "methods: {tsv: {}, "))
    run, store = params.load(tmp_path / "mine.yaml"), tmp_path / "store"
    execute(run, store, tmp_path / "tables", 1)
    counts = {task: estimate.images(run, task) for task in run.tasks}
    told = estimate.disk(run, counts, estimate.blank(run))
    folders = {"images": "data", "checkpoints": "tuned", "factors": "factors"}
    for what, name in folders.items():
        files = sum(f.stat().st_size for f in (store / name).glob("*.safetensors"))
        if what == "checkpoints":
            files += sum(f.stat().st_size for f in (store / "base").iterdir())
        assert told[what] == pytest.approx(files, rel=0.1), what


@pytest.mark.parametrize("name", ["clip_b32_20", "clip_b16_20", "clip_b16_20_sgd"])
def test_the_published_study_s_files_hold_its_tasks(root, name):
    run = params.load(root / "params" / f"{name}.yaml")
    assert run.tasks == list(released.TASKS) == list(run.given)
    recipe, sgd = run.finetune, name.endswith("sgd")
    assert (recipe.optimizer, recipe.learning_rate, recipe.weight_decay, recipe.batch) == (
        *("sgd" if sgd else "adamw", 1e-5, 0.1, 128),
    )
    assert not sgd or recipe.momentum == 0
    prompts = {}
    for task, given in run.given.items():
        *_, train, test = released.TASKS[task]
        assert given.sizes == {"train": train, "test": test}
        assert given.licence and given.place.form == "hf" and not given.place.download
        assert all("{}" in text for text in given.templates)
        prompts[task] = len(set(given.templates))
    assert [prompts[t] for t in ("SUN397", "Cars", "RESISC45", "DTD", "CIFAR100", "FER2013")] == [
        *(2, 8, 18, 8, 18, 6)
    ]


def test_the_head_and_the_words_are_in_the_keys(folder, tmp_path):
    text = EIGHT_LINES.replace("npz: grays.npz", "folder: colors")
    (tmp_path / "mine.yaml").write_text(text)
    run = params.load(tmp_path / "mine.yaml")
    (tmp_path / "other.yaml").write_text(text.replace("head: prototypes", "head_split: train"))
    zero = params.load(tmp_path / "other.yaml")
    renamed = text.replace("head: prototypes", "").replace(
        "{name: colors, ", "{name: colors, templates: ['the {}'], "
    )
    (tmp_path / "words.yaml").write_text(renamed)
    worded = params.load(tmp_path / "words.yaml")
    found = [keys.key(each, "tuned", "colors") for each in (run, zero, worded)]
    assert len(set(found)) == 3
    assert len({keys.key(each, "data", "colors") for each in (run, zero, worded)}) == 1
    pinned = keys.pinned(run)
    assert keys.key(pinned, "tuned", "colors") == found[0] and pinned.given["colors"].pinned


def test_parameters_of_given_tasks_are_checked(folder, tmp_path):
    for old, new, said in (
        ("head: prototypes", "head: prototype", "head must be one of"),
        ("{name: grays, ", "{name: colors, ", "names a task twice"),
        ("{name: grays, ", "{", "wants `name`"),
        ("head: prototypes", "given: {}", "stand in `tasks`"),
        ("head: prototypes", "backbone: timm/x\nweights: y", "head zero_shot wants a text tower"),
    ):
        (tmp_path / "mine.yaml").write_text(EIGHT_LINES.replace(old, new))
        with pytest.raises(MergelibError, match=said) as caught:
            params.load(tmp_path / "mine.yaml")
        assert "mine.yaml" in str(caught.value) and "\n" not in str(caught.value)
