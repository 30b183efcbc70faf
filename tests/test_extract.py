"""Models extracted as LoRA adapters: what is kept, what is named, and what comes back."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergelib import cli
from mergelib.checkpoints.adapters.applying import applied
from mergelib.checkpoints.adapters.files import read_adapter
from mergelib.checkpoints.output.extracting import Wanted, extract
from mergelib.checkpoints.weights import of_mapping
from mergelib.core.errors import MergelibError

SHAPES = {
    "emb.embed_tokens.weight": (11, 6),
    "conv.weight": (5, 3, 2, 2),
    "conv.bias": (5,),
    "blocks.0.fc.weight": (6, 8),
    "blocks.0.fc.bias": (6,),
    "blocks.1.fc.weight": (8, 6),
    "norm.weight": (6,),
    "norm.bias": (6,),
    "deep.weight": (4, 1, 3, 3),
}


def randn(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def models(shapes=SHAPES, still=()):
    base = {name: randn(shape, i) for i, (name, shape) in enumerate(shapes.items())}
    tuned = {
        name: tensor if name in still else tensor + 0.1 * randn(tensor.shape, 100 + i)
        for i, (name, tensor) in enumerate(base.items())
    }
    return base, tuned


@pytest.fixture
def stored(tmp_path):
    def store(base, tuned):
        for name, state in (("base", base), ("tuned", tuned)):
            state = {key: tensor.contiguous() for key, tensor in state.items()}
            save_file(state, tmp_path / f"{name}.safetensors")
        return tmp_path

    return store


def command(folder, *words, out="adapter"):
    paths = ["--base", folder / "base.safetensors", "--model", folder / "tuned.safetensors"]
    return cli.main(["extract", *map(str, paths), "--out", str(folder / out), *words])


def restored(folder, base):
    weights = applied(read_adapter(folder), of_mapping(base, "the base"))
    return {name: weights.read(name).double() for name in weights.shapes}


@pytest.mark.parametrize("words", [(), ("--alpha", "3")])
def test_full_rank_gives_the_model_back(stored, capsys, words):
    base, tuned = models()
    folder = stored(base, tuned)
    assert command(folder, "--rank", "99", *words) == 0
    said = capsys.readouterr().out
    assert "kept: 100.0000% of ‖τ‖²" in said and "left out" not in said
    assert "written as embeddings: emb.embed_tokens.weight" in said
    found = restored(folder / "adapter", base)
    for name, tensor in tuned.items():
        # factors are rounded to float32: ‖τ‖ of each is about 1, and 2^-24 a product term
        torch.testing.assert_close(found[name], tensor.double(), rtol=0, atol=1e-6)
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 8 - 2 and config["lora_alpha"] == (3 if words else 6)
    assert config["modules_to_save"] == ["deep", "norm"] and config["bias"] == "lora_only"


def test_truncation_is_the_best_and_its_loss_is_said(stored, capsys):
    base, tuned = models()
    folder = stored(base, tuned)
    wanted = Wanted(rank=2, matrices_only=True)
    found = extract(of_mapping(base, "base"), of_mapping(tuned, "tuned"), wanted)
    total = kept = 0.0
    for name, tensor in base.items():
        vector = tuned[name].double() - tensor.double()
        square = float(vector.square().sum())
        total += square
        if tensor.ndim > 1 and name != "deep.weight":
            s = torch.linalg.svdvals(vector.flatten(1))
            kept += float(s[:2].square().sum())
            loss = float(s[2:].square().sum())
            # of factors in float32, whose errors are orthogonal to what is lost only in part
            assert math.isclose(square - found.kept[name], loss, abs_tol=1e-6 * square)
        else:
            assert name in found.left_out and name not in found.kept
    assert math.isclose(found.kept_share, kept / total, abs_tol=1e-6)
    assert command(folder, "--rank", "2", "--matrices-only") == 0
    said = capsys.readouterr().out
    assert f"kept: {kept / total:.4%}" in said
    assert "left out: 5 tensors" in said
    for name in found.left_out:
        assert f"  {name}: {found.share([name]):.4%}" in said


def test_patterns_choose_and_what_they_leave_is_named(stored, capsys):
    base, tuned = models()
    folder = stored(base, tuned)
    assert command(folder, "--rank", "9", "--only", "blocks.*", "--exclude", "*.bias") == 0
    assert "left out: 7 tensors" in capsys.readouterr().out
    names = set(load_file(folder / "adapter" / "adapter_model.safetensors"))
    layers = [f"base_model.model.blocks.{i}.fc.lora_{side}.weight" for i in "01" for side in "AB"]
    assert names == set(layers)
    assert command(folder, "--rank", "9", "--only", "nothing.*", out="other") == 2
    assert "the pattern 'nothing.*' fits no tensor" in capsys.readouterr().err
    assert command(folder, "--rank", "9", "--embeddings", "tokens", out="other") == 2
    assert "the pattern 'tokens' fits no module" in capsys.readouterr().err


def test_of_a_module_in_part_the_rest_is_the_bases(stored):
    base, tuned = models()
    folder = stored(base, tuned)
    assert command(folder, "--rank", "9", "--exclude", "norm.bias") == 0
    found = restored(folder / "adapter", base)
    assert torch.equal(found["norm.weight"], tuned["norm.weight"].double())
    assert torch.equal(found["norm.bias"], base["norm.bias"].double())


def test_what_peft_cannot_hold_stops_the_command(stored, capsys):
    shapes = {
        "visual.class_embedding": (4,),
        "visual.attn.in_proj_weight": (12, 4),
        "visual.attn.out_proj.weight": (4, 4),
        "visual.fc.weight": (6, 4),
    }
    base, tuned = models(shapes)
    folder = stored(base, tuned)
    assert command(folder, "--rank", "4") == 2
    said = capsys.readouterr().err
    for name in list(shapes)[:3]:
        assert name in said
    assert "visual.fc" not in said and "--matrices-only" in said
    assert not (folder / "adapter").exists()
    assert command(folder, "--rank", "4", "--matrices-only") == 0
    assert "left out: 3 tensors" in capsys.readouterr().out


def test_a_layer_that_is_called_as_an_embedding(stored):
    base, tuned = models({"patch_embedding.weight": (4, 6), "patch_embedding.bias": (4,)})
    folder = stored(base, tuned)
    assert command(folder, "--rank", "9") == 0  # embeddings have no bias
    tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert tensors["base_model.model.patch_embedding.lora_A.weight"].shape == (4, 6)


def test_layers_stored_transposed(stored, capsys):
    shapes = {"long.weight": (6, 4), "long.bias": (4,), "square.weight": (5, 5)}
    base, tuned = models(shapes)
    folder = stored(base, tuned)
    assert command(folder, "--rank", "9") == 2
    assert "give --fan-in-fan-out" in capsys.readouterr().err
    assert command(folder, "--rank", "9", "--fan-in-fan-out") == 0
    tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert tensors["base_model.model.long.lora_B.weight"].shape == (4, 5)
    found = restored(folder / "adapter", base)
    for name in shapes:
        torch.testing.assert_close(found[name], tuned[name].double(), rtol=0, atol=1e-6)
    base, tuned = models({"long.weight": (4, 6), "long.bias": (4,)})
    stored(base, tuned)
    assert command(folder, "--rank", "9", "--fan-in-fan-out", out="other") == 2
    assert "leave out --fan-in-fan-out" in capsys.readouterr().err


def test_names_that_end_likewise(stored, capsys):
    """PEFT matches by ends of names, so that `fc` would be `blocks.0.fc` too."""
    shapes = {
        "fc.weight": (4, 4),
        "blocks.0.fc.weight": (4, 4),
        "norm.weight": (4,),
        "blocks.0.norm.weight": (4,),
    }
    base, tuned = models(shapes, still=["blocks.0.fc.weight", "blocks.0.norm.weight"])
    folder = stored(base, tuned)
    assert command(folder, "--rank", "9") == 0
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"] == "fc"  # a pattern of the whole name
    assert config["modules_to_save"] == ["blocks.0.norm", "norm"]
    found = restored(folder / "adapter", base)
    assert torch.equal(found["blocks.0.norm.weight"], base["blocks.0.norm.weight"].double())
    shapes["blocks.0.xnorm.weight"] = (4, 4)
    stored(*models(shapes))
    assert command(folder, "--rank", "9", out="other") == 2
    assert "would save 'blocks.0.xnorm' together" in capsys.readouterr().err


def test_mistakes_are_one_line(stored, capsys):
    base, tuned = models()
    folder = stored(base, base)
    for words, says in [
        (["--rank", "0"], "the rank is 0"),
        (["--rank", "2", "--alpha", "-1"], "alpha is -1.0"),
        (["--rank", "2"], "nothing to extract"),
    ]:
        assert command(folder, *words) == 2
        said = capsys.readouterr().err
        assert says in said and said.count("\n") == 1
    stored(base, tuned)
    (folder / "adapter").mkdir()
    assert command(folder, "--rank", "2") == 0  # an empty folder is no loss
    assert command(folder, "--rank", "2") == 2
    assert "is there already" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter",
        "base.safetensors",
        "tuned.safetensors",
    ]
    with pytest.raises(MergelibError, match="lacks tensor 'norm.bias'"):
        short = {name: each for name, each in tuned.items() if name != "norm.bias"}
        extract(of_mapping(base, "base"), of_mapping(short, "tuned"), Wanted(2))
