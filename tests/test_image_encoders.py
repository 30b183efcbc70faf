"""Backbones without texts: timm's encoders from files, and heads made of images."""

import numpy as np
import pytest
import timm
import torch
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression
from timm.models.vision_transformer import checkpoint_filter_fn
from torch.nn.functional import cross_entropy, normalize

from mergelib.core.errors import MergelibError, MergelibNote
from mergelib.core.store import save_tensors
from mergelib.metrics.encoder import mean_activation
from mergelib.models.backbones import load, pixels_of
from mergelib.models.batches import Batches
from mergelib.models.heads import logits, probe, prototypes, zero_shot_head
from mergelib.pipeline import params

pytestmark = pytest.mark.numeric

NAME = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Weights of a timm model with its classifier, drawn here, in float16."""
    torch.manual_seed(0)
    state = timm.create_model(NAME).state_dict()
    path = tmp_path_factory.mktemp("timm") / "weights.safetensors"
    save_tensors(path, {name: tensor.half() for name, tensor in state.items()})
    return path


def test_a_file_of_timm_gives_the_features_that_timm_gives(file):
    found = load(f"timm/{NAME}", file, 64)
    theirs = timm.create_model(NAME, num_classes=0, img_size=64).eval()
    held = {n: t.float() for n, t in load_held(file).items() if not n.startswith("head.")}
    theirs.load_state_dict(checkpoint_filter_fn(held, theirs))
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        wanted = theirs(found.normalize(images))
        assert torch.equal(found.model.visual(found.normalize(images)), wanted)
    assert found.image_size == 64 and found.mean == tuple(theirs.default_cfg["mean"])
    assert pixels_of(f"timm/{NAME}") == 224 and found.model.visual.output_dim == 192
    assert found.visual_state().keys() == held.keys()


def load_held(file):
    from safetensors.torch import load_file

    return load_file(file)


def test_its_mean_activation_is_that_of_the_last_block(file):
    visual = load(f"timm/{NAME}", file, 64).model.visual
    images = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        blocks = visual.forward_intermediates(
            images, indices=1, intermediates_only=True, output_fmt="NLC", return_prefix_tokens=True
        )
        patches, prefix = blocks[0]
        wanted = torch.cat([prefix, patches], dim=1).double().mean(dim=(0, 1))
    assert torch.allclose(mean_activation(visual, images), wanted, atol=1e-5)


def test_what_does_not_fit_is_named(file, tmp_path):
    with pytest.raises(MergelibError, match="unknown backbone 'timm/vit_tony'"):
        load("timm/vit_tony", file)
    state = load_held(file)
    save_tensors(tmp_path / "w.safetensors", {n: t for n, t in state.items() if n != "norm.bias"})
    with pytest.raises(MergelibError, match=r"w.safetensors: tensor 'norm.bias' is missing"):
        load(f"timm/{NAME}", tmp_path / "w.safetensors", 64)
    with pytest.raises(MergelibError, match="no text tower"):
        zero_shot_head(load(f"timm/{NAME}", file, 32), ["a", "b"], ["a {}"])


@pytest.fixture
def features():
    """Features of three classes, of length other than one, and labels."""
    torch.manual_seed(1)
    labels = torch.arange(60) % 3
    centres = torch.randn(3, 8)
    return 3 * centres[labels] + torch.randn(60, 8), labels


def test_prototypes_are_the_scaled_class_means(features):
    z, labels = features
    head = prototypes(z, labels, 3)
    unit = z.double().numpy()
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    means = np.stack([unit[labels.numpy() == c].mean(axis=0) for c in range(3)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    scale = head.norm(dim=1)
    assert np.allclose(head / scale[:, None], means, atol=1e-6)
    assert torch.allclose(scale, scale[:1].expand(3), rtol=1e-5)

    def loss(s):
        return float(cross_entropy(s * torch.from_numpy(unit @ means.T), labels))

    least = minimize_scalar(loss, bounds=(1, 100), method="bounded").fun
    assert loss(float(scale[0])) == pytest.approx(least, abs=1e-6)
    with pytest.warns(MergelibNote, match="no image of class 3 of 5"):
        wider = prototypes(z, labels, 5)
    assert torch.allclose(normalize(wider[:3]), normalize(head)) and not wider[3:].any()


@pytest.mark.parametrize("classes", [2, 3])
def test_a_probe_is_scikit_learn_s_logistic_regression(features, classes):
    z, labels = features[0], features[1].clamp(max=classes - 1)
    unit = normalize(z.double(), dim=-1).numpy()
    fit = LogisticRegression(C=100, fit_intercept=False, tol=1e-8, max_iter=10_000)
    wanted = fit.fit(unit, labels.numpy()).predict_proba(unit)
    with torch.no_grad():
        found = logits(z, probe(z, labels, classes)).softmax(dim=1)
    assert np.allclose(found, wanted, atol=0.01)  # lbfgs stops at a gradient of 1e-4


def test_batches_are_the_normalized_images():
    pixels = torch.randint(0, 256, (7, 3, 4, 4), dtype=torch.uint8)
    held = Batches(pixels, lambda x: x.float() / 255, torch.device("cpu"))
    whole = pixels.float() / 255
    assert len(held) == 7 and torch.equal(torch.cat(list(held.split(3))), whole)
    for which in (slice(2, 5), torch.tensor([6, 0]), [1, 1]):
        assert torch.equal(held[which], whole[which])


def test_real20_is_there_or_says_in_one_line_what_is_not(root):
    run = params.load(root / "params" / "real20.yaml")
    assert len(run.tasks) == 20 == len(run.given) and len(run.methods) == 6
    task = run.given[run.tasks[0]]
    from mergelib.tasks.given import opened

    try:
        assert opened(task)[0].count > 500
    except MergelibError as error:
        assert "is missing" in str(error) and "\n" not in str(error)
