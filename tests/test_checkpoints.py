"""Checkpoint formats and layouts: the same small image tower, written in every way people have."""

import json

import numpy as np
import open_clip
import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import save_file

from mergelib import cli
from mergelib.checkpoints import reading
from mergelib.checkpoints.task_vectors import task_vectors
from mergelib.core.errors import MergelibError
from mergelib.core.store import load_tensors, read_table
from mergelib.merging.engine import merge
from mergelib.metrics.table import pairwise_of_checkpoints
from mergelib.models.backbones import load

pytestmark = pytest.mark.numeric

LAYERS, WIDTH, EMBED = 2, 16, 8


def make_clip(seed):
    torch.manual_seed(seed)
    vision = CLIPVisionCfg(layers=LAYERS, width=WIDTH, head_width=8, patch_size=8, image_size=16)
    text = CLIPTextCfg(context_length=4, vocab_size=9, width=8, heads=2, layers=1)
    model = CLIP(EMBED, vision, text).eval()
    with torch.no_grad():  # biases and norms start at constants, which would hide a mix-up
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def literal_hugging_face(state, layers=(LAYERS, 1)):
    """open_clip's CLIP state dict in Hugging Face's layout, written out name by name."""
    out = {}
    out["vision_model.embeddings.class_embedding"] = state["visual.class_embedding"]
    out["vision_model.embeddings.patch_embedding.weight"] = state["visual.conv1.weight"]
    out["vision_model.embeddings.position_embedding.weight"] = state["visual.positional_embedding"]
    out["vision_model.pre_layrnorm.weight"] = state["visual.ln_pre.weight"]
    out["vision_model.pre_layrnorm.bias"] = state["visual.ln_pre.bias"]
    out["vision_model.post_layernorm.weight"] = state["visual.ln_post.weight"]
    out["vision_model.post_layernorm.bias"] = state["visual.ln_post.bias"]
    out["visual_projection.weight"] = state["visual.proj"].T
    out["text_model.embeddings.token_embedding.weight"] = state["token_embedding.weight"]
    out["text_model.embeddings.position_embedding.weight"] = state["positional_embedding"]
    out["text_model.final_layer_norm.weight"] = state["ln_final.weight"]
    out["text_model.final_layer_norm.bias"] = state["ln_final.bias"]
    out["text_projection.weight"] = state["text_projection"].T
    out["logit_scale"] = state["logit_scale"]
    towers = [("visual.transformer", "vision_model"), ("transformer", "text_model")]
    for (ours, theirs), count in zip(towers, layers, strict=True):
        for i in range(count):
            a, b = f"{ours}.resblocks.{i}", f"{theirs}.encoder.layers.{i}"
            for kind in ("weight", "bias"):
                q, k, v = state[f"{a}.attn.in_proj_{kind}"].chunk(3)
                out[f"{b}.self_attn.q_proj.{kind}"] = q
                out[f"{b}.self_attn.k_proj.{kind}"] = k
                out[f"{b}.self_attn.v_proj.{kind}"] = v
                out[f"{b}.self_attn.out_proj.{kind}"] = state[f"{a}.attn.out_proj.{kind}"]
                out[f"{b}.layer_norm1.{kind}"] = state[f"{a}.ln_1.{kind}"]
                out[f"{b}.layer_norm2.{kind}"] = state[f"{a}.ln_2.{kind}"]
                out[f"{b}.mlp.fc1.{kind}"] = state[f"{a}.mlp.c_fc.{kind}"]
                out[f"{b}.mlp.fc2.{kind}"] = state[f"{a}.mlp.c_proj.{kind}"]
    return {name: tensor.detach().clone().contiguous() for name, tensor in out.items()}


def literal_hugging_face_features(state, images):
    """The image features of a CLIP in Hugging Face's layout, in plain arithmetic on its names."""

    def get(name):
        return state[f"vision_model.{name}"].double()

    def norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / torch.sqrt(
            x.var(-1, correction=0, keepdim=True) + 1e-5
        )
        return x * get(f"{name}.weight") + get(f"{name}.bias")

    def linear(x, name):
        return x @ get(f"{name}.weight").T + get(f"{name}.bias")

    patches = torch.nn.functional.conv2d(images, get("embeddings.patch_embedding.weight"), stride=8)
    patches = patches.flatten(2).transpose(1, 2)
    first = get("embeddings.class_embedding").expand(len(images), 1, WIDTH)
    x = torch.cat([first, patches], dim=1) + get("embeddings.position_embedding.weight")
    x = norm(x, "pre_layrnorm")
    for i in range(LAYERS):
        block = f"encoder.layers.{i}"
        y = norm(x, f"{block}.layer_norm1")
        q, k, v = (linear(y, f"{block}.self_attn.{part}_proj") for part in "qkv")
        q, k, v = (part.unflatten(2, (2, 8)).transpose(1, 2) for part in (q, k, v))  # 2 heads
        share = torch.softmax(q @ k.transpose(2, 3) / np.sqrt(8), dim=-1)
        x = x + linear((share @ v).transpose(1, 2).flatten(2), f"{block}.self_attn.out_proj")
        y = linear(norm(x, f"{block}.layer_norm2"), f"{block}.mlp.fc1")
        y = y * 0.5 * (1 + torch.erf(y / np.sqrt(2)))
        x = x + linear(y, f"{block}.mlp.fc2")
    return norm(x[:, 0], "post_layernorm") @ state["visual_projection.weight"].double().T


def write_directory(path, state, name="model.safetensors", kind="clip"):
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": kind}))
    if name == "model.safetensors":
        save_file(state, path / name)
    elif name == "pytorch_model.bin":
        torch.save(state, path / name)
    else:  # two shards, split so that one attention's projections lie apart
        parts = [dict(list(state.items())[::2]), dict(list(state.items())[1::2])]
        files = [f"model-0000{i + 1}-of-00002.safetensors" for i in range(2)]
        for file, part in zip(files, parts, strict=True):
            save_file(part, path / file)
        where = {n: f for f, part in zip(files, parts, strict=True) for n in part}
        index = {"metadata": {}, "weight_map": where}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


FORMATS = {
    "visual.safetensors": lambda p, clip: save_file(clip.visual.state_dict(), p),
    "whole.safetensors": lambda p, clip: save_file(clip.state_dict(), p),
    "bare.pt": lambda p, clip: torch.save(clip.visual.state_dict(), p),
    "old.pth": lambda p, clip: torch.save(
        clip.visual.state_dict(), p, _use_new_zipfile_serialization=False
    ),
    "training.pt": lambda p, clip: torch.save(
        {
            "epoch": 3,
            "name": "run",
            "state_dict": {f"module.{n}": t for n, t in clip.state_dict().items()},
        },
        p,
    ),
    "pytorch_model.bin": lambda p, clip: torch.save(literal_hugging_face(clip.state_dict()), p),
    "one_file": lambda p, clip: write_directory(p, literal_hugging_face(clip.state_dict())),
    "pickled": lambda p, clip: write_directory(
        p, literal_hugging_face(clip.state_dict()), "pytorch_model.bin"
    ),
    "sharded": lambda p, clip: write_directory(
        p, literal_hugging_face(clip.state_dict()), "shards"
    ),
}


@pytest.fixture(scope="module")
def clips():
    return [make_clip(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def written(clips, tmp_path_factory):
    """Each format's file or directory of each of three models."""
    found = {}
    for name, write in FORMATS.items():
        for t, clip in enumerate(clips):
            path = tmp_path_factory.mktemp(f"m{t}") / name
            write(path, clip)
            found[name, t] = path
    return found


def read(path):
    with reading.opened(path) as weights:
        held = {name: weights.get(name) for name in weights.shapes}
        assert all(held[n].shape == shape for n, shape in weights.shapes.items())
        assert weights.floating == {n for n in held if held[n].is_floating_point()}
    return held


# --- Agreement --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_holds_the_image_tower(clips, written, name):
    expected = clips[0].visual.state_dict()
    found = read(written[name, 0])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[n], tensor) for n, tensor in expected.items())


def test_the_hugging_face_layout_means_what_its_names_say(clips, written):
    # The layout's own arithmetic on its own names gives what open_clip gives on the converted.
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double()
    theirs = literal_hugging_face(clips[0].state_dict())
    visual = make_clip(1).visual
    visual.load_state_dict(read(written["one_file", 0]))
    with torch.no_grad():
        found = visual.double()(images)
    np.testing.assert_allclose(found, literal_hugging_face_features(theirs, images), rtol=1e-9)


def test_formats_mix_in_task_vectors(written):
    literal = dict(
        task_vectors(written["visual.safetensors", 0], [written["visual.safetensors", 1]])
    )
    names = list(FORMATS)
    for base, model in zip(names, [*names[1:], names[0]], strict=True):
        found = dict(task_vectors(written[base, 0], [written[model, 1]]))
        assert found.keys() == literal.keys()
        assert all(torch.equal(found[n], tau) for n, tau in literal.items()), (base, model)


def test_a_state_dict_in_memory_is_read_like_its_file(clips, written):
    own = clips[1].state_dict()
    of_memory = merge(clips[0].state_dict(), [own], "arithmetic", alpha=1.0)
    of_file = merge(written["sharded", 0], [written["training.pt", 1]], "arithmetic", alpha=1.0)
    theirs = literal_hugging_face(own)
    assert of_memory.keys() == own.keys() and of_file.keys() == theirs.keys()
    again = literal_hugging_face(of_memory)
    for name, tensor in theirs.items():
        assert torch.equal(again[name], of_file[name])
        assert torch.allclose(of_file[name], tensor, atol=1e-6)


def test_the_tower_without_projection(clips, tmp_path):
    state = literal_hugging_face(clips[0].state_dict())
    own = {n: t for n, t in state.items() if n.startswith("vision_model.")}
    own["vision_model.embeddings.position_ids"] = torch.arange(5)[None]  # a buffer of older files
    path = write_directory(tmp_path / "vision", own, kind="clip_vision_model")
    expected = clips[0].visual.state_dict()
    expected.pop("proj")
    assert read(path).keys() == expected.keys()
    whole = write_directory(tmp_path / "whole", state)
    # Beside a base that has one, the models are compared over what they share.
    found = dict(task_vectors(whole, [path]))
    assert found.keys() == read(path).keys()
    with pytest.raises(MergelibError, match="vision.*lacks tensor 'proj'.*shape \\(16, 8\\)"):
        list(task_vectors(whole, [path, whole]))


def test_the_commands_take_every_format(written, tmp_path, capsys):
    models = [str(written["training.pt", 1]), str(written["sharded", 2])]
    base = str(written["pickled", 0])
    table, merged = tmp_path / "table.csv", tmp_path / "merged.safetensors"
    assert cli.main(["metrics", "--base", base, "--models", *models, "--out", str(table)]) == 0
    plain = [written["visual.safetensors", t] for t in range(3)]
    links = [tmp_path / "training.safetensors", tmp_path / "sharded.safetensors"]
    for link, target in zip(links, plain[1:], strict=True):
        link.symlink_to(target)
    found, expected = read_table(table), pairwise_of_checkpoints(plain[0], links)
    assert list(found.task_a) == ["training"] and list(found.task_b) == ["sharded"]
    np.testing.assert_allclose(found.iloc[:, 2:], expected.iloc[:, 2:], rtol=1e-12)
    command = ["merge", "--base", base, "--models", *models, "--method", "weight_avg"]
    assert cli.main([*command, "--out", str(merged)]) == 0
    one, two = (load_tensors(path) for path in plain[1:])
    assert (
        load_tensors(merged).keys()
        == load_tensors(written["one_file", 0] / "model.safetensors").keys()
    )
    for name, tensor in read(merged).items():
        assert torch.allclose(tensor, (one[name] + two[name]) / 2, atol=1e-6), name


def test_paper_counts_the_matrices_of_the_text_side(clips, tmp_path):
    # The published checkpoints: visual.* and the text side without its transformer.
    paths = []
    for t, clip in enumerate(clips):
        kept = {n: p for n, p in clip.state_dict().items() if not n.startswith("transformer.")}
        kept |= {n: clips[0].state_dict()[n] for n in kept if not n.startswith("visual.")}
        paths.append(tmp_path / f"{t}.safetensors")
        save_file({n: p.clone() for n, p in kept.items()}, paths[-1])
    assert reading.text_matrices(paths[0]) == 3
    matrices = sum(p.ndim == 2 for p in clips[0].visual.state_dict().values())
    name = "singular_value_overlap"
    corrected = pairwise_of_checkpoints(paths[0], paths[1:])[name]
    paper = pairwise_of_checkpoints(paths[0], paths[1:], edition="paper")[name]
    np.testing.assert_allclose(paper, corrected * matrices / (matrices + 3))


def test_text_matrices_of_other_layouts(written):
    assert reading.text_matrices(written["whole.safetensors", 0]) == 3
    assert reading.text_matrices(written["sharded", 0]) == 3
    assert reading.text_matrices(written["bare.pt", 0]) == 0


def test_a_hugging_face_directory_as_backbone(tmp_path):
    torch.manual_seed(0)
    config = open_clip.get_model_config("ViT-S-32-alt")
    state = open_clip.create_model("ViT-S-32-alt").state_dict()
    depths = (config["vision_cfg"]["layers"], config["text_cfg"]["layers"])
    path = write_directory(tmp_path / "clip", literal_hugging_face(state, depths))
    settings = {"model_type": "clip", "vision_config": {"hidden_act": "gelu"}}
    (path / "config.json").write_text(json.dumps(settings))
    own = load("ViT-S-32-alt", path).model.state_dict()
    assert own.keys() == state.keys()
    assert all(torch.equal(own[name], tensor) for name, tensor in state.items())
    (path / "config.json").write_text(json.dumps({"model_type": "clip"}))  # quick_gelu unsaid
    with pytest.raises(MergelibError, match="trained with quick_gelu.*with -quickgelu"):
        load("ViT-S-32-alt", path)
    with pytest.raises(MergelibError, match="is no CLIP"):
        reading.whole_clip(write_directory(tmp_path / "no", {"w": torch.ones(1)}))


# --- Errors -----------------------------------------------------------------------------------


def refused(path, match):
    with pytest.raises(MergelibError, match=match) as caught, reading.opened(path):
        pass
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["bare.pt", "old.pth", "visual.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_files_are_named(written, tmp_path, name, share):
    whole = written[name, 0].read_bytes()
    path = tmp_path / name
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path, "is truncated or no")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["notes.pt", "notes.bin", "notes.safetensors"])
def test_other_files_are_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"not weights")
    refused(tmp_path / name, "is truncated or no")
    refused(tmp_path / f"no{name}", "is missing: give the path of")


class Planted:
    def __reduce__(self):
        return (open, ("planted", "w"))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("new", [True, False])
def test_pickled_objects_are_not_loaded(tmp_path, monkeypatch, new):
    monkeypatch.chdir(tmp_path)
    for name, held in {"planted": Planted(), "model": torch.nn.Linear(2, 2)}.items():
        path = tmp_path / f"{name}.pt"
        torch.save({"w": torch.ones(2), "x": held}, path, _use_new_zipfile_serialization=new)
        refused(path, r"pickled objects besides tensors.*torch.save\(model.state_dict\(\), path\)")
    assert not (tmp_path / "planted").exists()


def test_what_is_no_state_dict_is_named(tmp_path):
    for held, words in {
        "list": ([torch.ones(2)], "holds a list, no state dict"),
        "number": ({"w": torch.ones(2), "epoch": 3}, "'epoch' is a int, no tensor"),
        "nested": ({"optimizer": {"w": torch.ones(2)}}, "'optimizer' is a dict, no tensor"),
    }.values():
        torch.save(held, tmp_path / "it.pt")
        refused(tmp_path / "it.pt", words)


def test_directories_without_weights_are_named(clips, tmp_path):
    state = literal_hugging_face(clips[0].state_dict())
    path = write_directory(tmp_path / "clip", state)
    (path / "model.safetensors").unlink()
    refused(path, "neither model.safetensors nor pytorch_model.bin")
    quantized = {"model_type": "clip", "quantization_config": {"quant_method": "bitsandbytes"}}
    (path / "config.json").write_text(json.dumps(quantized))
    refused(path, r"is quantized \(bitsandbytes\)")
    (path / "config.json").write_text("[]")
    refused(path, "no JSON object")


def test_shards_that_are_not_all_there_are_named(clips, tmp_path):
    state = literal_hugging_face(clips[0].state_dict())
    path = write_directory(tmp_path / "clip", state, "shards")
    second = path / "model-00002-of-00002.safetensors"
    held = load_tensors(second)
    name = next(iter(held))
    save_file({n: t for n, t in held.items() if n != name}, second)
    refused(path, f"model-00002-of-00002.safetensors lacks tensor '{name}'")
    second.unlink()
    refused(path, "model-00002-of-00002.safetensors is missing")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            {"vision_model.encoder.layers.1.self_attn.k_proj.weight": None},
            "lacks tensor 'vision_model.encoder.layers.1.self_attn.k_proj.weight'",
        ),
        ({"vision_model.pre_layrnorm.bias": None}, "lacks tensor 'vision_model.pre_layrnorm.bias'"),
        (
            {"vision_model.encoder.layers.1.self_attn.k_proj.weight": torch.ones(16, 15)},
            r"k_proj.weight \(16, 15\).*do not stack",
        ),
    ],
)
def test_layouts_that_differ_are_named(clips, tmp_path, change, match):
    state = literal_hugging_face(clips[0].state_dict()) | change
    path = tmp_path / "clip.safetensors"
    save_file({n: t for n, t in state.items() if t is not None}, path)
    refused(path, match)


def test_other_sizes_name_both(written, tmp_path):
    state = read(written["one_file", 0]) | {"proj": torch.ones(16, 9)}
    torch.save(state, tmp_path / "wide.pt")
    match = r"'proj' has shape \(16, 9\) in .*wide.pt but \(16, 8\) in .*model.safetensors"
    with pytest.raises(MergelibError, match=match):
        list(task_vectors(written["one_file", 0], [tmp_path / "wide.pt"]))


def test_errors_reach_the_command_line_as_one_line(written, tmp_path, capsys):
    torch.save({"x": torch.nn.Linear(2, 2)}, tmp_path / "model.pt")
    models = [str(tmp_path / "model.pt"), str(written["bare.pt", 1])]
    base, out = str(written["bare.pt", 0]), str(tmp_path / "out.csv")
    assert cli.main(["metrics", "--base", base, "--models", *models, "--out", out]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "model.pt holds pickled" in said.err
