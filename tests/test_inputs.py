"""Inputs that users bring and that went wrong: what comes in goes out, or is refused by name."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_checkpoints import literal_hugging_face, make_clip, write_directory

import mergelib as ml
from mergelib import cli
from mergelib.core.errors import MergelibError, MergelibNote
from mergelib.core.store import read_table
from mergelib.merging.registry import METHODS

SHAPES = {"fc1.weight": (12, 8), "fc1.bias": (12,), "fc2.weight": (8, 12), "scale": ()}


def random(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def near(base, seed, scale=0.1):
    """A model near a base: what is floating has moved."""
    moves = random({name: tensor.shape for name, tensor in base.items()}, seed)
    return {
        name: (tensor.double() + scale * moves[name].double()).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in base.items()
    }


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(**states):
    """State dicts as safetensors files in the working folder: base, a, b."""
    for name, state in states.items():
        save_file(state, f"{name}.safetensors")


def command(verb, *words, base="base.safetensors", models=("a.safetensors", "b.safetensors")):
    return cli.main([verb, "--base", str(base), "--models", *map(str, models), *map(str, words)])


def merging(*words, method="weight_avg", **files):
    return command("merge", "--method", method, *words, **files)


def said(capsys, status, found=0):
    """What a command said on stderr: one line for an error, none for what is plain."""
    assert found == status
    err = capsys.readouterr().err
    assert "Traceback" not in err and "not foreseen" not in err
    if status:
        assert err.count("\n") == 1 and err.startswith("mergelib: error: ")
    return err


# --- types --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "dtype", ["float64", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]
)
def test_every_floating_type_is_merged_and_comes_back(here, capsys, method, dtype):
    kind = getattr(torch, dtype)
    base = {name: tensor.to(kind) for name, tensor in random(SHAPES, 0).items()}
    models = [
        {n: t.to(kind) for n, t in near({k: v.float() for k, v in base.items()}, s).items()}
        for s in (1, 2)
    ]
    written(base=base, a=models[0], b=models[1])
    said(capsys, 0, merging("--out", "m.safetensors", method=method))
    found = load_file("m.safetensors")
    assert {n: (t.dtype, t.shape) for n, t in found.items()} == {
        n: (t.dtype, t.shape) for n, t in base.items()
    }
    if method == "weight_avg":
        for name, tensor in found.items():
            mean = (models[0][name].double() + models[1][name].double()) / 2
            # float64 sums, rounded once to the type
            assert torch.equal(
                tensor, mean.float().to(kind) if kind.itemsize == 1 else mean.to(kind)
            )


def test_metrics_of_eight_bits(here, capsys):
    base = random(SHAPES, 0)
    eight = [
        {n: t.to(torch.float8_e4m3fn) for n, t in s.items()}
        for s in (base, near(base, 1), near(base, 2))
    ]
    written(base=eight[0], a=eight[1], b=eight[2])
    said(capsys, 0, command("metrics", "--out", "eight.csv"))
    written(
        **{
            n: {k: t.float() for k, t in s.items()}
            for n, s in zip(("base", "a", "b"), eight, strict=True)
        }
    )
    said(capsys, 0, command("metrics", "--out", "wide.csv"))
    assert read_table(here / "eight.csv").equals(read_table(here / "wide.csv"))


def test_the_type_to_write_in(here, capsys):
    base = random(SHAPES, 0) | {"steps": torch.tensor([1, 2, 3])}
    written(base=base, a=near(base, 1), b=near(base, 2))
    said(capsys, 0, merging("--dtype", "bfloat16", "--out", "m.safetensors"))
    found = load_file("m.safetensors")
    assert found.pop("steps").equal(base["steps"])
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert "unknown dtype 'int3'" in said(capsys, 2, merging("--dtype", "int3", "--out", "n.pt"))


def test_sparse_meta_empty_and_cut_tensors(here, capsys):
    base = {"w": torch.eye(4), "none": torch.empty(0, 3)}
    torch.save(base, "base.pt")
    torch.save({"w": (2 * torch.eye(4)).to_sparse(), "none": torch.empty(0, 3)}, "a.pt")
    files = {"base": "base.pt", "models": ["a.pt"]}
    said(capsys, 0, merging("--out", "m.pt", **files))
    found = torch.load("m.pt", weights_only=True)
    assert found["w"].equal(2 * torch.eye(4)) and found["none"].shape == (0, 3)
    torch.save({"w": torch.eye(4, device="meta"), "none": torch.empty(0, 3)}, "a.pt")
    assert "a.pt: tensor 'w' is on the meta device" in said(
        capsys, 2, merging("--out", "n.pt", **files)
    )
    torch.save({"w": torch.zeros(1).expand(10**11), "none": torch.empty(0, 3)}, "a.pt")
    assert "fewer numbers than its shape" in said(capsys, 2, merging("--out", "n.pt", **files))


@pytest.mark.parametrize("kind", [torch.complex64, torch.int64, torch.uint8, torch.bool])
def test_what_no_method_merges_is_refused_or_kept_on_request(here, capsys, kind):
    extra = torch.arange(12).reshape(3, 4)
    states = [
        random(SHAPES, 0)
        | {"table": (extra + k).to(kind) % 2 if kind == torch.bool else (extra + k).to(kind)}
        for k in range(3)
    ]
    if kind == torch.bool:
        for k, state in enumerate(states):
            state["table"] = (extra + k) % 3 == 0
    written(**dict(zip(("base", "a", "b"), states, strict=True)))
    err = said(capsys, 2, merging("--out", "m.safetensors"))
    assert "'table'" in err and "--exclude 'table'" in err
    assert not Path("m.safetensors").exists()
    assert merging("--exclude", "table", "--out", "m.safetensors") == 0
    assert "as the base has them" in capsys.readouterr().err
    assert load_file("m.safetensors")["table"].equal(states[0]["table"])


def quantized(state):
    """Matrices as 8-bit integers with a scale for every row, as bitsandbytes writes them."""
    out = {}
    for name, tensor in state.items():
        if tensor.ndim == 2:
            most = tensor.abs().amax(1)
            out[name] = (tensor / most[:, None] * 127).round().to(torch.int8)
            out[name.replace("weight", "SCB")] = most
        else:
            out[name] = tensor
    return out


def test_quantized_weights_are_refused_by_name(here, capsys):
    base = random(SHAPES, 0)
    written(base=quantized(base), a=quantized(near(base, 1)), b=quantized(near(base, 2)))
    for err in (
        said(capsys, 2, merging("--out", "m.safetensors")),
        said(capsys, 2, command("metrics", "--out", "t.csv")),
    ):
        assert "is quantized (fc1.weight is int8, beside it SCB)" in err
    eight = {n: t.to(torch.float8_e4m3fn) for n, t in base.items()} | {
        "fc1.weight_scale": torch.ones(1)
    }
    written(base=eight, a=eight, b=eight)
    assert "is quantized (fc1.weight is float8" in said(
        capsys, 2, merging("--out", "m.safetensors")
    )


# --- statistics ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_statistics_of_activations_are_averaged(here, capsys, method):
    states = []
    for k, variance in enumerate((1.0, 0.5, 0.4)):
        state = random({"bn.weight": (16,), "bn.bias": (16,)}, k)
        state |= {
            "bn.running_mean": torch.full((16,), float(k)),
            "bn.running_var": torch.full((16,), variance),
        }
        states.append(state | {"bn.num_batches_tracked": torch.tensor(10 + k)})
    written(**dict(zip(("base", "a", "b"), states, strict=True)))
    given = ["--set", "alpha=3"] if "alpha" in METHODS[method].parameters else []
    said(capsys, 0, merging(*given, "--out", "m.safetensors", method=method))
    found = load_file("m.safetensors")
    torch.testing.assert_close(found["bn.running_var"], torch.full((16,), 0.45))
    torch.testing.assert_close(found["bn.running_mean"], torch.full((16,), 1.5))
    assert found["bn.num_batches_tracked"] == 10


# --- what is beside an image tower ----------------------------------------------------------------


def test_a_vision_language_model_comes_back_whole(here, capsys):
    shapes = {
        "visual.blocks.0.attn.qkv.weight": (24, 8),
        "model.layers.0.mlp.up_proj.weight": (12, 8),
    }
    base = random(shapes | {"lm_head.weight": (20, 8)}, 0)
    a, b = near(base, 1), near(base, 2)
    written(base=base, a=a, b=b)
    said(capsys, 0, merging("--out", "m.safetensors"))
    found = load_file("m.safetensors")
    assert found.keys() == base.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, (a[name] + b[name]) / 2)


def test_a_text_tower_that_was_tuned(here, capsys):
    base = {n: t.detach() for n, t in make_clip(0).state_dict().items()}
    models = [
        {n: base[n] if n.startswith("visual.") else t for n, t in near(base, k).items()}
        for k in (1, 2)
    ]
    for name, state in zip(("base", "a", "b"), (base, *models), strict=True):
        torch.save(state, f"{name}.pt")
    files = {"base": "base.pt", "models": ["a.pt", "b.pt"]}
    said(capsys, 0, merging("--out", "m.pt", **files))
    found = torch.load("m.pt", weights_only=True)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, (models[0][name] + models[1][name]) / 2)
    err = said(capsys, 2, command("metrics", "--out", "t.csv", **files))
    assert "every model is the base" in err and "--whole" in err
    said(capsys, 0, command("metrics", "--whole", "--out", "t.csv", **files))
    assert read_table(here / "t.csv")["task_vector_l2_distance"].item() > 0


def test_towers_without_projection_are_merged_into_a_whole_clip(here, capsys):
    base = literal_hugging_face(make_clip(0).state_dict())
    models = [
        {n: t for n, t in near(base, k).items() if n.startswith("vision_model.")} for k in (1, 2)
    ]
    write_directory(here / "base", base)
    for name, state in zip("ab", models, strict=True):
        write_directory(here / name, state, kind="clip_vision_model")
    files = {"base": "base", "models": ["a", "b"]}
    assert merging("--out", "m", **files) == 0
    notes = capsys.readouterr().err
    assert "no model has the base's proj" in notes and "text tower" in notes
    found = load_file("m/model.safetensors")
    assert found.keys() == base.keys() and json.loads(Path("m/config.json").read_text()) == {
        "model_type": "clip"
    }
    for name, tensor in found.items():
        expected = (models[0][name] + models[1][name]) / 2 if name in models[0] else base[name]
        torch.testing.assert_close(tensor, expected)
    assert command("metrics", "--out", "t.csv", **files) == 0


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {f"_orig_mod.{n}": t for n, t in s.items()},
        lambda s: {f"module._orig_mod.{n}": t for n, t in s.items()},
        lambda s: {f"model.{n}": t for n, t in s.items()},
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": {f"module.{n}": t for n, t in s.items()}, "optimizer": {"state": {}}},
        lambda s: {"model_ema": s, "step": 7},
        lambda s: {
            "state_dict": {f"clipmodel.{n}": t for n, t in s.items()},
            "hyper_parameters": {"lr": 1},
        },
    ],
)
@pytest.mark.parametrize("suffix", ["pt", "ckpt"])
def test_wrappers_are_seen_through(here, capsys, wrap, suffix):
    base = {n: t.detach() for n, t in make_clip(0).state_dict().items()}
    model = near(base, 1)
    torch.save(base, "base.pt")
    torch.save(wrap(model), f"a.{suffix}")
    assert merging("--out", "m.pt", base="base.pt", models=[f"a.{suffix}"]) == 0
    found = torch.load("m.pt", weights_only=True)
    assert found.keys() == base.keys()
    assert all(torch.allclose(found[n], t, atol=1e-6) for n, t in model.items())


def test_a_model_beside_its_average_is_asked_about(here, capsys):
    base = random(SHAPES, 0)
    both = {f"model.{n}": t for n, t in near(base, 1).items()} | {
        f"ema.{n}": t for n, t in near(base, 2).items()
    }
    written(base=base, a=both)
    files = {"models": ["a.safetensors"]}
    err = said(capsys, 2, merging("--out", "m.safetensors", **files))
    assert "under 'ema.' and under 'model.'" in err and "--exclude" in err
    assert merging("--exclude", "model.*", "--out", "m.safetensors", **files) == 0
    torch.testing.assert_close(load_file("m.safetensors")["scale"], both["ema.scale"])


def test_a_head_that_the_base_lacks_is_left_out_on_request(here, capsys):
    base = random(SHAPES, 0)
    written(base=base, a=near(base, 1) | {"head.weight": torch.ones(3, 8)}, b=near(base, 2))
    err = said(capsys, 2, merging("--out", "m.safetensors"))
    assert "lacks tensor 'head.weight'" in err and "--exclude" in err
    assert merging("--exclude", "head.*", "--out", "m.safetensors") == 0
    assert load_file("m.safetensors").keys() == base.keys()
    assert "fits the name of no tensor" in said(
        capsys, 2, merging("--exclude", "haed.*", "--exclude", "head.*", "--out", "n.pt")
    )


def test_a_resized_vocabulary_is_merged_over_shared_rows(here, capsys):
    base = random({"embed.weight": (10, 4), "fc.weight": (4, 4)}, 0)
    longer, same = near(base, 1), near(base, 2)
    longer["embed.weight"] = torch.cat([longer["embed.weight"], torch.ones(3, 4)])
    shorter = near(base, 3) | {"embed.weight": near(base, 3)["embed.weight"][:8]}
    written(base=base, a=longer, b=shorter, c=same)
    files = {"models": ["a.safetensors", "b.safetensors", "c.safetensors"]}
    assert "--shared-rows" in said(capsys, 2, merging("--out", "m.safetensors", **files))
    assert merging("--shared-rows", "--out", "m.safetensors", **files) == 0
    assert "the first 8 rows" in capsys.readouterr().err
    found = load_file("m.safetensors")["embed.weight"]
    mean = sum(s["embed.weight"][:8].double() for s in (longer, shorter, same)) / 3
    torch.testing.assert_close(found[:8], mean.float())
    assert found[8:].equal(base["embed.weight"][8:])


# --- files that are no checkpoints ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"GGUF", "is a GGUF file"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
            "is a Git LFS pointer",
        ),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        (b"\x1f\x8b\x08", "is a gzip archive"),
        (b"", "is truncated or no"),
    ],
)
@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "a.gguf"])
def test_other_files_are_named(here, capsys, start, words, name):
    written(base=random(SHAPES, 0))
    Path(name).write_bytes(start and start + bytes(2000))
    err = said(capsys, 2, merging("--out", "m.safetensors", models=[name]))
    assert f"{name} {words}" in err


def test_a_safetensors_file_is_known_whatever_it_is_called(here, capsys):
    base = random(SHAPES, 0)
    written(base=base, a=near(base, 1))
    Path("a.safetensors").rename("a.bin")
    said(capsys, 0, merging("--out", "m.safetensors", models=["a.bin"]))


# --- what is written ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "out", ["m.safetensors", "m.pt", "m.pth", "m.bin", "folder", "deep/er/m.safetensors"]
)
def test_what_is_written_is_what_its_name_says(here, capsys, out):
    base = random(SHAPES, 0)
    written(base=base, a=near(base, 1), b=near(base, 2))
    said(capsys, 0, merging("--out", out))
    file = Path(out) / "model.safetensors" if out == "folder" else Path(out)
    read = (
        load_file if file.suffix == ".safetensors" else lambda p: torch.load(p, weights_only=True)
    )
    assert read(file).keys() == base.keys()
    recipe = (
        Path(out) / "mergelib_recipe.yaml" if out == "folder" else file.with_name("m.recipe.yaml")
    )
    said(capsys, 0, cli.main(["merge", "--recipe", str(recipe), "--out", "again.safetensors"]))
    again = load_file("again.safetensors")
    assert all(again[name].equal(tensor) for name, tensor in read(file).items())


@pytest.mark.parametrize(
    "out", ["a.safetensors", "base.safetensors", "./b.safetensors", "link.safetensors"]
)
def test_an_input_is_never_written_over(here, capsys, out):
    base = random(SHAPES, 0)
    written(base=base, a=near(base, 1), b=near(base, 2))
    Path("link.safetensors").symlink_to("a.safetensors")
    before = {p.name: p.read_bytes() for p in here.iterdir()}
    assert "one of the inputs" in said(capsys, 2, merging("--out", out))
    assert {p.name: p.read_bytes() for p in here.iterdir()} == before


def test_a_dry_run_says_and_does_nothing(here, capsys):
    base = random(SHAPES, 0)
    written(base=base, a=near(base, 1), b=near(base, 2))
    before = sorted(here.iterdir())
    assert merging("--dry-run", "--exclude", "fc2*", "--out", "m.safetensors") == 0
    told = capsys.readouterr()
    assert "3 tensors would be merged from 2 models" in told.out and "1 as in the base" in told.out
    assert "as the base has them" in told.err and sorted(here.iterdir()) == before


def test_weights_multiply_task_vectors(here, capsys):
    base = random(SHAPES, 0)
    a, b = near(base, 1), near(base, 2)
    written(base=base, a=a, b=b)
    said(capsys, 0, merging("--weights", 3, 1, "--out", "m.safetensors"))
    for name, tensor in load_file("m.safetensors").items():
        torch.testing.assert_close(
            tensor, (0.75 * a[name].double() + 0.25 * b[name].double()).float()
        )
    found = ml.merge(base, [a, b], "arithmetic", weights=[2, -1], alpha=1.0)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, 2 * a[name] - b[name], rtol=1e-5, atol=1e-5)
    with pytest.raises(MergelibError, match="1 weights for 2 models"):
        ml.merge(base, [a, b], weights=[1])


def test_notes_are_warnings_in_a_notebook():
    base = random(SHAPES, 0)
    with pytest.warns(MergelibNote, match="as the base has them"):
        ml.merge(base, [near(base, 1)], "weight_avg", exclude=["fc1*"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ml.merge(base, [near(base, 1)], "weight_avg")
