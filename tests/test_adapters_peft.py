"""Adapters that PEFT wrote, merged by PEFT itself: where it is installed, the same weights."""

import copy

import pytest
import torch
from torch import nn

from mergelib.checkpoints.adapters.applying import applied
from mergelib.checkpoints.adapters.files import read_adapter
from mergelib.checkpoints.output.adapter_folder import write_adapter
from mergelib.checkpoints.output.extracting import Wanted, extract
from mergelib.checkpoints.weights import of_mapping

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


class Tiny(nn.Module):
    """A layer of every kind that PEFT's LoRA knows."""

    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(11, 8)
        self.conv = nn.Conv2d(3, 8, 3)
        self.one = nn.Conv2d(8, 4, 1)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(12))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Sequential(nn.Linear(8, 3), nn.BatchNorm1d(3))

    def forward(self, x):
        x = self.attn(x, x, x)[0]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Transposed(nn.Module):
    """Layers as GPT-2 stores them, one of them square."""

    def __init__(self):
        super().__init__()
        self.long = transformers.pytorch_utils.Conv1D(12, 6)
        self.square = transformers.pytorch_utils.Conv1D(6, 6)

    def forward(self, x):
        return self.long(self.square(x))


def trained(model, **config):
    """PEFT's model with all that it trains moved at random, and the base's state before."""
    torch.manual_seed(0)
    before = copy.deepcopy(model.state_dict())
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**config))
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return wrapped, before


LINEAR = [f"blocks.{i}" for i in range(12)]
CONFIGS = {
    "linear": {"target_modules": LINEAR},
    "rslora": {"target_modules": LINEAR, "use_rslora": True, "r": 4, "lora_alpha": 6},
    "convolutions": {"target_modules": ["conv", "one"]},
    "embedding": {"target_modules": ["emb"]},
    "attention": {"target_modules": ["attn"], "alpha_pattern": {"attn": 3}},
    "patterns": {
        "target_modules": [*LINEAR, "conv"],
        "rank_pattern": {"blocks.1": 3, r"blocks\.1.": 5},
        "alpha_pattern": {r"\d": 7, "blocks.11": 99, "conv": 1},
    },
    "saved modules": {"target_modules": LINEAR, "modules_to_save": ["head", "norm"]},
    "biases": {"target_modules": [*LINEAR, "conv"], "bias": "lora_only"},
    "all biases": {"target_modules": ["blocks.0", "attn"], "bias": "all"},
    "biases of lora_B": {"target_modules": [*LINEAR, "conv"], "lora_bias": True},
}


def assert_same(weights, merged):
    assert set(weights.shapes) == set(merged)
    for name, tensor in merged.items():
        ours = weights.get(name)
        torch.testing.assert_close(ours.to(tensor.dtype), tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_weights_are_those_that_peft_merges(tmp_path, config):
    wrapped, before = trained(Tiny(), **config)
    wrapped.save_pretrained(tmp_path)
    weights = applied(read_adapter(tmp_path), of_mapping(before, "the base"))
    merged = wrapped.merge_and_unload().state_dict()
    assert any(not torch.equal(before[name], tensor) for name, tensor in merged.items())
    assert_same(weights, merged)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
def test_transposed_layers(tmp_path):
    wrapped, before = trained(Transposed(), target_modules=["long", "square"])
    wrapped.save_pretrained(tmp_path)
    weights = applied(read_adapter(tmp_path), of_mapping(before, "the base"))
    assert_same(weights, wrapped.merge_and_unload().state_dict())


def test_a_pickled_adapter(tmp_path):
    wrapped, before = trained(Tiny(), **CONFIGS["linear"])
    wrapped.save_pretrained(tmp_path, safe_serialization=False)
    assert (tmp_path / "adapter_model.bin").is_file()
    weights = applied(read_adapter(tmp_path), of_mapping(before, "the base"))
    assert_same(weights, wrapped.merge_and_unload().state_dict())


def clip(vision_only):
    """A small CLIP of transformers, or its image tower."""
    vision = transformers.CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
        projection_dim=6,
    )
    text = transformers.CLIPTextConfig(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=7,
        projection_dim=6,
    )
    if vision_only:
        return transformers.CLIPVisionModel(vision)
    both = {"text_config": text.to_dict(), "vision_config": vision.to_dict()}
    return transformers.CLIPModel(transformers.CLIPConfig(**both, projection_dim=6))


@pytest.mark.parametrize("vision_only", [True, False])
def test_a_hugging_face_clip(tmp_path, vision_only):
    """The wrapper `vision_model.` comes and goes with the version of transformers."""
    model = clip(vision_only)
    wrapped, before = trained(model, target_modules=["q_proj", "fc1"])
    wrapped.save_pretrained(tmp_path)
    adapter, merged = read_adapter(tmp_path), wrapped.merge_and_unload().state_dict()
    assert_same(applied(adapter, of_mapping(before, "the base")), merged)
    if vision_only:
        bare = any(name.startswith("encoder.") for name in before)
        rename = (lambda n: f"vision_model.{n}") if bare else (lambda n: n[len("vision_model.") :])
        other = {rename(name): tensor for name, tensor in before.items()}
        weights = applied(adapter, of_mapping(other, "the base"))
        assert_same(weights, {rename(name): tensor for name, tensor in merged.items()})


def extracted(base, tuned, folder, **options):
    """The adapter of a model at full rank, in a folder."""
    weights = (of_mapping(base, "the base"), of_mapping(tuned, "the model"))
    found = extract(*weights, Wanted(99, **options))
    write_adapter(folder, found.tensors, found.config)
    return found


def moved(state):
    return {
        name: tensor + 0.1 * torch.randn_like(tensor) if tensor.is_floating_point() else tensor + 1
        for name, tensor in state.items()
    }


@pytest.mark.filterwarnings("error:Found missing adapter keys")
@pytest.mark.parametrize("alpha", [None, 3.0])
def test_peft_loads_what_is_extracted(tmp_path, alpha):
    torch.manual_seed(1)
    model = Tiny()
    base = copy.deepcopy(model.state_dict())
    tuned = {n: base[n] if n.startswith("attn") else t for n, t in moved(base).items()}
    extracted(base, tuned, tmp_path / "a", alpha=alpha, embeddings=["emb"])
    merged = peft.PeftModel.from_pretrained(model, tmp_path / "a").merge_and_unload().state_dict()
    assert_same(of_mapping(tuned, "the model"), merged)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
def test_peft_loads_transposed_layers(tmp_path):
    torch.manual_seed(2)
    model = Transposed()
    base = copy.deepcopy(model.state_dict())
    tuned = moved(base)
    extracted(base, tuned, tmp_path / "a", transposed=True)
    merged = peft.PeftModel.from_pretrained(model, tmp_path / "a").merge_and_unload().state_dict()
    assert_same(of_mapping(tuned, "the model"), merged)


@pytest.mark.filterwarnings("error:Found missing adapter keys")
def test_peft_loads_a_hugging_face_clip(tmp_path):
    torch.manual_seed(3)
    model = clip(vision_only=False)
    base = copy.deepcopy(model.state_dict())
    held = [name for name in base if name.endswith(("class_embedding", "logit_scale"))]
    tuned = {n: base[n] if n in held or "ids" in n else t for n, t in moved(base).items()}
    extracted(base, tuned, tmp_path / "a")
    merged = peft.PeftModel.from_pretrained(model, tmp_path / "a").merge_and_unload().state_dict()
    assert_same(of_mapping(tuned, "the model"), merged)
