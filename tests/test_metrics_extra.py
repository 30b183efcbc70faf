"""The extra metrics against literal formulas, and that they stay out of the published 28."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from scipy.linalg import subspace_angles
from sklearn.metrics import accuracy_score
from sklearn.metrics.pairwise import cosine_similarity

from mergelib import cli
from mergelib.core.errors import MergelibError
from mergelib.core.store import read_table, save_tensors
from mergelib.metrics.encoder import cross_accuracies
from mergelib.metrics.inputs import Inputs, read_inputs
from mergelib.metrics.registry import METRICS, published_metrics
from mergelib.metrics.table import pairwise, pairwise_of_checkpoints
from mergelib.metrics.weights import summarize
from mergelib.published import released

pytestmark = pytest.mark.numeric

TASKS = ["ant", "bee", "cow"]
PUBLISHED = published_metrics()
EXTRA = [row.name for row in METRICS.rows() if not row.published]
SHAPES = {"wide": (12, 30), "tall": (40, 15), "narrow": (6, 25), "bias": (24,)}
MATRICES = ("wide", "tall", "narrow")


def make_world(seed=0):
    """A base, three models with shared directions, and their data."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    base = {name: draw(*shape) for name, shape in SHAPES.items()}
    common = {name: draw(*shape) for name, shape in SHAPES.items()}
    models = [{n: base[n] + 0.1 * (common[n] + draw(*SHAPES[n])) for n in base} for _ in TASKS]
    pixels = draw(5, 3, 4, 4)
    data = [
        {
            "encoder_gradient/wide": draw(12, 30),
            "encoder_gradient/bias": draw(24),
            "encoder_gradient/unused": torch.zeros(7),
            "input_gradient": pixels + draw(5, 3, 4, 4),
            "cross_accuracy": torch.rand(3, generator=generator, dtype=torch.float64),
            "zero_shot": torch.rand((), generator=generator, dtype=torch.float64),
            "fine_tuned": 1 - 0.1 * torch.rand((), generator=generator, dtype=torch.float64),
        }
        for _ in TASKS
    ]
    return base, models, data


@pytest.fixture(scope="module")
def world():
    return make_world()


def gather(base, models, data) -> Inputs:
    return read_inputs(
        base, models, [summarize(base, m) | d for m, d in zip(models, data, strict=True)]
    )


@pytest.fixture(scope="module")
def table(world):
    return pairwise(gather(*world), TASKS, names=EXTRA)


def literal_angles(base, one, two, side, statistic):
    values = []
    for name in MATRICES:
        bases = []
        for model in (one, two):
            u, _, vt = np.linalg.svd((model[name].double() - base[name].double()).numpy(), False)
            k = min(10, *SHAPES[name])
            bases.append(u[:, :k] if side == "left" else vt[:k].T)
        cosines = np.cos(subspace_angles(*bases))
        values.append({"mean": np.mean, "min": np.min, "max": np.max}[statistic](cosines))
    return np.mean(values)


def literal_knowledge(data):
    return (data["zero_shot"] / data["fine_tuned"]).item()


def cosine(a, b):
    return cosine_similarity(a.reshape(1, -1), b.reshape(1, -1))[0, 0]


def literal(base, models, data, i, j):
    """All extra metrics of one pair."""
    row = {}
    for side in ("left", "right"):
        for statistic in ("mean", "min", "max"):
            name = f"{side}_principal_cosine_{statistic}"
            row[name] = literal_angles(base, models[i], models[j], side, statistic)
    forth, back = (data[i]["cross_accuracy"][j].item(), data[j]["cross_accuracy"][i].item())
    row["cross_task_accuracy"] = (forth + back) / 2
    row["cross_task_accuracy_of_a"], row["cross_task_accuracy_of_b"] = forth, back
    one, two = literal_knowledge(data[i]), literal_knowledge(data[j])
    row["base_knowledge"], row["base_knowledge_difference"] = (one + two) / 2, abs(one - two)
    images = zip(data[i]["input_gradient"], data[j]["input_gradient"], strict=True)
    row["input_gradient_alignment"] = np.mean([cosine(a, b) for a, b in images])
    tensors = ("encoder_gradient/wide", "encoder_gradient/bias")
    row["encoder_gradient_alignment"] = np.mean([cosine(data[i][n], data[j][n]) for n in tensors])
    return row


@pytest.mark.parametrize("name", EXTRA)
def test_metric_is_its_formula(world, table, name):
    expected = [literal(*world, i, j)[name] for i, j in combinations(range(3), 2)]
    np.testing.assert_allclose(table[name], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", EXTRA)
def test_range_symmetry_and_reference(world, name):
    row = METRICS[name]
    values = row(gather(*world))
    assert values.shape == (3, 3) and np.isfinite(values).all()
    assert np.allclose(values, values.T) is row.symmetric
    assert values.min() >= row.range[0] - 1e-9 and values.max() <= row.range[1] + 1e-9
    assert np.array_equal(values, row(gather(*world), "paper"))
    assert any(year in row.reference for year in ("1973", "2020", "2024", "2026"))
    assert row.function.__doc__


def test_principal_angles_bound_the_overlap(world):
    # Per matrix, min² ≤ mean of squares = interaction overlap ≤ max²; one matrix shows it.
    base, models, _ = world
    base, models = {"tall": base["tall"]}, [{"tall": m["tall"]} for m in models]
    x = read_inputs(base, models, [summarize(base, m) for m in models])
    low, high = (METRICS[f"right_principal_cosine_{end}"](x) for end in ("min", "max"))
    square = METRICS["interaction_matrix_overlap_top_k"](x)
    assert (low**2 <= square + 1e-6).all() and (square <= high**2 + 1e-6).all()
    np.testing.assert_allclose(np.diagonal(low), 1, atol=1e-6)


def test_a_matrix_that_is_zero_in_one_model_does_not_count(world, table):
    base, models, data = world
    still = {"still": torch.ones(8, 9)}
    tuned = [m | still for m in models]
    tuned[0] = models[0] | {"still": torch.zeros(8, 9)}
    found = pairwise(gather(base | still, tuned, data), TASKS, names=EXTRA)
    for name in table.columns[2:]:
        np.testing.assert_allclose(found[name], table[name], rtol=1e-12, err_msg=name)


def test_base_knowledge_of_a_model_that_learned_nothing(world):
    x = replace(gather(*world), zero_shot=np.array([0.5, 0.2, 0.1]), fine_tuned=np.array([1, 0, 1]))
    assert np.isnan(METRICS["base_knowledge"](x)[0, 1])
    assert METRICS["base_knowledge"](x)[0, 2] == pytest.approx(0.3)
    assert METRICS["base_knowledge_difference"](x)[2, 0] == pytest.approx(0.4)


# --- Cross-task accuracy ----------------------------------------------------------------------


def test_cross_accuracies_are_those_of_scikit_learn():
    torch.manual_seed(0)
    vision = CLIPVisionCfg(layers=1, width=16, head_width=8, patch_size=8, image_size=16)
    text = CLIPTextCfg(context_length=4, vocab_size=9, width=8, heads=2, layers=1)
    visual = CLIP(8, vision, text).visual.train()
    index = torch.arange(30) % 3
    index[index == 1] = 0  # no image of the second task
    labels = torch.randint(0, 3, (30,))
    images, heads = torch.randn(30, 3, 16, 16), [torch.randn(c, 8) for c in (4, 5, 3)]
    found = cross_accuracies(visual, images, labels, heads, index, batch_size=7)
    assert found.shape == (3,) and found.dtype == torch.float64 and visual.training
    for task in (0, 2):
        guess = []
        for image in images[index == task]:
            with torch.no_grad():
                guess.append(int((heads[task] @ visual.eval()(image[None])[0]).argmax()))
        assert found[task].item() == pytest.approx(accuracy_score(labels[index == task], guess))
    assert torch.isnan(found[1])
    with pytest.raises(MergelibError, match="0 to 2 but there are 2 heads"):
        cross_accuracies(visual, images, labels, heads[:2], index)


# --- Apart from the 28 ------------------------------------------------------------------------


def test_they_stay_out_of_the_28(world):
    assert len(PUBLISHED) == 28 and not set(PUBLISHED) & set(EXTRA)
    published = {"task_vector", "effective_rank", "subspace", "activation", "gradient"}
    extra = {"cross_task", "base_knowledge", "principal_angles", "gradient_alignment"}
    assert {METRICS[name].category for name in PUBLISHED} == published
    assert {METRICS[name].category for name in EXTRA} == extra
    assert released.metric_names() == PUBLISHED
    base, models, data = world
    data = [d | {"activation": torch.ones(4) * t} for t, d in enumerate(data)]
    assert list(pairwise(gather(base, models, data), TASKS).columns[2:]) == PUBLISHED


def test_names_may_mix_and_extra_ones_come_last(world):
    names = ["base_knowledge", "stable_rank"]
    found = pairwise(gather(*world), TASKS, names)
    assert list(found.columns) == ["task_a", "task_b", "stable_rank", "base_knowledge"]


def test_what_is_missing_or_unknown_is_named(world):
    base, models, _ = world
    x = read_inputs(base, models, [summarize(base, m) for m in models])
    for name, field in {
        "cross_task_accuracy": "cross_accuracy",
        "base_knowledge": "zero_shot",
        "input_gradient_alignment": "input_gradient_grams",
        "encoder_gradient_alignment": "encoder_gradient_grams",
    }.items():
        with pytest.raises(MergelibError, match=f"the summaries hold no {field}"):
            pairwise(x, TASKS, [name])
    with pytest.raises(MergelibError, match="'base_knowlege'; did you mean 'base_knowledge'"):
        pairwise(x, TASKS, ["base_knowlege"])


def test_the_command_adds_what_weights_allow(world, tmp_path):
    base, models, _ = world
    save_tensors(tmp_path / "base.safetensors", base)
    files = [tmp_path / f"{task}.safetensors" for task in TASKS]
    for file, model in zip(files, models, strict=True):
        save_tensors(file, model)
    command = ["metrics", "--base", str(tmp_path / "base.safetensors"), "--models"]
    out = tmp_path / "table.csv"
    assert cli.main([*command, *map(str, files), "--extra", "--out", str(out)]) == 0
    found = read_table(out)
    plain = pairwise_of_checkpoints(tmp_path / "base.safetensors", files)
    more = [n for n in EXTRA if METRICS[n].category == "principal_angles"]
    assert list(found.columns) == [*plain.columns, *more] and len(more) == 6
    assert found[plain.columns].equals(plain)
    np.testing.assert_allclose(
        found["left_principal_cosine_mean"],
        [
            literal_angles(base, models[i], models[j], "left", "mean")
            for i, j in [(0, 1), (0, 2), (1, 2)]
        ],
        rtol=1e-5,
    )
