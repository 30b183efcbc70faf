"""What `mergelib merge` writes is a model to the libraries that its inputs came from."""

import shutil

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_checkpoints import EMBED, LAYERS, WIDTH
from test_inputs import near
from test_writing import assert_same
from test_writing_models import tiny_models, tokenizer_of

import mergelib as ml
from mergelib import cli

KINDS = ["clip", "siglip", "vit", "convnext", "llama"]


def merge(folder, base, models, out, *words):
    given = ["--base", folder / base, "--models", *(folder / model for model in models)]
    command = ["merge", *given, "--method", "ties", *words, "--out", folder / out]
    assert cli.main([str(word) for word in command]) == 0


# its models are noise five times as large as the base's weights, which is told, and right
@pytest.mark.filterwarnings("ignore:.*does not come from this base")
@pytest.mark.parametrize("words", [(), ("--max-shard-size", "5kB", "--dtype", "bfloat16")])
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_a_merge(tmp_path, kind, words):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model, inputs, output = tiny_models(transformers)[kind]
    model.eval().save_pretrained(tmp_path / "base")
    tokenizer_of(transformers).save_pretrained(tmp_path / "base")
    states = [load_file(tmp_path / "base" / "model.safetensors")]
    states += [near(states[0], seed) for seed in (1, 2)]

    def folder(name, state):
        shutil.copytree(tmp_path / "base", tmp_path / name)
        save_file(state, tmp_path / name / "model.safetensors", metadata={"format": "pt"})

    for seed, state in enumerate(states[1:], start=1):
        folder(f"model{seed}", state)
    merge(tmp_path, "base", ["model1", "model2"], "merged", *words)

    dtype = torch.bfloat16 if words else torch.float32
    folder("expected", ml.merge(*states[:1], states[1:], "ties", dtype=str(dtype)[6:]))
    held = {}
    for name in ("merged", "expected"):
        held[name], told = type(model).from_pretrained(
            tmp_path / name, dtype=dtype, output_loading_info=True, local_files_only=True
        )
        assert not any(told.values()), told
    loaded, expected = (held[name].eval() for name in ("merged", "expected"))
    assert_same(loaded.state_dict(), expected.state_dict())
    inputs = {n: x.to(dtype) if x.is_floating_point() else x for n, x in inputs.items()}
    with torch.no_grad():
        assert torch.equal(getattr(loaded(**inputs), output), getattr(expected(**inputs), output))
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "merged")
    assert tokenizer("a c b").input_ids == [1, 3, 2]
    assert (tmp_path / "merged" / "mergelib_recipe.yaml").is_file()


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_open_clip_loads_a_merge(tmp_path, suffix, monkeypatch):
    vision = {"layers": LAYERS, "width": WIDTH, "head_width": 8, "patch_size": 8, "image_size": 16}
    text = {"context_length": 4, "vocab_size": 9, "width": 8, "heads": 2, "layers": 1}
    config = {"embed_dim": EMBED, "vision_cfg": vision, "text_cfg": text}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", config)
    torch.manual_seed(0)
    states = [open_clip.create_model("tiny").state_dict()]
    states += [near(states[0], seed) for seed in (1, 2)]
    for name, state in zip(("base", "one", "two"), states, strict=True):
        torch.save(state, tmp_path / f"{name}.pt")
    merge(tmp_path, "base.pt", ["one.pt", "two.pt"], f"merged.{suffix}")
    loaded = open_clip.create_model("tiny", pretrained=str(tmp_path / f"merged.{suffix}")).eval()
    expected = open_clip.create_model("tiny").eval()
    expected.load_state_dict(ml.merge(states[0], states[1:], "ties"))
    images, words = torch.randn(2, 3, 16, 16), torch.tensor([[1, 2, 8, 0], [3, 8, 0, 0]])
    with torch.no_grad():
        for one, two in zip(loaded(images, words), expected(images, words), strict=True):
            assert torch.equal(one, two)
