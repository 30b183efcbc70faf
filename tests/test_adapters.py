"""LoRA adapters: read and put on a base, against their literal expansion and PEFT itself."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from mergelib.checkpoints.adapters.applying import applied
from mergelib.checkpoints.adapters.files import is_adapter, is_adapter_folder, read_adapter
from mergelib.checkpoints.weights import of_mapping
from mergelib.core.errors import MergelibError

EPS = torch.finfo(torch.float64).eps
PEFT = "base_model.model."


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def write(folder, tensors, **config):
    """An adapter as PEFT writes it."""
    folder.mkdir(exist_ok=True)
    save_file(
        {k: v.clone().contiguous() for k, v in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 6} | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def pair(module, m, n, rank=2, seed=0):
    a, b = randn(rank, n, seed=seed), randn(m, rank, seed=seed + 1)
    return {f"{PEFT}{module}.lora_A.weight": a, f"{PEFT}{module}.lora_B.weight": b}


def added(folder, base):
    """The adapter on the base: what is read, and by how much it moved, in float64."""
    weights = applied(read_adapter(folder), of_mapping(base, "the base"))
    moved = {name: weights.read(name).double() - base[name].double() for name in weights.shapes}
    return weights, moved


def product(tensors, module):
    a = tensors[f"{PEFT}{module}.lora_A.weight"].double()
    b = tensors[f"{PEFT}{module}.lora_B.weight"].double()
    return torch.einsum("mr,rn->mn", b, a)


def assert_within(found, wanted, base):
    """θ0 + τ is rounded once, and θ0 is taken off again: eps·(|θ0| + |τ|) an entry, twice."""
    room = 2 * EPS * (base.double().abs() + wanted.abs()) + 8 * EPS * wanted.abs().max()
    assert ((found - wanted).abs() <= room).all()


@pytest.mark.parametrize("rslora", [False, True])
def test_a_linear_layer_moves_by_its_product(tmp_path, rslora):
    base = {"model.fc.weight": randn(5, 7), "model.fc.bias": randn(5)}
    tensors = pair("model.fc", 5, 7)
    weights, moved = added(write(tmp_path / "a", tensors, use_rslora=rslora), base)
    scale = 6 / math.sqrt(2) if rslora else 3
    assert_within(
        moved["model.fc.weight"], scale * product(tensors, "model.fc"), base["model.fc.weight"]
    )
    assert weights.dtypes["model.fc.weight"] == torch.float64
    assert weights.get("model.fc.bias") is base["model.fc.bias"]
    left, right = weights.low_rank("model.fc.weight")
    assert left.shape == (5, 2) and right.shape == (2, 7)
    torch.testing.assert_close(left @ right, moved["model.fc.weight"], rtol=0, atol=1e-13)
    assert weights.low_rank("model.fc.bias") is None


def test_ranks_and_alphas_by_pattern(tmp_path):
    """The first pattern that a name ends with, as PEFT's: `1.q` is none of `11.q`."""
    modules = {"l.1.q": 3, "l.11.q": 2, "l.1.v": 4}
    tensors = {}
    for module, rank in modules.items():
        tensors |= pair(module, 4, 6, rank)
    config = {"rank_pattern": {"1.q": 3, r"l\.\d+\.v": 4}, "alpha_pattern": {"v|q": 10, "q": 99}}
    base = {f"{module}.weight": torch.zeros(4, 6) for module in modules}
    _, moved = added(write(tmp_path / "a", tensors, **config), base)
    for module, rank in modules.items():
        wanted = 10 / rank * product(tensors, module)
        assert_within(moved[f"{module}.weight"], wanted, torch.zeros(()))


def test_convolutions_and_embeddings(tmp_path):
    a, b = randn(2, 3, 4, 4), randn(5, 2, 1, 1)
    ea, eb = randn(2, 9), randn(4, 2)
    tensors = {
        f"{PEFT}conv.lora_A.weight": a,
        f"{PEFT}conv.lora_B.weight": b,
        f"{PEFT}emb.lora_embedding_A": ea,
        f"{PEFT}emb.lora_embedding_B": eb,
    }
    base = {"conv.weight": torch.zeros(5, 3, 4, 4), "emb.weight": torch.zeros(9, 4)}
    weights, moved = added(write(tmp_path / "a", tensors), base)
    by_hand = 3 * torch.einsum("mr,rcij->mcij", b[:, :, 0, 0].double(), a.double())
    assert_within(moved["conv.weight"], by_hand, torch.zeros(()))
    assert_within(moved["emb.weight"], 3 * (eb.double() @ ea.double()).T, torch.zeros(()))
    for name, rows in (("conv.weight", 5), ("emb.weight", 9)):
        left, right = weights.low_rank(name)
        wanted = moved[name].reshape(rows, -1)
        torch.testing.assert_close(left @ right, wanted, rtol=0, atol=1e-13)


def test_transposed_layers(tmp_path):
    """GPT-2's: stored (n, m). The square one goes by the configuration, where others agree."""
    tensors = pair("long", 6, 4) | pair("square", 4, 4)
    base = {"long.weight": torch.zeros(4, 6), "square.weight": torch.zeros(4, 4)}
    _, moved = added(write(tmp_path / "a", tensors, fan_in_fan_out=True), base)
    for module in ("long", "square"):
        assert_within(moved[f"{module}.weight"], 3 * product(tensors, module).T, torch.zeros(()))
    with pytest.raises(MergelibError, match=r"'square.weight' is square.*fan_in_fan_out = False"):
        added(write(tmp_path / "a", tensors), base)


def test_attention_of_one_matrix(tmp_path):
    """PEFT targets torch's attention as a module: in_proj_weight, and out_proj within it."""
    tensors = pair("attn", 12, 4) | pair("attn.base_layer.out_proj", 4, 4)
    base = {"attn.in_proj_weight": torch.zeros(12, 4), "attn.out_proj.weight": torch.zeros(4, 4)}
    folder = write(tmp_path / "a", tensors, alpha_pattern={"attn": 4})
    weights, moved = added(folder, base)
    assert_within(moved["attn.in_proj_weight"], 2 * product(tensors, "attn"), torch.zeros(()))
    inner = 2 * product(tensors, "attn.base_layer.out_proj")
    # PEFT adds this one twice, in training too (huggingface/peft#3774)
    assert_within(moved["attn.out_proj.weight"], 2 * inner, torch.zeros(()))
    assert any("counts twice" in note for note in weights.notes)
    folder = write(tmp_path / "a", tensors, peft_version="0.21.3.dev0")
    with pytest.raises(MergelibError, match="whether this one's does is unknown"):
        read_adapter(folder)


def test_whole_tensors_and_biases(tmp_path):
    tensors = pair("fc", 5, 7) | {
        f"{PEFT}fc.lora_B.bias": randn(5, seed=9),
        f"{PEFT}head.weight": randn(3, 5),
        f"{PEFT}head.bias": randn(3),
        f"{PEFT}head.modules_to_save.default.bias": randn(3),
        f"{PEFT}head.original_module.bias": randn(3, seed=1),
        f"{PEFT}other.base_layer.bias": randn(4),
    }
    base = {"fc.weight": randn(5, 7), "fc.bias": randn(5), "other.bias": randn(4, seed=3)}
    base |= {"head.weight": randn(3, 5, seed=4), "head.bias": randn(3, seed=5)}
    weights, moved = added(write(tmp_path / "a", tensors), base)
    assert_within(moved["fc.bias"], 3 * randn(5, seed=9).double(), base["fc.bias"])
    for name in ("head.weight", "head.bias"):
        assert torch.equal(weights.get(name), tensors[PEFT + name])
        assert weights.low_rank(name) is None
    assert torch.equal(weights.get("other.bias"), randn(4))
    assert any("1 original" in note for note in weights.notes)
    tensors[f"{PEFT}head.modules_to_save.default.bias"] = randn(3, seed=8)
    with pytest.raises(MergelibError, match="head.bias.*differ"):
        read_adapter(write(tmp_path / "a", tensors))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("fc.weight", "fc.weight"),
        ("model.fc.weight", "fc.weight"),
        ("fc.weight", "model.fc.weight"),
        ("tower.vision_model.fc.weight", "tower.fc.weight"),
        ("tower.fc.weight", "tower.vision_model.fc.weight"),
        ("vision_model.fc.weight", "module.fc.weight"),
    ],
)
def test_names_that_a_prefix_sets_apart(tmp_path, ours, theirs):
    tensors = pair(ours.removesuffix(".weight"), 3, 4)
    base = {theirs: torch.zeros(3, 4), "other.weight": torch.zeros(3, 4)}
    weights, moved = added(write(tmp_path / "a", tensors), base)
    wanted = 3 * product(tensors, ours.removesuffix(".weight"))
    assert_within(moved[theirs], wanted, torch.zeros(()))
    assert bool(weights.notes) == (ours != theirs)  # what was done is said


def test_names_that_fit_twice_or_not_at_all(tmp_path):
    folder = write(tmp_path / "a", pair("0.fc", 3, 4) | pair("1.fc", 3, 4))
    one = {"0.fc.weight": torch.zeros(3, 4), "1.fc.weight": torch.zeros(3, 4)}
    two = {f"{tower}.{name}": each for tower in ("text", "image") for name, each in one.items()}
    with pytest.raises(MergelibError, match=r"several ways \(prefix image\., text\.\)"):
        added(folder, two)
    weights, moved = added(folder, one | two)  # PEFT's own rule: the same name
    assert moved["0.fc.weight"].any() and not moved["text.0.fc.weight"].any()
    assert any("fits too" in note for note in weights.notes)
    with pytest.raises(MergelibError, match="changes '1.fc.weight', which the base lacks"):
        added(folder, {"m.0.fc.weight": torch.zeros(3, 4)})
    with pytest.raises(MergelibError, match=r"'0.fc.weight' has shape \(3, 4\).*has \(3, 5\)"):
        added(folder, one | {"0.fc.weight": torch.zeros(3, 5)})
    with pytest.raises(MergelibError, match="before it was quantized"):
        added(folder, one | {"1.fc.weight": torch.zeros(3, 4, dtype=torch.uint8)})


def test_one_tensor_under_two_names(tmp_path):
    folder = write(tmp_path / "a", pair("fc", 3, 4) | pair("vision_model.fc", 3, 4))
    with pytest.raises(MergelibError, match="two of fc.weight, vision_model.fc.weight are one"):
        added(folder, {"fc.weight": torch.zeros(3, 4)})
    folder = write(tmp_path / "a", pair("model.fc", 3, 4))
    with pytest.raises(MergelibError, match="'model.fc.weight', which the base lacks"):
        added(folder, {"weight": torch.zeros(3, 4)})  # any module's, so not this one's


def kohya(tmp_path, names, alpha=4.0):
    tensors = {}
    for name in names:
        tensors[f"{name}.lora_down.weight"] = randn(2, 3, 1, 1)
        tensors[f"{name}.lora_up.weight"] = randn(5, 2, 1, 1)
        if alpha:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
    save_file(tensors, tmp_path / "kohya.safetensors")
    return tmp_path / "kohya.safetensors", tensors


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 1, 1)])
def test_kohya_files_say_their_scale(tmp_path, shape):
    path, tensors = kohya(tmp_path, ["lora_unet_down_blocks_0_to_q"])
    base = {"unet.down_blocks.0.to_q.weight": torch.zeros(shape), "x.weight": torch.zeros(shape)}
    _, moved = added(path, base)
    a = tensors["lora_unet_down_blocks_0_to_q.lora_down.weight"].double().reshape(2, 3)
    b = tensors["lora_unet_down_blocks_0_to_q.lora_up.weight"].double().reshape(5, 2)
    wanted = (2 * torch.einsum("mr,rn->mn", b, a)).reshape(shape)
    assert_within(moved["unet.down_blocks.0.to_q.weight"], wanted, torch.zeros(()))
    with pytest.raises(MergelibError, match="'down_blocks_0_to_q_weight' may be"):
        added(
            path,
            {
                "down.blocks.0.to.q.weight": base["x.weight"],
                "down_blocks.0.to_q.weight": base["x.weight"],
            },
        )
    with pytest.raises(MergelibError, match="'down_blocks_0_to_q_weight', which the base lacks"):
        added(path, {"x.weight": torch.zeros(shape)})
    path, _ = kohya(tmp_path, ["lora_unet_to_q"], alpha=None)
    with pytest.raises(MergelibError, match="does not say alpha"):
        read_adapter(path)


def test_a_file_finds_its_configuration_or_is_refused(tmp_path):
    folder = write(tmp_path / "a", pair("fc", 5, 7))
    base = {"fc.weight": torch.zeros(5, 7)}
    file = folder / "adapter_model.safetensors"
    assert torch.equal(added(file, base)[1]["fc.weight"], added(folder, base)[1]["fc.weight"])
    other = tmp_path / "lora.safetensors"
    other.write_bytes(file.read_bytes())
    with pytest.raises(MergelibError, match="give the folder that PEFT wrote, with adapter_config"):
        read_adapter(other)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(MergelibError, match="has no adapter_config.json, which holds alpha"):
        read_adapter(folder)
    file.unlink()
    with pytest.raises(MergelibError, match="has neither adapter_model.safetensors nor"):
        read_adapter(folder)


def test_a_pickled_adapter(tmp_path):
    folder = write(tmp_path / "a", tensors := pair("fc", 5, 7))
    (folder / "adapter_model.safetensors").unlink()
    named = {k.replace(".weight", ".mine.weight"): v for k, v in tensors.items()}  # not yet saved
    torch.save(named, folder / "adapter_model.bin")
    _, moved = added(folder, {"fc.weight": torch.zeros(5, 7)})
    assert_within(moved["fc.weight"], 3 * product(tensors, "fc"), torch.zeros(()))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"peft_type": None}, "peft_type is None"),
        ({"use_dora": True}, "use_dora is set: DoRA"),
        ({"loftq_config": {"loftq_bits": 4}}, "LoftQ"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"target_parameters": ["experts.w1"]}, "bare parameters"),
        ({"trainable_token_indices": [1]}, "trained tokens"),
        ({"lora_alpha": None}, "lora_alpha is None, no number"),
        ({"r": 0}, "rank 'r' is 0"),
        ({"r": 3}, "r of 'fc' is 3, but 2"),
        ({"rank_pattern": [2]}, "rank_pattern is .2., no object"),
        ({"alpha_pattern": {"fc(": 2}}, r"'fc\(' is no pattern"),
    ],
)
def test_configurations_that_are_refused(tmp_path, config, says):
    folder = write(tmp_path / "a", pair("fc", 5, 7), **config)
    with pytest.raises(MergelibError, match=says) as caught:
        read_adapter(folder)
    assert "\n" not in str(caught.value) and "adapter_config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("fc.lora_magnitude_vector", "DoRA"),
        ("fc.dora_scale", "DoRA"),
        ("fc.hada_w1_a", "LoHa"),
        ("fc.lokr_w2", "LoKr"),
        ("fc.ia3_l", "IA3"),
        ("prompt_embeddings", "prompt tuning"),
        ("fc.token_adapter.trainable_tokens_delta", "trained tokens"),
        ("fc.lora_mid.weight", "Tucker"),
    ],
)
def test_tensors_that_are_refused(tmp_path, name, kind):
    assert is_adapter([name])
    folder = write(tmp_path / "a", pair("fc", 5, 7) | {PEFT + name: randn(2)})
    with pytest.raises(MergelibError, match=rf"{name}' belongs to .*{kind}"):
        read_adapter(folder)


def test_broken_files_are_refused(tmp_path):
    tensors = pair("fc", 5, 7)
    a, b = tensors
    folder = tmp_path / "a"
    for broken, says in [
        ({a: tensors[a]}, "lacks its partner, lora_B"),
        ({a: tensors[a], b: randn(5, 3)}, r"\(2, 7\), \(5, 3\), which do not multiply"),
        ({a: tensors[a][:0], b: tensors[b][:, :0]}, "sharded"),
        ({a: tensors[a] * math.nan, b: tensors[b]}, "NaN"),
        (tensors | {a.replace("A.", "A.x."): tensors[a]}, "several adapters, None, x"),
        (tensors | pair("fc.base_layer", 5, 7), "two pairs"),
    ]:
        with pytest.raises(MergelibError, match=says):
            added(write(folder, broken), {"other.weight": torch.zeros(5, 7)})
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(MergelibError, match="adapter_config.json is truncated or not JSON"):
        read_adapter(folder)
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(MergelibError, match="holds no object"):
        read_adapter(folder)


def test_what_counts_as_an_adapter(tmp_path):
    for name in [
        "base_model.model.x.lora_A.weight",
        "x.lora_B.default.weight",
        "x.lora_embedding_A",
    ]:
        assert is_adapter(["y.weight", name])
    assert is_adapter(["lora_unet_x.lora_down.weight", "lora_unet_x.alpha"])
    assert is_adapter(["unet.x.lora.up.weight"])
    assert not is_adapter(["x.weight", "x.alpha", "explora_A.weight", "prompt_encoder.weight"])
    assert not is_adapter_folder(tmp_path)
    assert is_adapter_folder(write(tmp_path / "a", pair("fc", 5, 7)))
