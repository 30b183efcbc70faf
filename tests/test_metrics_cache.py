"""Weight metrics with a cache: the same table, and only what is new computed."""

import os

import numpy as np
import pytest
import torch

from mergelib.checkpoints import task_vectors
from mergelib.core import errors
from mergelib.core.store import save_tensors
from mergelib.metrics import cache, weights
from mergelib.metrics.table import pairwise_of_checkpoints

pytestmark = pytest.mark.numeric

SHAPES = {"attn.weight": (24, 12), "mlp.wide": (12, 60), "bias": (24,), "scale": ()}


@pytest.fixture
def files(tmp_path):
    """A base and five models; the fourth has a matrix that did not move."""
    generator = torch.Generator().manual_seed(0)
    base = {n: torch.randn(s, generator=generator) for n, s in SHAPES.items()}
    save_tensors(tmp_path / "base.safetensors", base)
    paths = []
    for t in range(5):
        own = {n: b + 0.01 * torch.randn(b.shape, generator=generator) for n, b in base.items()}
        if t == 3:
            own["attn.weight"] = base["attn.weight"]
        paths.append(tmp_path / f"model{t}.safetensors")
        save_tensors(paths[-1], own)
    return tmp_path / "base.safetensors", paths


@pytest.fixture
def work(monkeypatch):
    """What the cache had computed: models summarized, and rows of Gram matrices."""
    done = {"summaries": [], "rows": []}
    survey = weights.survey

    def counted(base, models, rows, fresh, device):
        done["summaries"] += [models[t].origin.stem for t in fresh]
        done["rows"].append(rows)
        return survey(base, models, rows, fresh, device)

    monkeypatch.setattr(cache, "survey", counted)
    return done


def same(one, two):
    assert list(one.columns) == list(two.columns)
    assert one.iloc[:, :2].equals(two.iloc[:, :2])
    # float32 base of norm 30, task vectors of 0.3: 1e-15 · 100 of the Gram entries
    np.testing.assert_allclose(one.iloc[:, 2:], two.iloc[:, 2:], rtol=1e-11, atol=1e-11)


def test_one_more_model_costs_its_own_pass(files, tmp_path, work):
    base, models = files
    cache = tmp_path / "cache"
    same(
        pairwise_of_checkpoints(base, models[:4], cache=cache),
        pairwise_of_checkpoints(base, models[:4]),
    )
    assert work == {"summaries": [m.stem for m in models[:4]], "rows": [None]}
    same(pairwise_of_checkpoints(base, models, cache=cache), pairwise_of_checkpoints(base, models))
    assert work["summaries"][4:] == ["model4"] and work["rows"][1:] == [[4]]
    same(
        pairwise_of_checkpoints(base, models[::-1], cache=cache),
        pairwise_of_checkpoints(base, models[::-1]),
    )
    assert len(work["summaries"]) == 5 and len(work["rows"]) == 2


def test_lists_that_met_apart_are_joined(files, tmp_path, work):
    base, models = files
    for part in (models[:3], models[3:]):
        pairwise_of_checkpoints(base, part, cache=tmp_path)
    same(
        pairwise_of_checkpoints(base, models, cache=tmp_path), pairwise_of_checkpoints(base, models)
    )
    assert len(work["summaries"]) == 5 and work["rows"] == [None, None, [3, 4]]


def test_a_lost_summary_is_made_again_beside_a_new_model(files, tmp_path, work):
    base, models = files
    pairwise_of_checkpoints(base, models[:4], cache=tmp_path)
    lost = sorted((tmp_path / "summaries").iterdir())[1]
    lost.unlink()
    same(
        pairwise_of_checkpoints(base, models, cache=tmp_path), pairwise_of_checkpoints(base, models)
    )
    assert lost.is_file()
    assert len(work["summaries"]) == 6 and work["rows"] == [None, [4]]


def test_more_models_than_a_pass_takes(files, tmp_path, work, monkeypatch):
    base, models = files
    monkeypatch.setattr(cache, "GROUP", 2)
    same(
        pairwise_of_checkpoints(base, models, cache=tmp_path), pairwise_of_checkpoints(base, models)
    )
    assert work["summaries"] == [m.stem for m in models] and len(work["rows"]) == 3


def test_a_changed_file_and_a_moved_one(files, tmp_path, work):
    base, models = files
    pairwise_of_checkpoints(base, models[:2], cache=tmp_path)
    moved = tmp_path / "moved" / "model0.safetensors"
    moved.parent.mkdir()
    os.replace(models[0], moved)
    pairwise_of_checkpoints(base, [moved, models[1]], cache=tmp_path)
    assert len(work["summaries"]) == 2  # the content is known
    os.replace(models[2], models[1])
    found = pairwise_of_checkpoints(base, [moved, models[1]], cache=tmp_path)
    same(found, pairwise_of_checkpoints(base, [moved, models[1]]))
    assert work["summaries"][2:] == ["model1"]


def test_rows_of_grams_against_loops(files):
    base, models = files
    whole = task_vectors.grams(base, models)
    rows = task_vectors.grams(base, models, rows=[4, 1])
    taus = dict(task_vectors.task_vectors(base, models))
    for name, tau in taus.items():
        flat = tau.reshape(5, -1).numpy()
        literal = [[sum(a * b for a, b in zip(p, q, strict=True)) for q in flat] for p in flat]
        np.testing.assert_allclose(whole[name], literal, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(rows[name], np.array(literal)[[4, 1]], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("rows", [None, [0]])
def test_not_finite_is_named(files, bad, rows):
    base, models = files
    broken = {n: torch.randn(s) for n, s in SHAPES.items()}
    broken["mlp.wide"][3, 5] = bad
    save_tensors(models[2], broken)
    with pytest.raises(errors.MergelibError, match="model2.*'mlp.wide' has NaN or infinite"):
        task_vectors.grams(base, models, rows)


def test_the_number_of_threads_does_not_matter(files):
    base, models = files
    before, tables = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            tables.append(task_vectors.grams(base, models))
    finally:
        torch.set_num_threads(before)
    for name, gram in tables[0].items():
        np.testing.assert_array_equal(gram, tables[1][name])
