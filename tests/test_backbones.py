"""The miniature CLIP, its tokenizer, its heads, and weights that do not fit."""

import json
import shutil

import numpy as np
import open_clip
import pytest
import torch

from mergelib.core.errors import MergelibError
from mergelib.core.store import file_digest, load_tensors, save_tensors
from mergelib.models.accuracy import accuracy
from mergelib.models.backbones import CONTEXT, GLYPH_VIT, WEIGHTS, load, tokenize, vocabulary
from mergelib.models.heads import logits, zero_shot_head
from mergelib.tasks import TASKS

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def backbone():
    return load()


def test_it_is_open_clips_own_class_and_of_the_promised_size(backbone):
    assert type(backbone.model) is open_clip.CLIP
    assert 1e6 < sum(p.numel() for p in backbone.model.visual.parameters()) < 3e6
    assert not backbone.model.training


def test_the_card_names_the_weights():
    card = json.loads((WEIGHTS / f"{GLYPH_VIT}.json").read_text())
    assert card["weights_sha256"] == file_digest(WEIGHTS / f"{GLYPH_VIT}.safetensors")
    assert (WEIGHTS / f"{GLYPH_VIT}.safetensors").stat().st_size < 10 * 2**20


def test_normalize_is_the_formula(backbone):
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert np.allclose(backbone.normalize(images), (images.numpy() / 255 - 0.5) / 0.5, atol=1e-6)


def test_tokens():
    known = vocabulary(["letter", "latin", "a"])
    index = {word: i for i, word in enumerate(known)}
    tokens = tokenize(["latin letter a", "Qi", " ".join(["latin"] * 40)], index)
    assert tokens.shape == (3, CONTEXT)
    start, end = index["<start>"], index["<end>"]
    assert end == len(known) - 1 == int(tokens.max())
    assert tokens[0, :5].tolist() == [start, index["latin"], index["letter"], index["a"], end]
    assert tokens[1, :4].tolist() == [start, index["q"], index["i"], end]
    assert tokens[2, -1] == end and (tokens[0, 5:] == index["<pad>"]).all()


def test_text_after_the_end_token_changes_nothing(backbone):
    tokens = backbone.tokenize(["latin small letter a"])
    longer = tokens.clone()
    end = int(tokens.argmax())
    longer[0, end + 1 :] = 5
    with torch.no_grad():
        assert torch.allclose(
            backbone.model.encode_text(tokens), backbone.model.encode_text(longer), atol=1e-6
        )


def test_head_is_the_literal_prompt_ensemble(backbone):
    row = TASKS["games"]
    head = zero_shot_head(backbone, row.class_names, row.templates).numpy()
    scale = np.exp(backbone.model.logit_scale.item())
    with torch.no_grad():
        for name, weights in zip(row.class_names[:4], head, strict=False):
            texts = [
                backbone.model.encode_text(backbone.tokenize([t.format(name)]))[0].numpy()
                for t in row.templates
            ]
            mean = np.mean([text / np.linalg.norm(text) for text in texts], axis=0)
            assert np.allclose(weights, scale * mean / np.linalg.norm(mean), atol=1e-4)


def test_accuracy_is_that_of_scikit_learn(backbone):
    from sklearn.metrics import accuracy_score

    torch.manual_seed(0)
    images, labels = torch.randn(37, 3, 32, 32), torch.randint(0, 5, (37,))
    head = torch.randn(5, 128)
    with torch.no_grad():
        guess = logits(backbone.model.visual(images), head).argmax(1)
    found = accuracy(backbone.model.visual, images, labels, head, batch_size=10)
    assert found == pytest.approx(accuracy_score(labels, guess))


def test_accuracy_of_pixels_is_that_of_normalized_images(backbone):
    torch.manual_seed(0)
    pixels = torch.randint(256, (61, 3, 32, 32), dtype=torch.uint8)
    images, visual, head = backbone.normalize(pixels), backbone.model.visual, torch.randn(5, 128)
    with torch.no_grad():
        labels = logits(visual(images), head).argmax(1)
    labels[:20] = (labels[:20] + 1) % 5  # 41 of 61 are right
    given = (labels, head)
    assert accuracy(visual, images, *given) == 41 / 61
    assert accuracy(visual, pixels, *given, normalize=backbone.normalize) == 41 / 61
    half = accuracy(visual, pixels, *given, bfloat16=True, normalize=backbone.normalize)
    assert half == pytest.approx(41 / 61, abs=0.15)
    assert next(visual.parameters()).dtype == torch.float32


@pytest.fixture
def copied(tmp_path):
    for suffix in (".json", ".safetensors"):
        shutil.copy(WEIGHTS / f"{GLYPH_VIT}{suffix}", tmp_path)
    return tmp_path / f"{GLYPH_VIT}.safetensors"


def test_weights_that_do_not_fit_are_named(copied):
    state = load_tensors(copied)
    broken = {
        "missing from": {k: v for k, v in state.items() if k != "visual.proj"},
        "left over in": state | {"visual.extra": torch.zeros(1)},
        "has shape": state | {"visual.proj": torch.zeros(3, 3)},
        "NaN": state | {"visual.proj": torch.full_like(state["visual.proj"], torch.nan)},
    }
    for words, wrong in broken.items():
        save_tensors(copied, wrong)
        with pytest.raises(MergelibError, match=words) as caught:
            load(GLYPH_VIT, copied)
        assert str(copied) in str(caught.value)
    copied.write_bytes(copied.read_bytes()[:1000])
    with pytest.raises(MergelibError, match="truncated"):
        load(GLYPH_VIT, copied)


def test_unknown_backbones_are_named(tmp_path):
    with pytest.raises(MergelibError, match="unknown backbone 'ViT-Z'"):
        load("ViT-Z")
    (tmp_path / "weights.safetensors").write_bytes(b"not weights")
    with pytest.raises(MergelibError, match="ViT-B-32"):
        load("ViT-B-32", tmp_path / "weights.safetensors")


def test_a_clip_of_open_clip_loads_from_a_local_file(tmp_path):
    # A real ViT-B/32 in the format that hubs serve, with weights drawn here.
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-S-32-alt")
    save_tensors(tmp_path / "clip.safetensors", model.state_dict())
    loaded = load("ViT-S-32-alt", tmp_path / "clip.safetensors")
    assert loaded.image_size == 224 and loaded.mean[0] == pytest.approx(0.4815, abs=1e-3)
    own = loaded.model.state_dict()
    assert all(torch.equal(own[name], value) for name, value in model.state_dict().items())
    images = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    head = zero_shot_head(loaded, ["cat", "dog"], ["a photo of a {}."])
    with torch.no_grad():
        scores = logits(loaded.model.visual(loaded.normalize(images)), head)
    assert scores.shape == (1, 2) and torch.isfinite(scores).all()
