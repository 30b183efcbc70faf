"""The encoder that checkpoints belong to gives the features that their own library gives."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from mergelib.checkpoints.reading import views
from mergelib.checkpoints.selection import Choice
from mergelib.core.errors import MergelibError
from mergelib.core.store import save_tensors
from mergelib.forecasting import heads
from mergelib.forecasting.encoders import find_encoder
from mergelib.forecasting.heads import classifier_patterns, of_classes, of_classifier, text_of
from mergelib.forecasting.probe import Side, pairs_of, prepare, probe
from mergelib.merging.engine import merge
from mergelib.models import backbones, towers
from mergelib.models.heads import zero_shot_head
from mergelib.tasks.words import Classes

pytestmark = pytest.mark.numeric
EPS = torch.finfo(torch.float32).eps
TINY = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip
PROCESSOR = {
    "size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}, "resample": 3,
    "do_center_crop": True, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25],
}  # fmt: skip


def near(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Two transformers of two blocks, width 64 at most, whose kernels sum in another order."""
    bound = 10 * EPS * 64 * 2 * float(wanted.abs().max())
    assert found.shape == wanted.shape and float((found - wanted).abs().max()) < bound


def saved(model, folder: Path, processor: bool = True) -> Path:
    model.eval().save_pretrained(folder)
    if processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


def moved(model, seed: int):
    """The model with other weights nearby."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=generator)
    return model


def pixels(n: int, size: int = 16) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


# --- CLIP -----------------------------------------------------------------------------------------


def without_numbers(name: str) -> dict[str, torch.Tensor]:
    """Tensors of the image tower of one of open_clip's models, which take no memory."""
    with torch.device("meta"):
        model = open_clip.model.CLIP(**open_clip.get_model_config(name))
    return {n: torch.zeros(1).expand(t.shape) for n, t in model.visual.state_dict().items()}


def test_kinds_of_towers_are_told_by_shapes():
    state = backbones.load("glyph-vit").model.visual.state_dict()
    glyph = {key: tuple(tensor.shape) for key, tensor in state.items()}
    assert set(towers.kinds(glyph)) == {"glyph-vit"}
    named = towers.kinds({name: tuple(t.shape) for name, t in without_numbers("ViT-B-32").items()})
    assert {name.removesuffix("-quickgelu") for name in named} >= {"ViT-B-32"}
    assert named["ViT-B-32-quickgelu"].quick_gelu and not named["ViT-B-32"].quick_gelu
    assert not towers.kinds({**glyph, "proj": (128, 127)})
    assert towers.image_size(glyph) == 32
    with pytest.raises(MergelibError, match="unknown backbone 'ViT-B'"):
        towers.kind_of("ViT-B")
    with pytest.raises(MergelibError, match="no plain vision transformer"):
        towers.kind_of("RN50")


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_a_clip_of_hugging_face_gives_its_own_features(tmp_path, activation):
    transformers = pytest.importorskip("transformers")
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 99}
    config = transformers.CLIPConfig(
        vision_config=TINY | {"hidden_act": activation}, text_config=text, projection_dim=24
    )
    base = transformers.CLIPModel(config)
    paths = [saved(base, tmp_path / "base")]
    models = [moved(transformers.CLIPModel(config), k) for k in range(2)]
    paths += [saved(model, tmp_path / f"{k}") for k, model in enumerate(models)]
    origin, shown, _ = views(paths[0], paths[1:])
    encoder = find_encoder(origin, paths)
    x = pixels(3)
    bench = prepare(origin, shown, encoder, [Side("0", x), Side("1", x)])
    for model, found in zip((base, *models), (bench.base_on[0], *bench.experts), strict=True):
        with torch.no_grad():
            wanted = model.eval().get_image_features(pixel_values=x)
        near(found.features, getattr(wanted, "pooler_output", wanted))
    image = Image.fromarray(np.full((20, 30, 3), 200, dtype=np.uint8))
    white = (torch.tensor([200 / 255] * 3) - torch.tensor([0.4, 0.5, 0.6])) / torch.tensor(
        [0.2, 0.3, 0.25]
    )
    assert encoder.transform(image).shape == (3, 16, 16)
    assert (encoder.transform(image)[:, 8, 8] - white).abs().max() < 8 * EPS


def test_a_tower_that_may_be_two_asks_which():
    tower = without_numbers("ViT-B-32")
    origin, _, _ = views(tower, [tower])
    with pytest.raises(MergelibError, match="ViT-B-32 or ViT-B-32-quickgelu.*give --backbone"):
        find_encoder(origin, [])
    with pytest.raises(MergelibError, match="is no ViT-L-14; backbones of its shapes: .*ViT-B-32"):
        find_encoder(origin, [], "ViT-L-14")
    assert find_encoder(origin, [], "ViT-B-32-quickgelu").backbone == "ViT-B-32-quickgelu"


# --- classifiers of Hugging Face ------------------------------------------------------------------

CLASSIFIERS = {"vit": ("ViT", {}), "dinov2": ("Dinov2", {"intermediate_size": None})}


@pytest.mark.parametrize("kind", CLASSIFIERS)
@pytest.mark.parametrize("whole", [True, False], ids=["base-classifier", "base-encoder"])
def test_classifiers_keep_their_heads_and_give_their_own_scores(tmp_path, kind, whole):
    transformers = pytest.importorskip("transformers")
    name, changed = CLASSIFIERS[kind]
    settings = {k: v for k, v in (TINY | changed).items() if v is not None}
    config = getattr(transformers, f"{name}Config")
    classifier = getattr(transformers, f"{name}ForImageClassification")
    encoder_class = getattr(transformers, f"{name}Model")
    base = (classifier if whole else encoder_class)(config(**settings))
    paths = [saved(base, tmp_path / "base")]
    models = [moved(classifier(config(**settings, num_labels=3 + k)), k) for k in range(2)]
    paths += [saved(model, tmp_path / f"{k}") for k, model in enumerate(models)]
    patterns = classifier_patterns(paths[0], paths[1:])
    origin, shown, _ = views(paths[0], paths[1:], Choice(exclude=patterns))
    encoder = find_encoder(origin, paths, classifiers=True)
    x = pixels(4)
    own = [of_classifier(paths[0], path, "model") for path in paths[1:]]
    assert [len(head.weight) for head in own] == [3, 4]
    sides = [Side(str(k), x, None, head) for k, head in enumerate(own)]
    bench = prepare(origin, shown, encoder, sides)
    for model, found in zip(models, bench.experts, strict=True):
        with torch.no_grad():
            near(found.logits, model.eval()(pixel_values=x).logits)
    # a merge of both by halves, under the first head
    found = probe(bench, (0, 1), ["weight_avg"])["weight_avg"]
    assert all(0 < side.unlabelled["soft"] <= 1 for side in found)


def test_class_names_of_a_configuration_are_the_heads(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(**TINY, num_labels=2, id2label={0: "cat", 1: "dog"})
    base = saved(transformers.ViTModel(config), tmp_path / "base")
    model = saved(transformers.ViTForImageClassification(config), tmp_path / "model")
    assert of_classifier(base, model, "model").names == ("cat", "dog")
    assert of_classifier(base, base, "model") is None


def test_a_siglip_gives_its_own_features_and_an_unknown_model_one_line(tmp_path):
    transformers = pytest.importorskip("transformers")
    text = TINY | {"vocab_size": 50}
    config = transformers.SiglipConfig(vision_config=TINY, text_config=text)
    base, model = (moved(transformers.SiglipModel(config), k) for k in range(2))
    paths = [saved(base, tmp_path / "base"), saved(model, tmp_path / "model")]
    origin, shown, _ = views(paths[0], paths[1:])
    x = pixels(3)
    bench = prepare(origin, shown, find_encoder(origin, paths), [Side("a", x)])
    with torch.no_grad():
        wanted = model.eval().get_image_features(pixel_values=x)
    near(bench.experts[0].features, getattr(wanted, "pooler_output", wanted))
    (paths[0] / "preprocessor_config.json").unlink()
    with pytest.raises(MergelibError, match="lacks preprocessor_config.json"):
        find_encoder(origin, [paths[0]])
    with pytest.raises(MergelibError, match="cannot be run on images"):
        find_encoder(origin, [])


# --- zero-shot heads ------------------------------------------------------------------------------


def test_class_names_give_the_head_of_the_bases_own_text_tower(tmp_path):
    glyph = backbones.load("glyph-vit")
    wanted = backbones_head(glyph, ["star", "red square"])
    whole = tmp_path / "whole.safetensors"
    save_tensors(whole, {n: t.clone() for n, t in glyph.model.state_dict().items()})
    tower = tmp_path / "tower.safetensors"
    save_tensors(tower, glyph.visual_state())
    classes = Classes(("star", "red_square"))
    for base in (whole, tower):
        assert torch.equal(of_classes(text_of(base, "glyph-vit"), classes).weight, wanted)
    changed = {n: t.clone() for n, t in glyph.model.state_dict().items()}
    changed["token_embedding.weight"] += 0.5
    save_tensors(whole, changed)
    assert not torch.equal(of_classes(text_of(whole, "glyph-vit"), classes).weight, wanted)
    with pytest.raises(MergelibError, match="holds no text tower"):
        text_of(tower, "ViT-B-32")


def backbones_head(glyph, names):
    rows = []
    for name in names:
        with torch.no_grad():
            text = glyph.model.encode_text(glyph.tokenize([f"a {name}"]))[0]
        rows.append(text / text.norm())
    scaled = torch.stack(rows) * glyph.model.logit_scale.detach().exp()
    return heads_by_library(glyph, names, scaled)


def heads_by_library(glyph, names, by_hand):
    """The library's head, once it is near the one by hand."""
    found = zero_shot_head(glyph, names, ["a {}"])
    assert (found - by_hand).abs().max() < 100 * EPS * float(by_hand.abs().max())
    return found


# --- the probe ------------------------------------------------------------------------------------


def test_every_method_is_probed_as_its_merge_is(tmp_path):
    """Against merges by the engine in memory, loaded into another module, one image at a time."""
    glyph = backbones.load("glyph-vit")
    base = glyph.visual_state()
    generator = torch.Generator().manual_seed(0)
    tuned = [
        {n: t + 0.02 * t.std() * torch.randn(t.shape, generator=generator) for n, t in base.items()}
        for _ in range(2)
    ]
    save_tensors(tmp_path / "base.safetensors", {f"visual.{n}": t for n, t in base.items()})
    save_tensors(tmp_path / "a.safetensors", tuned[0])
    torch.save({"state_dict": {f"module.{n}": t for n, t in tuned[1].items()}}, tmp_path / "b.pt")
    paths = [tmp_path / "base.safetensors", tmp_path / "a.safetensors", tmp_path / "b.pt"]
    origin, shown, _ = views(paths[0], paths[1:])
    head = heads.Head(20 * torch.randn(5, 128, generator=generator))
    sides = [Side(name, pixels(12, 32), torch.arange(12) % 5, head) for name in "ab"]
    bench = prepare(origin, shown, find_encoder(origin, []), sides)
    methods = ["weight_avg", "ties", "tsv", "dare"]
    found = probe(bench, (0, 1), methods, seed=3)
    assert list(found) == methods
    visual = backbones.load("glyph-vit").model.visual
    for method in methods:
        params = {"seed": 3} if method == "dare" else {}
        visual.load_state_dict(merge(base, tuned, method, **params))
        for k, side in enumerate(found[method]):
            with torch.no_grad():
                z = torch.cat([visual(x[None]) for x in sides[k].pixels])
                p = (torch.nn.functional.normalize(z, dim=1) @ head.weight.T).softmax(dim=1)
            q = bench.experts[k].logits.softmax(dim=1)
            soft = float(torch.minimum(p, q).double().sum(dim=1).mean())
            # features differ by rounding through six blocks; scores are times 20 √128
            assert abs(side.unlabelled["soft"] - soft) < 20 * 128**0.5 * 10 * EPS * 128 * 6
            assert side.n == 12 and side.expert_right == int(
                (bench.experts[k].logits.argmax(dim=1) == sides[k].labels).sum()
            )
    factored = probe(bench, (0, 1), ["tsv"], cache=tmp_path / "cache")["tsv"]
    for one, other in zip(factored, found["tsv"], strict=True):
        assert one.unlabelled == pytest.approx(other.unlabelled, abs=1e-4)
    assert pairs_of(3) == [(0, 1), (0, 2), (1, 2)]


def test_labels_beyond_the_head_are_refused():
    head = heads.Head(torch.ones(5, 128))
    side = Side("a", pixels(2, 32), torch.tensor([0, 5]), head)
    with pytest.raises(MergelibError, match="labels of a go up to 5, but its head has 5 classes"):
        prepare(None, [], None, [side])  # before anything is run
