"""What is written is a model to open_clip and transformers: files, folders, what comes along."""

import json
import math

import open_clip
import pytest
import torch
from safetensors.torch import load_file
from test_writing import assert_same, small, write

from mergelib.checkpoints.output.companions import companions, library, main_type, retyped
from mergelib.core.errors import MergelibError

CONFIG = {
    "model_type": "clip",
    "torch_dtype": "float32",
    "text_config": {"dtype": "float32", "dropout": 0.0},
    "vision_config": {"torch_dtype": None},
    "architectures": ["CLIPModel"],
    "dtype_of_something": "float32",
}
KEPT = [
    "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "spiece.model", "tokenizer.model", "chat_template.jinja", "preprocessor_config.json",
    "processor_config.json", "video_preprocessor_config.json", "open_clip_config.json",
    "modeling_thing.py", "LICENSE", "LICENSE.txt", "NOTICE", "qwen.tiktoken",
]  # fmt: skip
LEFT = [
    "model.safetensors", "pytorch_model.bin", "model-00001-of-00002.safetensors",
    "optimizer.pt", "flax_model.msgpack", "model.safetensors.index.json", "trainer_state.json",
    "training_args.bin", "scheduler.pt", "adapter_config.json", "adapter_model.safetensors",
    "README.md", ".gitattributes", "vocab.pt", "tf_model.h5", "rng_state.pth",
    "events.out.tfevents",
]  # fmt: skip


def model_folder(path, config=CONFIG):
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    for name in (*KEPT, *LEFT):
        (path / name).write_text(f"contents of {name}")
    for name in (".git/config", "runs/a.py", "checkpoint-10/tokenizer.json"):
        (path / name).parent.mkdir()
        (path / name).write_text("x")
    (path / "additional_chat_templates").mkdir()
    (path / "additional_chat_templates" / "tool.jinja").write_text("t")
    return path


def test_small_files_come_along_and_weights_do_not(tmp_path):
    like = model_folder(tmp_path / "base")
    state = {**small(), "norm": torch.ones(3), "steps": torch.tensor(3)}
    spec = {n: (torch.bfloat16 if t.dim() == 2 else t.dtype, t.shape) for n, t in state.items()}
    out = write(tmp_path / "out", state, spec, like=like, texts={"README.md": "A card é\n"})
    there = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    extra = [
        "README.md",
        "config.json",
        "model.safetensors",
        "additional_chat_templates/tool.jinja",
    ]
    assert there == sorted([*KEPT, *extra])
    for name in KEPT:
        assert (out / name).read_bytes() == (like / name).read_bytes()
    assert (out / "README.md").read_text(encoding="utf-8") == "A card é\n"
    config = json.loads((out / "config.json").read_text())
    assert list(config) == list(CONFIG)
    assert config == {
        **CONFIG,
        "torch_dtype": "bfloat16",
        "text_config": {"dtype": "bfloat16", "dropout": 0.0},
    }
    assert main_type(spec) == torch.bfloat16 and main_type({}) is None
    assert retyped({"model_type": "vit"}, "float16") == {"model_type": "vit"}


def test_no_files_come_along_from_what_is_no_model_folder(tmp_path):
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "script.py").write_text("x")
    assert companions(tmp_path / "some") == [] == companions(tmp_path / "missing")
    out = write(tmp_path / "out", small(), like=tmp_path / "some")
    assert [path.name for path in out.iterdir()] == ["model.safetensors"]


def test_a_configuration_keeps_its_words_where_the_type_is_none_of_its(tmp_path):
    like = model_folder(tmp_path / "base")
    narrow = {n: (torch.float8_e4m3fn, t.shape) for n, t in small().items()}
    out = write(tmp_path / "out", small(), narrow, like=like)
    assert (out / "config.json").read_bytes() == (like / "config.json").read_bytes()


def test_libraries_are_told_by_their_configurations(tmp_path):
    for name, config, kind in [
        ("config.json", {"model_type": "vit"}, "transformers"),
        ("open_clip_config.json", {"model_cfg": {}}, "open_clip"),
        ("config.json", {"architecture": "resnet18"}, "timm"),
        ("config.json", {}, None),
        ("other.json", {}, None),
    ]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / name).write_text(json.dumps(config))
        assert library(folder) == kind
    (tmp_path / "0" / "config.json").write_text("{")
    with pytest.raises(MergelibError, match="config.json is truncated"):
        write(tmp_path / "out", small(), like=tmp_path / "0")
    assert not (tmp_path / "out").exists()


OPEN_CLIP = {
    "embed_dim": 8,
    "vision_cfg": {"layers": 2, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 16},
    "text_cfg": {"context_length": 4, "vocab_size": 9, "width": 8, "heads": 2, "layers": 1},
}


@pytest.fixture
def tiny_open_clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    (folder / "tiny-writing.json").write_text(json.dumps(OPEN_CLIP))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    return open_clip.create_model("tiny-writing").eval()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".bin"])
def test_open_clip_loads_the_file(tmp_path, tiny_open_clip, suffix):
    out = write(tmp_path / f"merged{suffix}", tiny_open_clip.state_dict())
    torch.manual_seed(1)
    loaded = open_clip.create_model("tiny-writing", pretrained=str(out)).eval()
    assert_same(loaded.state_dict(), tiny_open_clip.state_dict())
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(loaded.encode_image(images), tiny_open_clip.encode_image(images))


def test_open_clip_loads_the_folder(tmp_path, tiny_open_clip):
    like = tmp_path / "base"
    like.mkdir()
    config = {"model_cfg": OPEN_CLIP, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (like / "open_clip_config.json").write_text(json.dumps(config))
    out = write(tmp_path / "merged", tiny_open_clip.state_dict(), like=like)
    loaded = open_clip.create_model(f"local-dir:{out}").eval()
    assert_same(loaded.state_dict(), tiny_open_clip.state_dict())


def tiny_models(transformers):
    """A small model of each kind, and what to feed it."""
    text = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    vision = {**text, "image_size": 16, "patch_size": 8}
    images = {"pixel_values": torch.randn(2, 3, 16, 16)}
    words = {"input_ids": torch.tensor([[1, 5, 8], [1, 7, 8]])}
    small_text = {**text, "vocab_size": 10, "max_position_embeddings": 8, "eos_token_id": 8}
    t = transformers
    clip = t.CLIPConfig(text_config=small_text, vision_config=vision, projection_dim=8)
    siglip = t.SiglipConfig(text_config=small_text, vision_config=vision)
    llama = t.LlamaConfig(**{**small_text, "vocab_size": 10}, tie_word_embeddings=True)
    return {
        "clip": (t.CLIPModel(clip), {**images, **words}, "logits_per_image"),
        "siglip": (t.SiglipModel(siglip), {**images, **words}, "logits_per_image"),
        "vit": (t.ViTForImageClassification(t.ViTConfig(**vision)), images, "logits"),
        "convnext": (
            t.ConvNextForImageClassification(
                t.ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 2, 1], image_size=32)
            ),
            {"pixel_values": torch.randn(2, 3, 32, 32)},
            "logits",
        ),
        "llama": (t.LlamaForCausalLM(llama), words, "logits"),
    }


def tokenizer_of(transformers):
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.models.WordLevel({w: i for i, w in enumerate("uabcd")}, "u")
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="u")


@pytest.mark.parametrize("limit", [None, "5kB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["clip", "siglip", "vit", "convnext", "llama"])
def test_transformers_loads_the_folder(tmp_path, kind, dtype, limit):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model, inputs, output = tiny_models(transformers)[kind]
    model.eval().save_pretrained(tmp_path / "base")
    tokenizer_of(transformers).save_pretrained(tmp_path / "base")
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16)
    processor.save_pretrained(tmp_path / "base")
    state = load_file(tmp_path / "base" / "model.safetensors")
    spec = {
        name: (dtype if t.is_floating_point() else t.dtype, t.shape) for name, t in state.items()
    }
    out = write(tmp_path / "out", state, spec, like=tmp_path / "base", max_shard_size=limit)
    assert (out / "model.safetensors.index.json").exists() == (limit is not None)

    loaded, told = type(model).from_pretrained(
        out, torch_dtype="auto", output_loading_info=True, local_files_only=True
    )
    assert not any(told.values()), told
    assert loaded.dtype == dtype
    expected = model.to(dtype)
    assert_same(loaded.state_dict(), expected.state_dict())
    inputs = {n: x.to(dtype) if x.is_floating_point() else x for n, x in inputs.items()}
    with torch.no_grad():
        assert torch.equal(getattr(loaded(**inputs), output), getattr(expected(**inputs), output))
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(out)
    assert tokenizer("a c b").input_ids == [1, 3, 2]
    read = transformers.CLIPImageProcessor.from_pretrained(out)
    assert (
        read.to_dict()
        == transformers.CLIPImageProcessor.from_pretrained(tmp_path / "base").to_dict()
    )
    assert math.isclose(read.rescale_factor, 1 / 255)
