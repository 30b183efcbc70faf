"""Models of another base, equal ones, and models rewritten by symmetries: found, named, undone."""

import json
import math

import open_clip
import pytest
import torch
import transformers
from bounds import bound
from safetensors.torch import save_file
from scipy.optimize import minimize
from torch.func import functional_call

import mergelib as ml
from mergelib import cli
from mergelib.checkpoints.reading import opened
from mergelib.core.errors import MergelibError, MergelibNote
from mergelib.core.store import load_tensors
from mergelib.lineage import detect
from mergelib.lineage.canonical import aligned, canonicalize
from mergelib.lineage.detect import RATIO, UNRELATED, findings
from mergelib.lineage.heads import known_heads
from mergelib.lineage.invariants import Change, compare, distance
from mergelib.lineage.lock import locked
from mergelib.lineage.symmetries import Part, parts, read
from mergelib.merging.engine import merge
from mergelib.models.backbones import glyph_model, load
from mergelib.models.finetune import Recipe, finetune
from mergelib.models.heads import zero_shot_head
from mergelib.tasks import TASKS, build

pytestmark = pytest.mark.numeric

TUNED = (("braille", 0), ("games", 0), ("games", 1))
LOCKS = 20


@pytest.fixture(scope="module")
def backbone():
    return load()


@pytest.fixture(scope="module")
def base(backbone):
    return backbone.visual_state()


def tuned(backbone, task, **recipe):
    data = build(task, {"train": 256, "calibration": 1, "test": 1}).train
    head = zero_shot_head(backbone, TASKS[task].class_names, TASKS[task].templates)
    images = backbone.normalize(data.images)
    return finetune(backbone.model.visual, images, data.labels, head, Recipe(batch=16, **recipe))


@pytest.fixture(scope="module")
def experts(backbone):
    return [tuned(backbone, task, steps=20, learning_rate=1e-3, seed=seed) for task, seed in TUNED]


@pytest.fixture(scope="module")
def images():
    return torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def features(backbone, state, images):
    with torch.no_grad():
        found = functional_call(backbone.model.visual, state, (images,))
    return torch.nn.functional.normalize(found, dim=-1)


def far(one, two):
    return math.sqrt(sum(float((one[n].double() - two[n].double()).square().sum()) for n in one))


def changes(base, models):
    origin, shown = detect.as_views(base, models)
    found = detect._changes(origin, shown)
    return [change for each in found for _, of_part in each for change in of_part]


@pytest.mark.slow
def test_twenty_of_twenty_locks_compute_the_same_and_are_found(backbone, base, experts, images):
    head = zero_shot_head(backbone, TASKS["games"].class_names, TASKS["games"].templates)
    with opened(base) as weights:
        rewritable = {name for part in parts(weights.shapes) for name in part.tensors}
    assert len(rewritable) == 6 * (3 + 3)  # a block's weights and biases, but those added last
    for seed in range(LOCKS):
        expert = experts[seed % len(experts)]
        one = locked(expert, seed)
        before, after = (features(backbone, s, images) @ head.T for s in (expert, one))
        assert (before - after).abs().max() < 1e-4
        assert torch.equal(before.argmax(1), after.argmax(1))
        (found,) = findings(base, [one])
        assert found.kind == "reparameterised"
        assert found.ratio > 1.5 * RATIO
        assert set(found.tensors) == rewritable
        assert {n for n in expert if not torch.equal(expert[n], one[n])} <= rewritable


@pytest.mark.slow
def test_no_false_alarm_and_the_thresholds_have_room(backbone, base, experts):
    hard = tuned(backbone, "games", steps=40, learning_rate=4e-3)
    assert far(hard, base) > 2 * far(experts[1], base)
    assert findings(base, [*experts, hard]) == []
    trained = changes(base, [*experts, hard])
    assert max(detect._ratio(each) for each in trained) < RATIO / 1.5
    assert max(each.function for each in changes(base, experts)) < UNRELATED / 1.5
    foreign = changes(base, fresh(3))
    assert min(each.function for each in foreign) > 1.3 * UNRELATED
    assert max(detect._ratio(each) for each in foreign) < RATIO / 1.5


def fresh(count):
    found = []
    for seed in range(1, count + 1):  # the shipped base began at seed 0
        torch.manual_seed(seed)
        found.append(glyph_model(1).visual.state_dict())
    return found


def test_a_foreign_model_is_found(base, experts):
    found = findings(base, [experts[0], *fresh(2)])
    assert [(each.model, each.kind) for each in found] == [(1, "foreign"), (2, "foreign")]
    assert len(found[0].tensors) == 6 * 6
    assert "does not come from this base" in str(found[0])
    other = experts[0] | {n: t for n, t in fresh(1)[0].items() if "resblocks.3.attn" in n}
    (found,) = findings(base, [other])
    assert found.kind == "foreign"
    assert set(found.tensors) == {n for n in base if "resblocks.3.attn" in n} - {
        "transformer.resblocks.3.attn.out_proj.bias"
    }


def test_equal_models_are_found_in_any_layout(base, experts, tmp_path):
    torch.save({f"visual.{n}": t for n, t in experts[1].items()}, tmp_path / "b.pt")
    copy = {n: t.clone() for n, t in base.items()}
    found = findings(base, [experts[0], copy, experts[1], tmp_path / "b.pt", experts[0]])
    assert [(f.kind, f.model, f.other) for f in found] == [
        ("equal_to_base", 1, None),
        ("equal_to_model", 3, 2),
        ("equal_to_model", 4, 0),
    ]
    assert "b.pt" in str(found[1])
    last = {**experts[0], "proj": experts[0]["proj"] + 1e-6}
    assert findings(base, [experts[0], last]) == []
    wide = {n: t.double() for n, t in base.items()}  # the same numbers in another type
    assert [each.kind for each in findings(base, [wide])] == ["equal_to_base"]


def swapped(state, name, rows, axis=0):
    order = torch.arange(state[name].shape[axis])
    order[list(rows)] = order[list(reversed(rows))]
    return {**state, name: state[name].index_select(axis, order)}


def test_a_part_of_a_lock_is_found(base, experts):
    """Two heads of four, two neurons of 512, Q and K rescaled: in one block."""
    block = "transformer.resblocks.2."
    attention = [n for n in base if n.startswith(f"{block}attn.")]
    one = dict(experts[0])
    heads = torch.arange(128).reshape(4, 32)[[1, 0, 2, 3]].flatten()
    for name in (f"{block}attn.in_proj_weight", f"{block}attn.in_proj_bias"):
        one[name] = torch.cat([part[heads] for part in one[name].chunk(3)])
    one[f"{block}attn.out_proj.weight"] = one[f"{block}attn.out_proj.weight"][:, heads]
    (found,) = findings(base, [one])
    assert far(canonicalize(base, one), experts[0]) < 0.25 * far(experts[0], base)
    assert found.kind == "reparameterised"
    assert set(found.tensors) == set(attention) - {f"{block}attn.out_proj.bias"}

    units = [7, 300]
    two = swapped(experts[0], f"{block}mlp.c_fc.weight", units)
    two = swapped(two, f"{block}mlp.c_fc.bias", units)
    two = swapped(two, f"{block}mlp.c_proj.weight", units, axis=1)
    (found,) = findings(base, [two])
    assert found.kind == "reparameterised"
    assert all(n.startswith(f"{block}mlp.") for n in found.tensors)
    back = canonicalize(base, two)
    assert all(torch.equal(back[name], experts[0][name]) for name in back)

    scale = torch.cat([torch.full((128,), s) for s in (4.0, 0.25, 1.0)])
    three = dict(experts[0])
    three[f"{block}attn.in_proj_weight"] = scale[:, None] * three[f"{block}attn.in_proj_weight"]
    three[f"{block}attn.in_proj_bias"] = scale * three[f"{block}attn.in_proj_bias"]
    (found,) = findings(base, [three])
    assert (found.kind, set(found.tensors)) == (
        "reparameterised",
        set(attention) - {f"{block}attn.out_proj.bias"},
    )


def test_products_are_those_of_the_formula():
    """Against loops over heads, and the distances written out."""
    draws = torch.Generator().manual_seed(3)
    old, new = (
        [torch.randn(6, d, generator=draws, dtype=torch.float64) for d in (5, 5, 5, 4)]
        for _ in range(2)
    )

    def product(left, right):
        return sum(torch.outer(left[i], right[i]) for i in range(6))

    for k, found in zip((0, 2), compare(True, old, new), strict=True):
        one, two = product(*old[k : k + 2]), product(*new[k : k + 2])
        wanted = ((one - two) ** 2).sum() / ((one**2).sum() + (two**2).sum())
        assert found.function == pytest.approx(float(wanted), rel=bound(torch.float64, 6 * 25))
        far = max(
            float(((x - y) ** 2).sum() / ((x**2).sum() + (y**2).sum()))
            for x, y in zip(old[k : k + 2], new[k : k + 2], strict=True)
        )
        assert found.weights == pytest.approx(far, rel=bound(torch.float64, 6 * 25))
    order = torch.randperm(6, generator=draws)
    (found,) = compare(False, old[:2], [x[order] for x in old[:2]])
    assert found.function < bound(torch.float64, 10) and found.weights > 0.1
    assert distance(torch.zeros(2), torch.zeros(2)) == 0


def test_alignment_is_the_least_that_a_general_optimizer_finds():
    draws = torch.Generator().manual_seed(5)
    left0, right0 = (torch.randn(3, 9, generator=draws, dtype=torch.float64) for _ in range(2))
    noise = 0.1 * torch.randn(2, 3, 9, generator=draws, dtype=torch.float64)
    turn = torch.randn(3, 3, generator=draws, dtype=torch.float64) + 2 * torch.eye(3)
    left, right = torch.linalg.solve(turn.T, left0 + noise[0]), turn @ (right0 + noise[1])

    def cost(x, y):
        return float((x - left0).square().sum() + (y - right0).square().sum())

    def of(entries):
        a = torch.from_numpy(entries.reshape(3, 3).copy())
        return cost(torch.linalg.solve(a.T, left), a @ right)

    found = aligned(left0, right0, left, right)
    start = torch.linalg.inv(turn).flatten().numpy()
    least = minimize(of, start, method="BFGS", options={"gtol": 1e-9})
    assert cost(*found) <= least.fun * (1 + 1e-9)
    assert cost(*found) == pytest.approx(least.fun, rel=1e-6)  # flat at the bottom: tol squared
    assert cost(*found) <= noise.square().sum()
    same = torch.linalg.cond(turn) * bound(torch.float64, 27)
    torch.testing.assert_close(found[0].T @ found[1], left.T @ right, rtol=same, atol=same)


@pytest.mark.slow
def test_canonicalized_models_merge_like_the_unlocked(base, experts, backbone, images):
    """As near to the base as the expert is, or nearer; what is left of the difference is τ's own
    part along the symmetries: 11 to 13 % of ‖τ‖ in the twenty experts."""
    expert, other = experts[0], experts[1]
    one = locked(expert, seed=1)
    back = canonicalize(base, one)
    assert findings(base, [back]) == []
    step = far(expert, base)
    assert far(back, base) <= step * (1 + 1e-4)  # float32 weights
    assert far(back, expert) < 0.25 * step < 5 * step < far(one, expert)
    wanted = features(backbone, expert, images)
    assert (features(backbone, back, images) - wanted).abs().max() < 1e-4
    twice = canonicalize(base, locked(expert, seed=2))
    assert far(back, twice) < 1e-3 * step  # one representative of all that compute the same
    for method in ("weight_avg", "arithmetic", "tsv"):
        before, locks, after = (merge(base, [m, other], method) for m in (expert, one, back))
        share = 0.5 if method == "tsv" else 0.25  # it makes all directions equally long
        assert far(after, before) < share * far(before, base) < far(locks, before)
    assert all(torch.equal(canonicalize(base, expert)[n], expert[n]) for n in expert)


def test_heads_that_do_not_fit_are_refused(base, experts):
    one = locked(experts[0], seed=0)
    with pytest.raises(MergelibError, match="cannot be undone with 8 heads"):
        canonicalize(base, one, heads=8)
    with pytest.raises(MergelibError, match="5 heads do not divide the width 128"):
        canonicalize(base, one, heads=5)
    with pytest.raises(MergelibError, match="1 or more"):
        locked(experts[0], 0, condition=0.5)
    with pytest.raises(MergelibError, match="no part whose symmetries"):
        locked({"w": torch.eye(3)}, 0)


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory):
    """A small CLIP of transformers, fine-tuned by noise; its folder, and the base's."""
    torch.manual_seed(0)
    tower = {"hidden_size": 48, "num_attention_heads": 3, "intermediate_size": 96}
    tower |= {"num_hidden_layers": 2, "projection_dim": 32}
    config = transformers.CLIPConfig(
        text_config=tower | {"vocab_size": 50, "max_position_embeddings": 8},
        vision_config=tower | {"image_size": 32, "patch_size": 8},
        projection_dim=32,
    )
    model = transformers.CLIPModel(config).eval()
    folder = tmp_path_factory.mktemp("hugging_face")
    with torch.no_grad():
        for parameter in model.parameters():  # biases begin at zero, which would hide a mix-up
            parameter.add_(0.05 * torch.randn_like(parameter))
        model.save_pretrained(folder / "base")
        for parameter in model.parameters():
            parameter.add_(0.05 * parameter.std(correction=0) * torch.randn_like(parameter))
    model.save_pretrained(folder / "tuned")
    return model, folder


def test_a_folder_says_its_heads_and_a_lock_keeps_its_logits(hugging_face):
    model, folder = hugging_face
    state = locked(folder / "tuned", seed=4)
    inputs = {"input_ids": torch.arange(8).reshape(2, 4), "pixel_values": torch.randn(5, 3, 32, 32)}
    with torch.no_grad():
        before = model(**inputs).logits_per_image
        model.load_state_dict(state)
        after = model(**inputs).logits_per_image
    assert (before - after).abs().max() < 1e-4 * before.abs().max().clamp_min(1)
    assert torch.equal(before.argmax(1), after.argmax(1))
    (found,) = findings(folder / "base", [state])
    assert found.kind == "reparameterised" and len(found.tensors) == 4 * 6  # both towers
    assert findings(folder / "base", [folder / "tuned"]) == []
    back = canonicalize(folder / "base", state)
    plain = {n: t for n, t in load_tensors(folder / "tuned" / "model.safetensors").items()}
    assert back.keys() == plain.keys()
    assert far(back, plain) < 0.25 * far(state, plain)
    with pytest.raises(MergelibError, match="how many heads .* is not known"):
        canonicalize(load_tensors(folder / "base" / "model.safetensors"), state)


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
OTHERS = {
    "ViT": (lambda: transformers.ViTModel(transformers.ViTConfig(**SMALL)), (2, 2)),
    "DINOv2": (lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SMALL)), (2, 2)),
    "SigLIP": (
        lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SMALL)),
        (3, 3),  # the pooling at its end is another block
    ),
    "BERT": (lambda: transformers.BertModel(transformers.BertConfig(**SMALL)), (2, 2)),
    "Llama, heads that share K and V": (
        lambda: transformers.LlamaModel(
            transformers.LlamaConfig(**SMALL, num_key_value_heads=2, vocab_size=10)
        ),
        (0, 2),
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_parts_of_other_models_are_found_by_their_names(name):
    make, (attention, perceptron) = OTHERS[name]
    torch.manual_seed(0)
    state = make().state_dict()
    found = parts({n: tuple(t.shape) for n, t in state.items()})
    assert sum(part.attention for part in found) == attention
    assert sum(not part.attention for part in found) == perceptron
    noisy = {n: t + 0.02 * torch.randn_like(t) * t.std(correction=0) for n, t in state.items()}
    one = locked(noisy, seed=1, heads=4)
    (finding,) = findings(state, [one])
    assert finding.kind == "reparameterised"
    assert findings(state, [noisy]) == []
    back = canonicalize(state, one, heads=4)
    assert far(back, noisy) < far(noisy, state) < far(one, noisy)


def test_the_heads_of_clip_towers_are_those_of_open_clip():
    seen = 0
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        vision, text = config["vision_cfg"], config["text_cfg"]
        towers = []
        if isinstance(vision.get("layers"), int) and "timm_model_name" not in vision:
            heads = vision["width"] // vision.get("head_width", 64)
            towers.append(("", vision["width"], heads))
        if "heads" in text and text["width"] != 1152:  # SigLIP's, which says so in its config
            towers.append(("text.", text["width"], text["heads"]))
        for start, width, heads in towers:
            part = Part(f"{start}transformer.resblocks.0.attn", True, ())
            assert known_heads({}, part, width) == heads, name
            seen += 1
    assert seen > 100
    assert known_heads({}, Part("encoder.layers.0.self_attn", True, ()), 768) is None


def test_an_adapter_is_checked_for_equality_only(base, tmp_path):
    name = "transformer.resblocks.0.mlp.c_fc"
    for folder, size in (("zero", 0.0), ("large", 10.0)):
        (tmp_path / folder).mkdir()
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["c_fc"]}
        (tmp_path / folder / "adapter_config.json").write_text(json.dumps(config))
        factors = {"A": torch.randn(2, 128), "B": size * torch.randn(512, 2)}
        names = {f"base_model.model.{name}.lora_{k}.weight": t for k, t in factors.items()}
        save_file(names, tmp_path / folder / "adapter_model.safetensors")
    found = findings(base, [tmp_path / "zero", tmp_path / "large"])
    assert [(each.model, each.kind) for each in found] == [(0, "equal_to_base")]


def test_nan_is_refused_by_name(base, experts):
    name = "transformer.resblocks.1.mlp.c_fc.weight"
    broken = {**experts[0], name: experts[0][name].clone()}
    broken[name][3, 5] = math.nan
    with pytest.raises(MergelibError, match=name):
        findings(base, [broken])


def test_changes_are_classed():
    assert detect.is_rewritten([Change(0.9, 0.02)])
    assert not detect.is_rewritten([Change(0.9, 0.9)])  # another base
    assert not detect.is_rewritten([Change(0.3, 0.3)])  # trained for long
    assert not detect.is_rewritten([Change(1e-6, 1e-9)])  # rounding
    assert detect.is_rewritten([Change(0.9, 0.0)])


@pytest.fixture
def files(base, experts, tmp_path):
    states = {"base": base, "a": experts[0], "b": experts[1]}
    states["lock"] = locked(experts[0], seed=9)
    states["foreign"] = fresh(1)[0]
    for name, state in states.items():
        save_file(state, tmp_path / f"{name}.safetensors")
    return tmp_path


def test_merge_and_metrics_tell_and_go_on(files, capsys):
    def call(verb, *models, more=()):
        paths = [str(files / f"{name}.safetensors") for name in models]
        out = files / ("out.csv" if verb == "metrics" else "out.safetensors")
        out.unlink(missing_ok=True)
        words = ["--base", str(files / "base.safetensors"), "--models", *paths, "--out", str(out)]
        assert cli.main([verb, *words, *more]) == 0
        return capsys.readouterr().err, out

    plain, expected = call("merge", "a", "b", more=["--method", "weight_avg"])
    assert "note" not in plain
    wanted = load_tensors(expected)
    said, _ = call("merge", "lock", "b", more=["--method", "weight_avg"])
    assert "lock.safetensors was reparameterised: transformer.resblocks.0.attn" in said
    assert "--canonicalize" in said
    said, out = call("merge", "lock", "b", more=["--method", "weight_avg", "--canonicalize"])
    assert "reparameterised in 36 tensors, which is undone" in said
    base = load_tensors(files / "base.safetensors")
    assert far(load_tensors(out), wanted) < 0.25 * far(wanted, base)
    assert "canonicalize: true" in (files / "out.recipe.yaml").read_text()
    said, _ = call("metrics", "foreign", "a")
    assert "foreign.safetensors does not come from this base" in said
    said, _ = call("metrics", "a", "b")
    assert "note" not in said


def test_a_notebook_is_told_too(base, experts):
    one = locked(experts[0], seed=3)
    with pytest.warns(MergelibNote, match="model 0 was reparameterised"):
        ml.merge(base, [one, experts[1]], method="weight_avg")
    with pytest.warns(MergelibNote, match="which is undone"):
        merged = ml.merge(base, [one, experts[1]], method="weight_avg", canonicalize=True)
    wanted = ml.merge(base, [experts[0], experts[1]], method="weight_avg")
    assert far(merged, wanted) < 0.25 * far(wanted, base)
    with pytest.warns(MergelibNote, match="holds what model 0 holds"):
        ml.merge(base, [experts[0], dict(experts[0])], method="weight_avg")
    with pytest.warns(MergelibNote, match="does not come from this base"):
        ml.measure(base, {"a": experts[0], "b": fresh(1)[0]}, ["task_vector_l2_distance"])


def test_the_matrices_of_a_part_are_those_of_the_file(base):
    with opened(base) as weights:
        for part in parts(weights.shapes):
            first, *_, last = read(weights, part)
            name = part.rows[0].weight
            rows = base[name][: len(first)].double()
            assert torch.equal(first[:, :-1], rows)
            assert torch.equal(last, base[part.rows[-1].weight].T.double())
            some = read(weights, part, columns=7)
            assert torch.equal(some[0][:, :7], first[:, :7])
            assert torch.equal(some[0][:, -1], first[:, -1])
