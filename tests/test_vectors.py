"""Task vectors: differences, Grams and what is refused."""

import numpy as np
import pytest
import torch

from mergelib.checkpoints import task_vectors
from mergelib.core.errors import MergelibError
from mergelib.core.store import save_tensors

pytestmark = pytest.mark.numeric


def make(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "z.weight": torch.randn(7, 5, generator=generator),
        "a.conv": torch.randn(3, 2, 2, 2, generator=generator),
        "m.bias": torch.randn(11, generator=generator),
        "scale": torch.randn((), generator=generator),
        "steps": torch.tensor([seed]),
    }


@pytest.fixture
def files(tmp_path):
    """A base and three models, as safetensors files and as mappings."""
    models = [make(seed) for seed in range(4)]
    paths = [tmp_path / f"model{seed}.safetensors" for seed in range(4)]
    for path, model in zip(paths, models, strict=True):
        save_tensors(path, model)
    return paths, models


def test_task_vectors_are_exact_differences(files):
    paths, models = files
    seen = dict(task_vectors.task_vectors(paths[0], paths[1:]))
    assert list(seen) == ["a.conv", "m.bias", "scale", "z.weight"]  # integers are skipped
    for name, stack in seen.items():
        assert stack.dtype == torch.float64
        for t in range(3):
            tuned, base = models[t + 1][name].numpy(), models[0][name].numpy()
            literal = tuned.astype(np.float64) - base.astype(np.float64)
            np.testing.assert_array_equal(stack[t].numpy(), literal)


def test_files_and_mappings_agree(files):
    paths, models = files
    of_files = task_vectors.grams(paths[0], paths[1:])
    of_mappings = task_vectors.grams(models[0], models[1:])
    assert list(of_files) == list(of_mappings)
    for name, gram in of_files.items():
        np.testing.assert_array_equal(gram, of_mappings[name])


def test_grams_and_norms_against_loops(files, monkeypatch):
    monkeypatch.setattr(task_vectors, "CHUNK", 4)  # so that a tensor needs several chunks
    paths, models = files
    flat = {
        name: [
            (model[name].double() - models[0][name].double()).numpy().ravel()
            for model in models[1:]
        ]
        for name in models[0]
        if name != "steps"
    }
    grams = task_vectors.grams(paths[0], paths[1:])
    for name, rows in flat.items():
        literal = [[sum(a * b for a, b in zip(p, q, strict=True)) for q in rows] for p in rows]
        np.testing.assert_allclose(grams[name], literal, rtol=1e-12, atol=1e-14)
        np.testing.assert_array_equal(grams[name], grams[name].T)
    whole = [np.concatenate([rows[t] for rows in flat.values()]) for t in range(3)]
    total = sum(grams.values())
    np.testing.assert_allclose(
        task_vectors.norms(total), [np.linalg.norm(v) for v in whole], rtol=1e-12
    )
    for i in range(3):
        for j in range(3):
            away = np.linalg.norm(whole[i] - whole[j])
            np.testing.assert_allclose(
                task_vectors.distance(total)[i, j], away, rtol=1e-10, atol=1e-7
            )


def test_long_float32_sums_do_not_drift():
    # 2^24 + 1 equal entries: a float32 running sum of ones stops at 2^24.
    ones = torch.ones(2, (1 << 24) + 1)
    np.testing.assert_array_equal(task_vectors.gram(ones), np.full((2, 2), 2.0**24 + 1))


def test_cosine_stays_in_range_for_parallel_and_zero_vectors():
    rows = torch.tensor([[0.1, 0.2, 0.3], [0.7, 1.4, 2.1], [0.0, 0.0, 0.0]])
    gram = task_vectors.gram(rows)
    cosine = task_vectors.cosine(gram)
    assert cosine.max() <= 1
    np.testing.assert_allclose(cosine[:2, :2], 1, atol=1e-6)
    np.testing.assert_array_equal(cosine[2], 0)
    np.testing.assert_array_equal(task_vectors.magnitude_ratio(gram)[2], 0)
    np.testing.assert_allclose(task_vectors.magnitude_ratio(gram)[0, 1], 1 / 7, rtol=1e-6)


def consume(base, tuned):
    return list(task_vectors.task_vectors(base, tuned))


def test_missing_file_is_named(files, tmp_path):
    paths, _ = files
    with pytest.raises(MergelibError, match="nowhere.safetensors is missing"):
        consume(paths[0], [tmp_path / "nowhere.safetensors"])


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_file_is_named(files, keep):
    paths, _ = files
    whole = paths[2].read_bytes()
    paths[2].write_bytes(whole[:keep])
    with pytest.raises(MergelibError, match="model2.safetensors is truncated"):
        consume(paths[0], paths[1:])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite_names_file_and_tensor(files, bad):
    paths, models = files
    broken = {name: tensor.clone() for name, tensor in models[3].items()}
    broken["a.conv"][1, 0, 1, 1] = bad
    save_tensors(paths[3], broken)
    with pytest.raises(MergelibError, match=r"model3.safetensors: tensor 'a.conv' has NaN or inf"):
        consume(paths[0], paths[1:])


def test_other_shape_names_tensor_and_both_shapes(files):
    paths, models = files
    save_tensors(paths[1], models[1] | {"z.weight": torch.zeros(5, 7)})
    with pytest.raises(MergelibError, match=r"'z.weight' has shape \(5, 7\) in .*\(7, 5\) in"):
        consume(paths[0], paths[1:])


@pytest.mark.parametrize("owner", [0, 1])
def test_other_names_are_refused(files, owner):
    paths, models = files
    save_tensors(paths[owner], models[owner] | {"extra": torch.zeros(2)})
    lacking = paths[1 - owner].name
    with pytest.raises(MergelibError, match=rf"{lacking} lacks tensor 'extra'.*shape \(2,\)"):
        consume(paths[0], paths[1:2])


def test_integers_against_floats_are_refused(files):
    paths, models = files
    save_tensors(paths[1], models[1] | {"m.bias": torch.zeros(11, dtype=torch.int32)})
    with pytest.raises(MergelibError, match="'m.bias' holds integers"):
        consume(paths[0], paths[1:])


def test_nothing_to_subtract_is_refused(files):
    paths, _ = files
    with pytest.raises(MergelibError, match="no fine-tuned model"):
        consume(paths[0], [])
    with pytest.raises(MergelibError, match="no floating point tensor"):
        consume({"n": torch.tensor([1])}, [{"n": torch.tensor([2])}])
