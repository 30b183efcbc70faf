"""The face: models measured, merged and evaluated as paths, state dicts and modules alike."""

import doctest
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import mergelib as ml
from mergelib.cli import main
from mergelib.core.registry import Redefined
from mergelib.core.store import load_tensors, read_table, save_tensors
from mergelib.merging.engine import merge as engine_merge
from mergelib.metrics.registry import published_metrics
from mergelib.metrics.table import weight_metrics

NAMES = ["ant", "bee", "cow"]


class Encoder(nn.Module):
    """A small image encoder: 12 pixels to 5 features."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.inner = nn.Linear(12, 9)
        self.outer = nn.Linear(9, 5)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, images):
        return self.outer(self.inner(images.flatten(1)).relu())


@pytest.fixture
def modules():
    return Encoder(0), [Encoder(seed) for seed in (1, 2, 3)]


@pytest.fixture
def files(modules, tmp_path):
    base, models = modules
    save_tensors(tmp_path / "base.safetensors", base.state_dict())
    for name, model in zip(NAMES, models, strict=True):
        save_tensors(tmp_path / f"{name}.safetensors", model.state_dict())
    return tmp_path / "base.safetensors", [tmp_path / f"{name}.safetensors" for name in NAMES]


@pytest.fixture
def registries():
    """What a test registers is forgotten at its end."""
    rows = [ml.METRICS, ml.METHODS, ml.TASKS, ml.RULES]
    held = [(each, dict(each._rows)) for each in rows]
    yield
    for each, before in held:
        each._rows = before


def test_paths_state_dicts_and_modules_measure_alike(modules, files):
    base, models = modules
    plain = ml.measure(*files)
    assert list(plain.columns) == ["task_a", "task_b", *weight_metrics()] and len(plain) == 3
    assert set(weight_metrics()) < set(published_metrics())
    states = {name: model.state_dict() for name, model in zip(NAMES, models, strict=True)}
    mixed = {"ant": files[1][0], "bee": models[1], "cow": states["cow"]}
    for origin, given in ((base.state_dict(), states), (base, mixed), (str(files[0]), mixed)):
        assert ml.measure(origin, given).equals(plain)


def test_measure_names_metrics_edition_and_cache(modules, files, tmp_path):
    names = ["stable_rank", "left_principal_cosine_max", "task_vector_dot_product"]
    found = ml.measure(*files, names, cache=tmp_path / "cache")
    assert list(found.columns[2:]) == [names[2], names[0], names[1]]
    again = ml.measure(*files, names, cache=str(tmp_path / "cache"))
    assert again.equals(found) and found.equals(ml.measure(*files, names))
    k = 9**0.5  # min(10, 9, 12) vectors and min(10, 5, 9): √k apart, and a mean of the two
    corrected = ml.measure(*files, ["subspace_overlap"])["subspace_overlap"]
    paper = ml.measure(*files, ["subspace_overlap"], edition="paper")["subspace_overlap"]
    assert ((paper < corrected) & (paper > corrected / k)).all()


def test_the_paper_edition_counts_text_matrices_of_a_state_dict(files, modules, tmp_path):
    base, models = modules
    text = {"token_embedding.weight": torch.ones(4, 3), "text_projection": torch.ones(3, 3)}
    whole = [
        {f"visual.{name}": value for name, value in model.state_dict().items()} | text
        for model in (base, *models)
    ]
    paths = [tmp_path / f"whole_{name}.safetensors" for name in ("base", *NAMES)]
    for path, state in zip(paths, whole, strict=True):
        save_tensors(path, state)
    name = "right_subspace_overlap_top_k"
    in_memory = ml.measure(whole[0], dict(zip(NAMES, whole[1:], strict=True)), [name], "paper")
    on_disk = ml.measure(paths[0], paths[1:], [name], "paper")
    without = ml.measure(base, dict(zip(NAMES, models, strict=True)), [name], "paper")
    assert in_memory[name].equals(on_disk[name])
    np.testing.assert_allclose(in_memory[name], (2 * without[name] + 2) / 4)


def test_what_cannot_be_measured_is_said(modules, files):
    base, models = modules
    with pytest.raises(ml.MergelibError, match="give the models by name"):
        ml.measure(base, models)
    with pytest.raises(ml.MergelibError, match="give the models by name"):
        ml.measure(files[0], str(files[1][0]))
    with pytest.raises(ml.MergelibError, match="metrics compare two or more"):
        ml.measure(base, {"a": models[0]})
    with pytest.raises(ml.MergelibError, match="unknown metric 'stable_rnak'"):
        ml.measure(*files, ["stable_rnak"])
    with pytest.raises(ml.MergelibError, match="the summaries hold no activation"):
        ml.measure(*files, ["activation_dot_product"])
    with pytest.raises(ml.MergelibError, match="unknown edition 'papre'"):
        ml.measure(*files, edition="papre")


def test_paths_state_dicts_and_modules_merge_alike(modules, files, tmp_path):
    base, models = modules
    expected = engine_merge(files[0], files[1], "tsv")
    given = [models[0], models[1].state_dict(), files[1][2]]
    for found in (ml.merge(base, given), ml.merge(*files, cache=tmp_path / "kept")):
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6)
    out = tmp_path / "made" / "merged.safetensors"
    assert ml.merge(base, given, out=out) == out
    assert all(torch.equal(value, expected[name]) for name, value in load_tensors(out).items())
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_merge_takes_an_edition_and_parameters_above_it(modules):
    base, models = modules
    for params, alpha in (({}, 0.3), ({"edition": "original"}, 0.4), ({"alpha": 2.0}, 2.0)):
        found = ml.merge(base, models, "arithmetic", **params)
        assert all(
            torch.equal(value, ml.merge(base, models, "arithmetic", alpha=alpha)[name])
            for name, value in found.items()
        )
    one, same, other = (ml.merge(base, models, "dare", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one["inner.weight"], same["inner.weight"])
    assert not torch.equal(one["inner.weight"], other["inner.weight"])


def test_what_cannot_be_merged_is_said_and_writes_nothing(modules, tmp_path):
    base, models = modules
    with pytest.raises(ml.MergelibError, match=r"give \[model\]"):
        ml.merge(base, models[0])
    for words, options in {
        "unknown merging method 'tvs'": {"method": "tvs"},
        "unknown edition 'papre'": {"edition": "papre"},
        "unknown tsv parameter 'alhpa'": {"alhpa": 1},
        "unknown device 'gpu'": {"device": "gpu"},
    }.items():
        with pytest.raises(ml.MergelibError, match=words):
            ml.merge(base, models, out=tmp_path / "out.safetensors", **options)
    assert not list(tmp_path.iterdir())


def test_the_commands_are_the_face(files, tmp_path):
    base, models = str(files[0]), [str(path) for path in files[1]]
    out, merged = tmp_path / "table.csv", tmp_path / "merged.safetensors"
    assert main(["metrics", "--base", base, "--models", *models, "--out", str(out)]) == 0
    assert read_table(out).equals(ml.measure(*files))
    options = ["--method", "ties", "--edition", "original", "--set", "density=0.5"]
    command = ["merge", "--base", base, "--models", *models, *options, "--out", str(merged)]
    assert main(command) == 0
    expected = ml.merge(*files, "ties", edition="original", density=0.5)
    assert all(torch.equal(value, expected[k]) for k, value in load_tensors(merged).items())


def test_an_option_that_is_cut_short_is_refused(files, tmp_path, capsys):
    """`--mode`, which is called `--edition` now, is not taken for `--models`."""
    command = ["metrics", "--base", str(files[0]), "--models", *map(str, files[1])]
    with pytest.raises(SystemExit):
        main([*command, "--out", str(tmp_path / "t.csv"), "--mode", "paper"])
    assert "--mode" in capsys.readouterr().err and not (tmp_path / "t.csv").exists()


def test_evaluate_counts_what_is_right_and_leaves_the_module_as_it_was(modules):
    model = modules[0].train()
    images = torch.randn(20, 3, 2, 2, generator=torch.Generator().manual_seed(5))
    head = torch.randn(4, 5, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        guesses = (model(images) @ head.T).argmax(dim=1)
    labels = guesses.clone()
    labels[:5] = (labels[:5] + 1) % 4
    assert ml.evaluate(model, images, labels, head) == 0.75 and model.training
    whole = nn.Module()
    whole.visual = model
    assert ml.evaluate(whole, images, labels, head, batch_size=7) == 0.75
    with pytest.raises(ml.MergelibError, match="19 images and 20 labels"):
        ml.evaluate(model, images[:19], labels, head)


def test_evaluate_loads_weights_into_a_backbone(tmp_path):
    from mergelib.models.accuracy import accuracy
    from mergelib.models.backbones import load
    from mergelib.models.heads import zero_shot_head

    backbone = load()
    row = ml.TASKS["digits"]
    head = zero_shot_head(backbone, row.class_names, row.templates)
    pixels = torch.arange(12 * 3 * 32 * 32).remainder(251).reshape(12, 3, 32, 32).byte()
    images, labels = backbone.normalize(pixels), torch.arange(12) % 10
    state = {name: value * 1.1 for name, value in backbone.visual_state().items()}
    file = tmp_path / "tuned.safetensors"
    save_tensors(file, state)
    other = load()
    other.model.visual.load_state_dict(state)
    expected = accuracy(other.model.visual, images, labels, head)
    before = backbone.visual_state()
    for model, data, on in (
        (state, images, backbone),
        (file, pixels, backbone),
        (other.model, pixels, "glyph-vit"),
        (file, images, "glyph-vit"),
    ):
        assert ml.evaluate(model, data, labels, head, on) == expected
    assert all(torch.equal(value, before[k]) for k, value in backbone.visual_state().items())
    for model, data in ((state, images), (other.model, pixels)):
        with pytest.raises(ml.MergelibError, match="want a backbone"):
            ml.evaluate(model, data, labels, head)
    with pytest.raises(ml.MergelibError, match="the given weights: tensor .* is missing from"):
        ml.evaluate({"proj": state["proj"]}, images, labels, head, backbone)


# --- own rows -----------------------------------------------------------------------------------


def test_an_own_metric_is_measured_and_kept_apart_from_the_published(registries, modules):
    base, models = modules

    @ml.metric("own_norm_sum", category="own", range=(0, np.inf))
    def norm_sum(x):
        norms = np.sqrt(np.diagonal(x.gram))
        return norms[:, None] + norms[None, :]

    named = dict(zip(NAMES, models, strict=True))
    found = ml.measure(base, named, ["own_norm_sum"])["own_norm_sum"]
    start = torch.cat([value.flatten() for value in base.state_dict().values()])
    norms = [
        float((torch.cat([v.flatten() for v in m.state_dict().values()]) - start).double().norm())
        for m in models
    ]
    expected = [norms[0] + norms[1], norms[0] + norms[2], norms[1] + norms[2]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # start is subtracted in float32 here
    assert "own_norm_sum" not in published_metrics() and list(ml.METRICS)[-1] == "own_norm_sum"
    assert not ml.METRICS["own_norm_sum"].published and len(ml.measure(base, named).columns) == 20


def test_an_own_metric_may_have_editions(registries, modules):
    @ml.metric("own_edition")
    def by_edition(x, edition):
        return np.full_like(x.gram, 1.0 if edition == "paper" else 2.0)

    base, models = modules
    named = dict(zip(NAMES, models, strict=True))
    for edition, value in (("corrected", 2.0), ("paper", 1.0)):
        assert (ml.measure(base, named, ["own_edition"], edition)["own_edition"] == value).all()


def test_an_own_method_takes_its_defaults_from_its_signature(registries, modules):
    @ml.method("own_half")
    def half(layer, share: float = 0.5, all_of_it: bool = False):
        return layer.sum() if all_of_it else share * layer.sum()

    base, models = modules
    for given, alpha in (({}, 0.5), ({"share": 0.25}, 0.25), ({"all_of_it": True}, 1.0)):
        found = ml.merge(base, models, "own_half", **given)
        expected = ml.merge(base, models, "arithmetic", alpha=alpha)
        assert all(torch.equal(value, expected[name]) for name, value in found.items())
    for given in ({"share": "much"}, {"all_of_it": 1}, {"sahre": 1.0}):
        with pytest.raises(ml.MergelibError, match="own_half"):
            ml.merge(base, models, "own_half", **given)


def test_an_own_task_is_built(registries):
    from mergelib.tasks import build

    @ml.task("own_bright", class_names=["dark", "bright"], templates=["a {} square"])
    def bright(rng, sizes):
        made = {}
        for split in ("train", "calibration", "test"):
            labels = np.arange(sizes[split]) % 2
            noise = rng.integers(0, 100, (sizes[split], 3, 32, 32))
            made[split] = (noise + 100 * labels[:, None, None, None], labels)
        return made

    task = build("own_bright", {"train": 6, "calibration": 2, "test": 4})
    assert task.train.images.shape == (6, 3, 32, 32) and task.test.labels.tolist() == [0, 1, 0, 1]
    assert task.class_names == ("dark", "bright") and task.family == "other"


def test_an_own_rule_acts_in_fine_tuning(registries):
    from mergelib.models.finetune import Recipe, finetune

    @ml.rule("own_l1", strength=0.1)
    def l1(step):
        return step.loss() + step.strength * sum(t.abs().sum() for t in step.task_vector().values())

    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(8, 3, 2, 2, generator=generator), torch.arange(8) % 4
    head, model = torch.randn(4, 5, generator=generator), Encoder(0)
    moved = []
    for strength in (0.0, 10.0):
        recipe = Recipe(steps=3, batch=8, rule="own_l1", strength=strength)
        state = finetune(model, images, labels, head, recipe)
        start = model.state_dict()
        moved.append(sum(float((v - start[n]).abs().sum()) for n, v in state.items()))
    assert moved[1] < moved[0]
    assert ml.RULES["own_l1"].strength == 0.1


def test_a_cell_that_runs_twice_replaces(registries, modules):
    base, models = modules
    for factor in (1.0, 3.0):

        def scaled(layer, factor=factor):
            return factor * layer.mean()

        scaled.__module__ = "__main__"
        if factor == 1.0:
            ml.method("own_twice")(scaled)
        else:
            with pytest.warns(Redefined, match="own_twice"):
                ml.method("own_twice")(scaled)
    found = ml.merge(base, models, "own_twice")["inner.weight"]
    start = base.state_dict()["inner.weight"]
    mean = ml.merge(base, models, "weight_avg")["inner.weight"]
    torch.testing.assert_close(found - start, 3 * (mean - start), rtol=1e-5, atol=1e-5)


# --- imports ------------------------------------------------------------------------------------

HEAVY = ("torch", "numpy", "pandas", "sklearn", "matplotlib", "open_clip")


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_costs_nothing():
    """Structurally: a fresh interpreter has imported nothing that is slow."""
    code = f"import sys, mergelib as ml; dir(ml); print([m for m in {HEAVY} if m in sys.modules])"
    assert run(code).strip() == "[]"


@pytest.mark.parametrize(
    "words", [["--version"], ["--help"], ["merge", "--help"], ["metrics", "--help"]]
)
def test_help_costs_nothing(words):
    code = (
        "import sys\nfrom mergelib.cli import main\n"
        f"try:\n    main({words})\nexcept SystemExit:\n    pass\n"
        f"print('imported', [m for m in {HEAVY} if m in sys.modules])"
    )
    assert run(code).strip().endswith("imported []")


def test_the_examples_of_the_face_run():
    from mergelib import face

    found = doctest.testmod(face)
    assert found.failed == 0 and found.attempted > 9
    for name in ("measure", "merge", "evaluate"):
        assert ">>> ml." in getattr(face, name).__doc__


def test_the_face_is_listed_and_whole():
    assert set(ml.__all__) <= set(dir(ml)) and ml.__doc__
    from mergelib.core.registry import Registry

    for name in ("METRICS", "METHODS", "TASKS", "RULES"):
        assert isinstance(getattr(ml, name), Registry)
    for name in ("measure", "merge", "evaluate", "metric", "method", "task", "rule"):
        assert callable(getattr(ml, name)) and getattr(ml, name).__doc__
    with pytest.raises(AttributeError, match="mesure"):
        ml.mesure  # noqa: B018


BLOCKED = ("jupyter", "jupyter_book", "IPython", "papermill", "nbval", "nbformat", "qtawesome")
BLOCKED += ("mlxtend", "open_clip", "matplotlib", "fontTools", "seaborn", "skimage")
BLOCKER = f"""
import sys


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED}:
            raise ImportError(f"{{name}} is blocked in this test")


sys.meta_path.insert(0, Blocker())
"""


def test_core_works_without_the_book_and_the_glyphs(files, tmp_path):
    out, merged = tmp_path / "t.csv", tmp_path / "m.safetensors"
    shared = ["--base", str(files[0]), "--models", *map(str, files[1])]
    code = f"""
from mergelib.cli import main
assert main({["metrics", *shared, "--extra", "--out", str(out)]}) == 0
assert main({["merge", *shared, "--method", "tsv", "--out", str(merged)]}) == 0
import torch, mergelib as ml
print(len(ml.METRICS) > 28, len(ml.METHODS), len(ml.RULES))
print(ml.evaluate(torch.nn.Flatten(), torch.eye(3).reshape(3, 3, 1, 1), torch.arange(3),
                  torch.eye(3)))
ml.task("own", ["a", "b"])(lambda rng, sizes: {{}})
print(ml.TASKS["own"].class_names)
try:
    list(ml.TASKS)
except ml.MergelibError as error:
    print(error)
"""
    lines = run(BLOCKER + code).splitlines()
    assert lines[2:5] == ["True 10 9", "1.0", "('a', 'b')"]
    assert "pip install 'mergelib[glyphs]'" in lines[5] and "qtawesome" in lines[5]
    assert out.is_file() and merged.is_file()
