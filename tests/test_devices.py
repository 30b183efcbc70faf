"""The engines on another device than the CPU (a stand-in, see `elsewhere`), and devices by name."""

import copy

import numpy as np
import pytest
import torch
from elsewhere import PLACE, Elsewhere, NewTensors
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

from mergelib.checkpoints import reading, task_vectors
from mergelib.cli import main
from mergelib.core.devices import find_device
from mergelib.core.errors import MergelibError
from mergelib.core.store import save_tensors
from mergelib.merging import engine
from mergelib.merging.cache import cached_factors
from mergelib.merging.engine import merge
from mergelib.merging.registry import METHODS
from mergelib.metrics.encoder import cross_accuracies, mean_activation, pool_gradients
from mergelib.metrics.weights import survey

pytestmark = pytest.mark.numeric

SHAPES = {"tall": (40, 25), "wide": (24, 60), "small": (6, 5), "bias": (24,), "scale": ()}


@pytest.fixture
def files(tmp_path):
    """A base and three models; the second has a matrix that did not move."""
    generator = torch.Generator().manual_seed(0)
    states = [{n: torch.randn(s, generator=generator) for n, s in SHAPES.items()} for _ in range(4)]
    states[2]["wide"] = states[0]["wide"]
    paths = [tmp_path / f"{t}.safetensors" for t in range(4)]
    for path, state in zip(paths, states, strict=True):
        save_tensors(path, state)
    return paths


@pytest.fixture
def elsewhere(monkeypatch):
    """The stand-in device, known in one thread only, which does all work."""
    for module in (engine, task_vectors):
        monkeypatch.setattr(module, "threaded", map)
    with NewTensors():
        yield str(PLACE)


def on(device, path):
    with reading.opened(path) as weights:
        return {name: weights.read(name).to(device) for name in weights.shapes}


@pytest.mark.parametrize("rows", [None, [1], []])
def test_survey(files, elsewhere, rows):
    base, *models = files
    grams, summaries = survey(base, models, rows, device=elsewhere)
    expected = survey(base, models, rows)
    for name, gram in expected[0].items():
        np.testing.assert_allclose(grams[name], gram, rtol=1e-12, atol=1e-14)
    for found, summary in zip(summaries, expected[1], strict=True):
        assert set(found) == set(summary)
        for key, part in summary.items():
            assert type(found[key]) is torch.Tensor and found[key].dtype == part.dtype
            if "sigma" in key:
                np.testing.assert_allclose(found[key], part, rtol=1e-11, atol=1e-14)
            else:  # vectors up to their signs
                a, b = found[key].numpy(), part.numpy()
                np.testing.assert_allclose(np.abs((a * b).sum(0)), (b * b).sum(0), atol=1e-5)


@pytest.mark.parametrize("method", list(METHODS))
def test_merges(files, elsewhere, method):
    base, *models = files
    for tuned in (models, [on(elsewhere, model) for model in models]):
        found = merge(on(elsewhere, base), tuned, method)
        for name, tensor in merge(base, models, method).items():
            assert isinstance(found[name], Elsewhere)
            np.testing.assert_allclose(found[name].held, tensor, rtol=1e-5, atol=1e-6)


def test_a_pair_from_kept_factors_into_the_tensors_of_a_model(files, elsewhere, tmp_path):
    base, *models = files
    kept = cached_factors(tmp_path / "kept", base, models[:2])
    into = on(elsewhere, base)
    found = merge(on(elsewhere, base), models[:2], "tsv", factors=kept, into=into)
    for name, tensor in merge(base, models[:2], "tsv").items():
        assert found[name] is into[name]
        np.testing.assert_allclose(found[name].held, tensor, rtol=1e-5, atol=1e-6)


def moved(module, device):
    """A copy of a module on a device that `Module.to` would leave without numbers."""
    module = copy.deepcopy(module)
    for part in module.modules():
        for name, value in list(part.named_parameters(recurse=False)):
            setattr(part, name, torch.nn.Parameter(value.detach().to(device)))
        for name, value in list(part.named_buffers(recurse=False)):
            setattr(part, name, value.to(device))
    return module


def test_activations_gradients_and_accuracies(elsewhere):
    torch.manual_seed(0)
    vision = CLIPVisionCfg(layers=2, width=16, head_width=8, patch_size=4, image_size=8)
    text = CLIPTextCfg(context_length=4, vocab_size=10, width=8, heads=2, layers=1)
    here = CLIP(8, vision, text).visual.eval()
    there = moved(here, elsewhere)
    images, heads = torch.randn(6, 3, 8, 8), [torch.randn(3, 8), torch.randn(2, 8)]
    labels, index = torch.tensor([0, 1, 2, 0, 1, 1]), torch.tensor([0, 0, 0, 1, 1, 1])
    pool = (images, labels, heads, index)
    np.testing.assert_allclose(
        mean_activation(there, images), mean_activation(here, images), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(cross_accuracies(there, *pool), cross_accuracies(here, *pool))
    (encoder, pixels), expected = (pool_gradients(each, *pool) for each in (there, here))
    np.testing.assert_allclose(pixels, expected[1], rtol=1e-4, atol=1e-6)
    for name, gradient in expected[0].items():
        assert type(encoder[name]) is torch.Tensor
        np.testing.assert_allclose(encoder[name], gradient, rtol=1e-4, atol=1e-6)


def test_the_stand_in_tells_devices_apart(elsewhere):
    there = torch.ones(3, device=elsewhere)
    with pytest.raises(RuntimeError, match="two devices"):
        there + torch.ones(3)
    with pytest.raises(RuntimeError):
        there.numpy()
    assert float((there + 1).sum()) == 6 and type(there.cpu()) is torch.Tensor


def test_devices_by_name(monkeypatch, files, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") == find_device("cpu") == "cpu"
    with pytest.raises(MergelibError, match="unknown device 'gpu'"):
        find_device("gpu")
    base, *models = map(str, files)
    given = ["--base", base, "--models", *models, "--device", "cuda"]
    for verb in (
        ["metrics", "--out", f"{base}.csv"],
        ["merge", "--method", "tsv", "--out", f"{base}.pt"],
    ):
        assert main([*verb, *given]) == 2
        assert "torch sees no GPU" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert find_device("auto") == find_device("cuda") == "cuda"
