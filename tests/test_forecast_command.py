"""`mergelib forecast` and `ml.forecast` as a new user meets them: an answer, or one clear line."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import mergelib as ml
from mergelib import cli
from mergelib.core.store import load_tensors, save_tensors
from mergelib.forecasting.model import shipped
from mergelib.lineage.lock import locked
from mergelib.models.backbones import load

NUMBERS = ("mean", "worse", "p_worse_090", "p_worse_095")
KEYS = {*NUMBERS, "sides", "interval80", "interval95", "verdict", "drivers"}
CLASSES = ("circle", "square", "star")


def near(state, seed):
    """Weights a short way from the base's, as fine-tuning leaves them."""
    generator = torch.Generator().manual_seed(seed)
    return {
        n: t + 0.05 * t.std() * torch.randn(t.shape, generator=generator) for n, t in state.items()
    }


def pictures(folder, count, seed):
    rng = np.random.default_rng(seed)
    for k in range(count):
        file = folder / CLASSES[k % 3] / f"{k}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(file)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base, three models in two formats, folders of images, class names, known accuracies."""
    folder = tmp_path_factory.mktemp("user")
    base = load("glyph-vit").visual_state()
    save_tensors(folder / "base.safetensors", base)
    tuned = {name: near(base, k) for k, name in enumerate(("cars", "birds", "signs"))}
    save_tensors(folder / "cars.safetensors", tuned["cars"])
    torch.save(
        {"state_dict": {f"visual.{n}": t for n, t in tuned["birds"].items()}}, folder / "birds.pt"
    )
    save_tensors(folder / "signs.safetensors", tuned["signs"])
    for k, name in enumerate(tuned):
        pictures(folder / f"{name}_images", 12, k)
    rows = "".join(f"{name},0.5,0.9\n" for name in tuned)
    (folder / "tasks.csv").write_text("model,zero_shot,fine_tuned\n" + rows)
    return folder


@pytest.fixture
def user(made, tmp_path, monkeypatch):
    """A copy of it in the folder that the test runs in."""
    shutil.copytree(made, tmp_path / "user")
    monkeypatch.chdir(tmp_path / "user")
    return tmp_path / "user"


PAIR = "forecast --base base.safetensors --models cars.safetensors birds.pt"
IMAGES = "--images cars_images birds_images --n 6"


def answered(words, capsys):
    assert cli.main(words.split()) == 0
    out, err = capsys.readouterr()
    return json.loads(out) if "--json" in words else out, err


def checked(held, sides):
    """Numbers that are in range and agree with each other."""
    assert set(held) == KEYS
    assert list(held["sides"]) == sides
    low80, high80, low95, high95 = *held["interval80"], *held["interval95"]
    assert low95 <= low80 < high80 <= high95
    assert 0 <= held["p_worse_095"] <= held["p_worse_090"] <= 1
    assert held["mean"] == pytest.approx(np.mean([*held["sides"].values()]))
    assert isinstance(held["verdict"], str) and held["verdict"]


LEVELS = {
    "": (0, False, False),
    "--known tasks.csv": (1, False, False),
    f"{IMAGES}": (2, False, False),
    f"{IMAGES} --known tasks.csv": (2, False, False),
    f"{IMAGES} --classes": (3, True, True),
}


@pytest.mark.parametrize("given", LEVELS)
def test_an_answer_at_every_level_of_evidence(user, capsys, given):
    before = sorted(user.rglob("*"))
    held, _ = answered(f"{PAIR} {given} --json", capsys)
    level, heads, labelled = LEVELS[given]
    assert held["level"] == level
    assert held["models"] == {"cars": "cars.safetensors", "birds": "birds.pt"}
    assert list(held["methods"]) == list(shipped().methods_)
    for each in held["methods"].values():
        checked(each, ["cars", "birds"])
    means = {name: each["mean"] for name, each in held["methods"].items()}
    assert means[held["recommended"]] == max(means.values())
    assert held["regret"] >= 0 and held["checks"]
    seen = held["evidence"]
    assert (seen["heads"], seen["labelled"]) == (heads, labelled)
    assert seen["known"] == ("--known" in given) and seen["images"] == (6 if level > 1 else 0)
    assert sorted(user.rglob("*")) == before  # nothing is written


def test_accuracies_that_the_bank_has_nothing_like_are_named(user, capsys):
    low, high = shipped().range_of("fine_tuned")
    rows = (f"cars,0.05,{low - 0.1:.3f}", f"birds,0.5,{(low + high) / 2:.3f}")
    (user / "far.csv").write_text("\n".join(["task,zero_shot,fine_tuned", *rows]))
    held, _ = answered(f"{PAIR} --known far.csv --methods tsv --json", capsys)
    (told,) = [each for each in held["checks"] if "beyond" in each]
    assert told.startswith("cars") and "birds" not in told
    for words in ("zero-shot accuracy 0.050", f"fine-tuned accuracy {low - 0.1:.3f}", f"{low:.3f}"):
        assert words in told
    usual, _ = answered(f"{PAIR} --known tasks.csv --methods tsv --json", capsys)
    assert not [each for each in usual["checks"] if "beyond" in each]
    wide, near = (np.diff(x["methods"]["tsv"]["interval80"])[0] for x in (held, usual))
    assert wide > near


def test_the_table_says_what_the_object_says(user, capsys):
    words = f"{PAIR} {IMAGES} --methods tsv,ties --classes"
    held, _ = answered(f"{words} --json", capsys)
    told, err = answered(words, capsys)
    assert told.startswith("Will cars and birds merge? Evidence of level 3")
    for name, each in held["methods"].items():
        (line,) = [row for row in told.splitlines() if row.startswith(name)]
        assert f"{each['mean']:.3f}" in line and line.endswith(each["verdict"])
    assert f"Take {held['recommended']}" in told
    assert "model/s" not in err  # a progress bar is for terminals


def test_the_notebooks_function_gives_the_same(user, capsys):
    held, _ = answered(f"{PAIR} {IMAGES} --classes --methods tsv --json", capsys)
    named = {
        "methods": "tsv",
        "images": {"cars": "cars_images", "birds": "birds_images"},
        "classes": {"cars": "folders", "birds": "folders"},
        "n": 6,
    }
    answer = ml.forecast("base.safetensors", ["cars.safetensors", "birds.pt"], **named)
    assert json.loads(json.dumps(answer.as_json())) == held
    assert list(answer.pairs[0].table()["method"]) == ["tsv"]
    base = load("glyph-vit").model.visual
    tuned = {name: near(base.state_dict(), k) for k, name in enumerate(("cars", "birds"))}
    found = ml.forecast(base, tuned, **named).as_json()["methods"]["tsv"]
    for name in NUMBERS:  # the same merge, swept from memory
        assert found[name] == held["methods"]["tsv"][name]


def test_three_models_are_ranked_in_pairs_and_judged_together(user, capsys):
    words = (
        "forecast --base base.safetensors --models cars.safetensors birds.pt signs.safetensors "
        "--images signs=signs_images cars=cars_images birds=birds_images --n 6 --classes "
        "--methods weight_avg,tsv"
    )
    held, _ = answered(f"{words} --json", capsys)
    names = ["cars", "birds", "signs"]
    pairs = held["pairs"]
    wanted = [["birds", "signs"], ["cars", "birds"], ["cars", "signs"]]
    assert sorted(pair["models"] for pair in pairs) == wanted
    best = [pair["methods"][pair["recommended"]]["mean"] for pair in pairs]
    assert best == sorted(best, reverse=True)
    for pair in pairs:
        for each in pair["methods"].values():
            checked(each, pair["models"])
    for each in held["methods"].values():
        checked(each, names)
    told, _ = answered(words, capsys)
    assert "Pairs, the best first:" in told and "All 3 together:" in told
    alone, _ = answered(words.split("--images")[0] + "--json", capsys)
    assert alone["level"] == 0 and len(alone["pairs"]) == 3
    assert alone["methods"] == {} and alone["recommended"] is None


def test_labels_move_only_what_is_asked_with_them(user, capsys):
    """A flat folder with a CSV is the same evidence as folders of classes."""
    names = {"cars": "cars_images", "birds": "birds_images"}
    for name, folder in names.items():
        (user / name).mkdir()
        rows = ["file,label"]
        for k, file in enumerate(sorted((user / folder).rglob("*.png"))):
            shutil.copy(file, user / name / f"{k:02}.png")
            rows.append(f"{k:02}.png,{file.parent.name}")
        (user / f"{name}.csv").write_text("\n".join(rows) + "\n")
    (user / "names.txt").write_text("\n".join(CLASSES) + "\n")
    classes = "--classes cars=names.txt birds=names.txt"
    folders, _ = answered(f"{PAIR} {IMAGES} {classes} --methods tsv --json", capsys)
    flat, _ = answered(
        f"{PAIR} --images cars birds --labels cars.csv birds.csv --n 6 {classes} --methods tsv "
        "--json",
        capsys,
    )
    assert flat["level"] == folders["level"] == 3
    assert flat["methods"] == folders["methods"]
    without, _ = answered(
        f"{PAIR} --images cars birds --n 6 {classes} --methods tsv --json", capsys
    )
    assert without["level"] == 2 and without["evidence"]["heads"]


def test_a_reparameterised_model_is_refused_or_mended_where_that_is_asked_for(user, capsys):
    state = load_tensors(user / "cars.safetensors")
    save_tensors(user / "cars.safetensors", locked(state, seed=1))
    words = f"{PAIR} {IMAGES} --classes --methods weight_avg --json"
    assert cli.main(words.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and "model cars: cars.safetensors was reparameterised" in err
    mended, told = answered(f"{words} --canonicalize", capsys)
    assert "cars.safetensors: reparameterised in" in told and "which is undone" in told
    save_tensors(user / "cars.safetensors", state)
    plain, _ = answered(words, capsys)
    one, other = (held["methods"]["weight_avg"]["mean"] for held in (mended, plain))
    # nearest to the base, not the model before its lock: as good, not the same
    assert abs(one - other) < plain["methods"]["weight_avg"]["interval80"][1] - other


# --- what is wrong --------------------------------------------------------------------------------


def spoil(user):
    (user / "empty").mkdir()
    pictures(user / "broken", 6, 5)
    for file in (user / "broken").rglob("*.png"):
        file.write_bytes(file.read_bytes()[:40])
    save_tensors(user / "two.safetensors", {"head": torch.ones(2, 128)})
    save_tensors(user / "narrow.safetensors", {"head": torch.ones(3, 64)})
    base = load("glyph-vit").visual_state()
    shutil.copy(user / "base.safetensors", user / "same.safetensors")
    generator = torch.Generator().manual_seed(9)
    foreign = {n: t.std() * torch.randn(t.shape, generator=generator) for n, t in base.items()}
    save_tensors(user / "foreign.safetensors", foreign)
    save_tensors(user / "wider.safetensors", {**base, "proj": torch.ones(128, 64)})
    (user / "percent.csv").write_text("model,zero_shot,fine_tuned\ncars,50,90\nbirds,50,90\n")


WRONG = {
    f"{PAIR} --images cars_images empty": "empty holds no image",
    f"{PAIR} --images cars_images nowhere": "nowhere is no folder of images",
    f"{PAIR} --images cars_images birds_images": "cars_images holds 12 images, asked for are 20",
    f"{PAIR} --images cars_images broken --n 6": "cannot be read",
    f"{PAIR} --images cars_images": "2 models and 1 of --images",
    f"{PAIR} signs.safetensors --images cars_images birds_images": "3 models and 2 of --images",
    f"{PAIR} --images cars=cars_images boats=birds_images": "'boats', which is no model",
    f"{PAIR} --images cars=cars_images cars=birds_images": "'cars' is given twice",
    f"{PAIR} {IMAGES} --heads two.safetensors two.safetensors": "has 3 classes, its head 2 rows",
    f"{PAIR} {IMAGES} --heads narrow.safetensors narrow.safetensors": "features have 128 entries",
    f"{PAIR} {IMAGES} --classes cars=names.txt": "names.txt is missing",
    f"{PAIR} {IMAGES} --backbone ViT-B-16": "is no ViT-B-16",
    f"{PAIR} {IMAGES} --methods tsv,tie": "did you mean 'ties'?",
    f"{PAIR} --classes": "give --images as well",
    f"{PAIR} --known percent.csv": "look like percent",
    f"{PAIR} --known cars.safetensors": "cannot be read",
    f"{PAIR} --report cars.html/r.html --images cars_images nowhere": "nowhere is no folder",
    f"{PAIR} --report r.txt": "ends in .html",
    f"{PAIR} --report base.safetensors": "one of the inputs",
    "forecast --base base.safetensors --models cars.safetensors": "1 model: a merge wants two",
    "forecast --base base.safetensors --models cars.safetensors same.safetensors": "is the base",
    f"{PAIR} copy=cars.safetensors": "is given twice",
    "forecast --base base.safetensors --models cars.safetensors foreign.safetensors": (
        "does not come from this base"
    ),
    "forecast --base foreign.safetensors --models cars.safetensors birds.pt": (
        "does not come from this base"
    ),
    "forecast --base base.safetensors --models cars.safetensors wider.safetensors": (
        "give models of one architecture"
    ),
    "forecast --base nowhere.safetensors --models cars.safetensors birds.pt": "is missing",
}


@pytest.mark.parametrize("words", WRONG)
def test_what_is_wrong_is_said_in_one_clear_line(user, capsys, words):
    spoil(user)
    before = sorted(user.rglob("*"))
    assert cli.main(words.split()) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("mergelib: note: ")]
    assert out == "" and len(lines) == 1 and lines[0].startswith("mergelib: error: ")
    assert WRONG[words] in lines[0]
    assert sorted(user.rglob("*")) == before


def test_help_asks_for_nothing_heavy():
    """The command's own words need no torch: that is what makes its help quick."""
    code = (
        "import sys\nfrom mergelib.cli import main\n"
        "try:\n    main(['forecast', '--help'])\nexcept SystemExit:\n    pass\n"
        "print({m for m in ('torch', 'pandas', 'open_clip', 'sklearn') if m in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
    assert "level, evidence, models, methods" in " ".join(done.stdout.split())


STOPPED = """
import os, time
import {module} as stopped
def stop(*given, **named):
    os.kill(os.getpid(), 2)
    time.sleep(600)
stopped.{name} = stop
"""


@pytest.mark.parametrize(
    ("module", "name", "asked"),
    [
        ("mergelib.forecasting.probe", "statistics", "--cache kept"),  # after the first merge
        ("mergelib.book.report", "page", "--report report.html"),  # when the chapter has run
    ],
)
def test_interrupted_it_leaves_nothing(user, tmp_path, module, name, asked):
    (tmp_path / "tmp").mkdir()
    before = sorted(user.rglob("*"))
    words = f"{PAIR} {IMAGES} --methods weight_avg {asked}".split()
    start = STOPPED.format(module=module, name=name)
    start += "\nimport sys\nfrom mergelib.cli import main\nsys.exit(main())"
    env = os.environ | {"TMPDIR": str(tmp_path / "tmp")}
    call = [sys.executable, "-c", start, *words]
    done = subprocess.run(call, capture_output=True, text=True, env=env, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.splitlines()[-1] == "mergelib: interrupted"
    assert "Traceback" not in done.stderr
    assert [path for path in sorted(user.rglob("*")) if "kept" not in path.parts] == before
    assert not list((tmp_path / "tmp").iterdir())
