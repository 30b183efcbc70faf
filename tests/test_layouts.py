"""One model in every layout that its libraries write: the same metrics and the same merges."""

import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_checkpoints import literal_hugging_face, make_clip, write_directory

from mergelib.checkpoints.digests import content_digests
from mergelib.checkpoints.layouts import layout_of
from mergelib.checkpoints.reading import opened, views
from mergelib.core.errors import MergelibError
from mergelib.core.store import load_tensors
from mergelib.merging import layer
from mergelib.merging.engine import merge
from mergelib.merging.registry import METHODS
from mergelib.metrics.registry import METRICS
from mergelib.metrics.table import pairwise_of_checkpoints, weight_metrics

pytestmark = pytest.mark.numeric


def literal_timm(state):
    """open_clip's image tower in timm's layout, written out name by name."""
    out = {
        "cls_token": state["class_embedding"][None, None],
        "pos_embed": state["positional_embedding"][None],
        "patch_embed.proj.weight": state["conv1.weight"],
        "norm_pre.weight": state["ln_pre.weight"],
        "norm_pre.bias": state["ln_pre.bias"],
        "norm.weight": state["ln_post.weight"],
        "norm.bias": state["ln_post.bias"],
        "head.weight": state["proj"].T,
    }
    for i in range(2):
        a, b = f"transformer.resblocks.{i}", f"blocks.{i}"
        for kind in ("weight", "bias"):
            out[f"{b}.attn.qkv.{kind}"] = state[f"{a}.attn.in_proj_{kind}"]
            out[f"{b}.attn.proj.{kind}"] = state[f"{a}.attn.out_proj.{kind}"]
            out[f"{b}.norm1.{kind}"] = state[f"{a}.ln_1.{kind}"]
            out[f"{b}.norm2.{kind}"] = state[f"{a}.ln_2.{kind}"]
            out[f"{b}.mlp.fc1.{kind}"] = state[f"{a}.mlp.c_fc.{kind}"]
            out[f"{b}.mlp.fc2.{kind}"] = state[f"{a}.mlp.c_proj.{kind}"]
    return {name: tensor.contiguous() for name, tensor in out.items()}


def hugging_face(clip):
    return literal_hugging_face(clip.state_dict())


def vision(clip, prefix):
    held = {n: t for n, t in hugging_face(clip).items() if n.startswith("vision_model.")}
    return {prefix + n.removeprefix("vision_model."): t for n, t in held.items()}


def of_task_vectors_repo(clip):
    """An image encoder that holds its CLIP as `model`, saved after training on several devices."""
    return {f"module.model.{n}": t for n, t in clip.state_dict().items()}


LAYOUTS = {
    "open_clip, image tower": lambda clip: clip.visual.state_dict(),
    "open_clip, image tower as visual.": lambda clip: {
        f"visual.{n}": t for n, t in clip.visual.state_dict().items()
    },
    "open_clip, whole": lambda clip: clip.state_dict(),
    "open_clip, wrapped": of_task_vectors_repo,
    "open_clip, compiled": lambda clip: {f"_orig_mod.{n}": t for n, t in clip.state_dict().items()},
    "Hugging Face, whole": hugging_face,
    "Hugging Face 4, vision": lambda clip: vision(clip, "vision_model."),
    "Hugging Face 5, vision": lambda clip: vision(clip, ""),
    "timm": lambda clip: literal_timm(clip.visual.state_dict()),
}
NO_PROJECTION = ("Hugging Face 4, vision", "Hugging Face 5, vision")


@pytest.fixture(scope="module")
def clips():
    """A base and two models near it."""
    base = make_clip(0)
    found = [base, make_clip(0), make_clip(0)]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for clip in found[1:]:
            for parameter in clip.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return found


@pytest.fixture(scope="module")
def written(clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("layouts")
    found = {}
    for (k, (name, make)), (t, clip) in itertools.product(
        enumerate(LAYOUTS.items()), enumerate(clips)
    ):
        path = folder / f"{k}-{t}.safetensors"
        save_file({n: v.detach().clone().contiguous() for n, v in make(clip).items()}, path)
        found[name, t] = path
    return found


def canonical(source):
    with opened(source) as weights:
        return {name: weights.get(name) for name in weights.shapes}


def mixtures():
    """Every layout as base with the two after it as models, and every layout by itself.

    Those with a projection and those without are kept apart: that they do not mix is tested below.
    """
    for names in ([name for name in LAYOUTS if name not in NO_PROJECTION], NO_PROJECTION):
        for k, name in enumerate(names):
            yield name, names[(k + 1) % len(names)], names[(k + 2) % len(names)]
            yield name, name, name
    yield "open_clip, whole", *NO_PROJECTION  # a base may have what no model has


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_read_under_one_set_of_names(clips, written, name):
    expected = clips[0].visual.state_dict()
    if name in NO_PROJECTION:
        expected.pop("proj")
    found = canonical(written[name, 0])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[n], tensor) for n, tensor in expected.items())


@pytest.mark.parametrize("mixture", mixtures(), ids=" + ".join)
def test_metrics_do_not_depend_on_the_layout(clips, written, mixture):
    states = [clip.visual.state_dict() for clip in clips]
    if any(name in NO_PROJECTION for name in mixture):
        states = [{n: t for n, t in state.items() if n != "proj"} for state in states]
    names = weight_metrics(extra=True)
    expected = pairwise_of_checkpoints(states[0], {"a": states[1], "b": states[2]}, names)
    files = [written[name, t] for t, name in enumerate(mixture)]
    with np.errstate(all="raise"):
        found = pairwise_of_checkpoints(files[0], {"a": files[1], "b": files[2]}, names)
    np.testing.assert_allclose(found.iloc[:, 2:], expected.iloc[:, 2:], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [name for name in LAYOUTS if name not in NO_PROJECTION])
def test_merges_do_not_depend_on_the_layout(clips, written, method, name):
    expected = merge(clips[0].state_dict(), [c.state_dict() for c in clips[1:]], method)
    others = {t: written["Hugging Face, whole", t] for t in (1, 2)} | {2: written[name, 2]}
    if "whole" not in name and name not in ("open_clip, wrapped", "open_clip, compiled"):
        others = {t: written[name, t] for t in (1, 2)}  # both without a text tower
    found = merge(written[name, 0], [others[1], others[2]], method)
    assert found.keys() == load_tensors(written[name, 0]).keys()  # all that came in, as it came
    towers = canonical(found)
    for tensor_name, tensor in canonical(expected).items():
        assert torch.allclose(towers[tensor_name], tensor, rtol=1e-6, atol=1e-6), tensor_name


def test_a_projection_of_one_model_alone_is_refused(written):
    models = [written["Hugging Face 5, vision", 1], written["timm", 2]]
    with pytest.raises(MergelibError, match="lacks tensor 'proj'.*--exclude 'proj'"):
        merge(written["open_clip, whole", 0], models, "weight_avg")


def test_other_models_keep_their_names():
    plain_vit = ["cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"]
    plain_vit += ["norm_pre.weight", "blocks.0.attn.qkv.weight"]
    siglip = ["vision_model.embeddings.patch_embedding.weight", "vision_model.head.probe"]
    language = ["visual.blocks.0.attn.qkv.weight", "model.layers.0.mlp.up_proj.weight"]
    for names in (plain_vit, siglip, language, ["model.fc.weight", "model.fc.bias"]):
        assert layout_of(names) is None


def test_directories_of_either_library_version(clips, tmp_path):
    five = write_directory(tmp_path / "five", vision(clips[0], ""), kind="clip_vision_model")
    four = write_directory(tmp_path / "four", vision(clips[0], "vision_model."))
    assert canonical(five).keys() == canonical(four).keys()


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """A CLIP in Hugging Face's layout, LoRA adapters of it, and the models that these make."""
    folder = tmp_path_factory.mktemp("adapters")
    base = hugging_face(make_clip(0))
    generator = torch.Generator().manual_seed(2)
    save_file(base, folder / "base.safetensors")
    tuned = [n for n in base if n.endswith(("q_proj.weight", "v_proj.weight", "fc1.weight"))]
    models = []
    for name in "ab":
        factors, model = {}, {n: t.double() for n, t in base.items()}
        for each in tuned:
            m, n = base[each].shape
            a = 0.3 * torch.randn(3, n, generator=generator)
            b = 0.3 * torch.randn(m, 3, generator=generator)
            start = f"base_model.model.{each.removesuffix('.weight')}"
            factors |= {f"{start}.lora_A.weight": a, f"{start}.lora_B.weight": b}
            model[each] = model[each] + 2 * b.double() @ a.double()  # alpha / r
        (folder / name).mkdir()
        save_file(factors, folder / name / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6}
        (folder / name / "adapter_config.json").write_text(json.dumps(config))
        models.append(model)
    return folder, base, models


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_merges_as_the_model_that_it_makes(adapters, method):
    folder, base, models = adapters
    expected = merge(base, models, method)
    found = merge(folder / "base.safetensors", [folder / "a", folder / "b"], method)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, rtol=1e-5, atol=1e-5), name


def test_an_adapter_measures_as_the_model_that_it_makes(adapters):
    folder, base, models = adapters
    # Subspaces of ten directions, of which an adapter has three, end in arbitrary ones.
    names = [
        n for n in weight_metrics() if METRICS[n].category in ("task_vector", "effective_rank")
    ]
    expected = pairwise_of_checkpoints(base, dict(zip("ab", models, strict=True)), names)
    files = {name: folder / name for name in "ab"}
    found = pairwise_of_checkpoints(folder / "base.safetensors", files, names)
    np.testing.assert_allclose(found.iloc[:, 2:], expected.iloc[:, 2:], rtol=1e-5, atol=1e-9)


def test_an_adapter_stays_factored(adapters, monkeypatch):
    folder, base, _ = adapters
    asked = []
    monkeypatch.setattr(layer, "triplets", lambda *given: asked.append(given))
    merge(folder / "base.safetensors", [folder / "a", folder / "b"], "tsv")
    assert not asked  # no decomposition of a whole matrix


def test_kept_factors_know_the_scale_of_an_adapter(adapters, tmp_path):
    folder, _, _ = adapters
    shutil.copytree(folder / "a", tmp_path / "a")
    file, config = (tmp_path / "a" / f"adapter_{n}" for n in ("model.safetensors", "config.json"))
    found = []
    for alpha in (6, 3):
        config.write_text(json.dumps({"peft_type": "LORA", "r": 3, "lora_alpha": alpha}))
        _, (view,), _ = views(folder / "base.safetensors", [file], whole=True)
        found += content_digests(tmp_path / "kept", [view])
    assert len(set(found)) == 2
