"""Recipes: what they say, refuse and write; weights by tensor; mergekit's keys; model cards."""

import json
import re

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from mergelib.core.errors import MergelibError
from mergelib.core.yaml_files import parse_yaml
from mergelib.merging.card import RECIPE_FILE, card, texts, told
from mergelib.merging.layer import Layer
from mergelib.merging.methods.dare import draws, keep_mask
from mergelib.merging.recipe import ModelSpec, Recipe, parse, read, to_yaml, weights_of
from mergelib.merging.registry import METHODS
from mergelib.merging.weighting import checked, positions, value_at

OURS = {"base": "base", "models": ["a", "b"], "method": "arithmetic"}
THEIRS = {
    "merge_method": "task_arithmetic",
    "base_model": "base",
    "models": [
        {"model": "a", "parameters": {"weight": 0.25}},
        {"model": "b", "parameters": {"weight": 0.5}},
    ],
}


def parsed(raw, **more):
    return parse(yaml.safe_dump({**raw, **more}))


def models_of(*weights, **parameters):
    names = "abcdef"
    return [
        {"model": name, "parameters": {"weight": weight, **parameters}}
        for name, weight in zip(names, weights, strict=False)
    ]


def test_a_plain_recipe_has_defaults():
    recipe = parsed(OURS)
    assert recipe == Recipe("base", [ModelSpec("a"), ModelSpec("b")], "arithmetic")
    assert recipe.settings == {"alpha": 0.3} and recipe.torch_dtype is None
    assert not recipe.weighted
    averaged = parsed(OURS, method="weight_avg")
    assert averaged.normalize and not parsed(OURS, method="weight_avg", normalize=False).normalize


def test_a_recipe_says_everything():
    recipe = parsed(
        OURS,
        models=["a", {"model": "b", "weight": 0.5}],
        parameters={"alpha": 2},
        edition="paper",
        seed=3,
        dtype="bfloat16",
        only=["attn"],
        exclude=["bias"],
    )
    assert recipe.models == [ModelSpec("a", 1.0), ModelSpec("b", 0.5)] and recipe.weighted
    assert (recipe.edition, recipe.seed, recipe.torch_dtype) == ("paper", 3, torch.bfloat16)
    assert recipe.settings == {"alpha": 2}


@pytest.mark.parametrize(
    "weight",
    [
        0.4,
        1,
        -1e-5,
        [0.0, 0.5, 1],
        [{"filter": "attn", "value": [0, 1.5]}, {"filter": "*", "value": 2}],
        [{"filter": "ключ: # '", "value": 1e-7}, {"value": 2}],
    ],
)
@pytest.mark.parametrize("method, parameters", [("ties", {"density": 1e-5}), ("tall_masks", {})])
def test_what_is_written_is_read_back(tmp_path, weight, method, parameters):
    recipe = parsed(
        OURS,
        method=method,
        models=[{"model": "a", "weight": weight}, {"model": "b", "weight": weight}],
        parameters=parameters,
        exclude=["*: x"],
        dtype="float8_e4m3fn",
    )
    assert parse(to_yaml(recipe)) == recipe
    assert "&" not in to_yaml(recipe)
    (tmp_path / "r.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    assert read(tmp_path / "r.yaml") == recipe
    assert parse(to_yaml(parsed(OURS))) == parsed(OURS)


def test_paths_are_those_of_the_recipes_folder_where_they_are_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes" / "near").mkdir(parents=True)
    (tmp_path / "far").mkdir()
    (tmp_path / "recipes" / "r.yaml").write_text(
        "base: near\nmodels: [far, org/name, /absolute/x]\nmethod: tsv\n"
    )
    recipe = read("recipes/r.yaml")
    assert recipe.base == "recipes/near"
    assert [model.path for model in recipe.models] == ["far", "org/name", "/absolute/x"]
    (tmp_path / "recipes" / "again.yaml").write_text(to_yaml(recipe))
    assert read("recipes/again.yaml") == recipe


WRONG = {
    "wants keys and values, got list": "[1]",
    "cannot be used as YAML": "a: [",
    "'seed' is there twice": "base: b\nseed: 1\nseed: 2\n",
    "'alpha' is there twice": "parameters: {alpha: 1, alpha: 2}",
    "key 'models' is missing": "base: b\nmethod: tsv",
    "key 'base' is missing": "base:\nmodels: [a]\nmethod: tsv",
    "unknown key 'bse'; did you mean 'base'": "bse: b",
    "'models' must be a list of models": "base: b\nmodels: a\nmethod: tsv",
    r"models\[1\] must be a path, or have": "base: b\nmodels: [a, {model: c, w: 1}]\nmethod: tsv",
    r"models\[0\] must be a path, not 3": "base: b\nmodels: [{model: 3}]\nmethod: tsv",
    "unknown merging method 'tvs'; did you mean 'tsv'": "base: b\nmodels: [a]\nmethod: tvs",
    "must be a name": "base: b\nmodels: [a]\nmethod: [tsv]",
    "unknown tsv parameter 'beta'": "base: b\nmodels: [a]\nmethod: tsv\nparameters: {beta: 1}",
    "'alpha' must be a finite": "base: b\nmodels: [a]\nmethod: tsv\nparameters: {alpha: 1e-4}",
    "unknown edition 'best'": "base: b\nmodels: [a]\nmethod: tsv\nedition: best",
    "'seed' must be a whole": "base: b\nmodels: [a]\nmethod: tsv\nseed: 1.5",
    "'normalize' must be true": "base: b\nmodels: [a]\nmethod: tsv\nnormalize: 1",
    "unknown dtype 'int8'": "base: b\nmodels: [a]\nmethod: tsv\ndtype: int8",
    "'only' must be a list": "base: b\nmodels: [a]\nmethod: tsv\nonly: attn",
}


@pytest.mark.parametrize("message", WRONG)
def test_a_mistake_is_named_with_the_file(tmp_path, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(WRONG[message])
    with pytest.raises(MergelibError, match=f"wrong.yaml.*{message}"):
        read(path)


def test_files_that_are_no_recipes(tmp_path):
    with pytest.raises(MergelibError, match="none.yaml is missing"):
        read(tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MergelibError, match="b.yaml is no UTF-8 text"):
        read(tmp_path / "b.yaml")
    for text in ("? [1]\n: 2", "a: !!python/object:os.system x", "a: 2001-99-99", "[" * 9999):
        with pytest.raises(
            MergelibError, match="here (cannot be used as YAML|is nested too deeply)"
        ):
            parse_yaml(text, "here")
    assert parse_yaml("a: &x {b: 1}\nc: {<<: *x, d: 2}", "here")["c"] == {"b": 1, "d": 2}


@pytest.mark.parametrize(
    "weight, message",
    [
        ("0.5", "must be a number"),
        (True, "must be a number"),
        (float("inf"), "must be a number"),
        ([], "must not be an empty list"),
        ([1, "2"], "must be a number, a list of numbers"),
        ([{"filter": "a"}], "an entry has filter and value"),
        ([{"value": 1, "filtre": "a"}], "an entry has filter and value"),
        ([{"value": [], "filter": "a"}], "a value is a number"),
        ([{"value": 1, "filter": 3}], "a filter is part of a name"),
        ([{"value": 1}, {"value": 2, "filter": "a"}], "never count: put it last"),
        ([{"value": 1, "filter": "*"}, {"value": 2}], "never count: put it last"),
    ],
)
def test_weights_that_are_none(weight, message):
    with pytest.raises(MergelibError, match=f"here: .*{message}"):
        checked(weight, "here")


LLAMA = [
    "lm_head.weight",
    "model.embed_tokens.weight",
    *[f"model.layers.{i}.{part}.weight" for i in range(5) for part in ("self_attn.q", "mlp.up")],
    "model.norm.weight",
]


def literal_weight(weight, name, depth):
    """The weight of a Llama's tensor, by a loop that follows the definition word for word."""
    number = re.search(r"layers\.(\d+)", name)
    place = int(number[1]) / (depth - 1) if number else 0.0
    value = weight
    if isinstance(weight, list) and isinstance(weight[0], dict):
        for entry in weight:
            if entry.get("filter") in (None, "*") or entry["filter"] in name:
                value = entry["value"]
                break
    if isinstance(value, list):
        if len(value) == 1:
            return value[0]
        width = 1 / (len(value) - 1)
        for i in range(len(value) - 1):
            if i * width <= place <= (i + 1) * width + 1e-12:
                share = (place - i * width) / width
                return (1 - share) * value[i] + share * value[i + 1]
    return value


@pytest.mark.parametrize("normalize", [False, True])
def test_weights_are_those_of_a_literal_loop(normalize):
    weights = [
        0.3,
        [0.2, 0.8],
        [1.0, 0.5, 2.0],
        [0.1, 0.5, 0.4, 0.9, 0.3, 0.2, 0.7],
        [0.25],
        [{"filter": "self_attn", "value": [0, 1]}, {"filter": "mlp", "value": 3}, {"value": 0.5}],
        [{"filter": "layers.3", "value": 7}, {"filter": "*", "value": [1, 2]}],
    ]
    models = [{"model": f"m{i}", "weight": weight} for i, weight in enumerate(weights)]
    recipe = parsed(OURS, models=models, normalize=normalize)
    found = weights_of(recipe, LLAMA)
    assert list(found) == LLAMA
    for name, row in found.items():
        expected = [literal_weight(weight, name, 5) for weight in weights]
        if normalize:
            mean = sum(expected) / len(expected)
            expected = [value / mean for value in expected]
        assert row == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_what_has_no_weight():
    by_filter = [{"filter": "self_attn", "value": 1}]
    recipe = parsed(OURS, models=[{"model": "a", "weight": by_filter}])
    with pytest.raises(MergelibError, match="no weight for tensor 'lm_head.weight': add an entry"):
        weights_of(recipe, LLAMA)
    with pytest.raises(MergelibError, match="filter 'self_attn' is part of no tensor's name"):
        weights_of(recipe, ["a", "b"])
    recipe = parsed(OURS, models=[{"model": "a", "weight": [0, 1]}])
    with pytest.raises(MergelibError, match="no tensor's name has a numbered block"):
        weights_of(recipe, ["s1.b1.conv.weight", "head.1.bias"])
    opposed = [{"model": "a", "weight": 1}, {"model": "b", "weight": -1}]
    with pytest.raises(MergelibError, match="the weights of tensor 'x' sum to 0"):
        weights_of(parsed(OURS, models=opposed, normalize=True), ["x"])
    assert weights_of(parsed(OURS, models=opposed), ["x"]) == {"x": [1.0, -1.0]}


def test_places_along_towers_and_stages():
    found = positions(
        [
            "visual.conv1.weight",
            "visual.transformer.resblocks.0.ln_1.bias",
            "visual.transformer.resblocks.1.mlp.c_fc.bias",
            "visual.transformer.resblocks.2.ln_1.bias",
            "visual.ln_post.bias",
            "visual.proj",
            "transformer.resblocks.0.ln_1.bias",
            "transformer.resblocks.1.ln_1.bias",
            "token_embedding.weight",
            "logit_scale",
        ]
    )
    assert list(found.values()) == [0, 0, 0.5, 1, 0, 0, 0, 1, 0, 0]
    stages = [f"stages.{i}.layers.{j}.a" for i in range(2) for j in range(2)]
    assert list(positions(stages).values()) == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert positions(["layer1.0.conv1.weight", "layer2.0.a", "layer3.1.a", "conv1.weight"]) == {
        "layer1.0.conv1.weight": 0,
        "layer2.0.a": 0.5,
        "layer3.1.a": 1,
        "conv1.weight": 0,
    }
    assert positions(["h.0.a", "wte.weight", "head.1.a"]) == {
        "h.0.a": 1,
        "wte.weight": 0,
        "head.1.a": 0,
    }
    assert value_at([1.0, 3.0], "x", 0.25) == 1.5


def merged(recipe, vectors, name="w"):
    """Δ of one tensor: the method on the weighted task vectors."""
    row = weights_of(recipe, [name])[name]
    layer = Layer.of(torch.stack([w * v for w, v in zip(row, vectors, strict=True)]), name)
    method = METHODS[recipe.method]
    params = method.check(recipe.settings) | ({"seed": recipe.seed} if method.random else {})
    ((_, delta),) = method.blocks(layer, **params)
    return delta


@pytest.fixture(scope="module")
def vectors():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 6, 5, generator=generator, dtype=torch.float64)


def near(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("base", ["base", None])
def test_linear_is_the_weighted_mean_of_the_models(vectors, base):
    raw = {"merge_method": "linear", "base_model": base, "models": models_of(1, 0.5, 0.1)}
    recipe = parsed(raw)
    assert (recipe.method, recipe.base) == ("weight_avg", base or "a")
    assert len(recipe.models) == 3
    start = torch.ones(6, 5, dtype=torch.float64)
    if base is None:  # the first model is the base, its task vector 0
        start, vectors = start + vectors[0], vectors - vectors[0]
    tuned = start + vectors
    mean = (1 * tuned[0] + 0.5 * tuned[1] + 0.1 * tuned[2]) / 1.6
    near(start + merged(recipe, vectors), mean)


@pytest.mark.parametrize("given, size", [({}, 1.0), ({"lambda": 0.7}, 0.7)])
@pytest.mark.parametrize("normalize", [None, False, True])
def test_task_arithmetic(vectors, normalize, given, size):
    parameters = given | ({} if normalize is None else {"normalize": normalize})
    recipe = parsed(THEIRS, models=models_of(0.5, -0.25, 0.9), parameters=parameters)
    total = 0.5 * vectors[0] - 0.25 * vectors[1] + 0.9 * vectors[2]
    near(merged(recipe, vectors), size * total / (0.5 - 0.25 + 0.9 if normalize else 1))


@pytest.mark.parametrize("weight", [None, 1, 0.3])
def test_ties_with_equal_weights(vectors, weight):
    models = models_of(*[weight] * 3)
    if weight is None:
        models = [{"model": m["model"]} for m in models]
    raw = {**THEIRS, "merge_method": "ties", "models": [{"model": "base"}, *models]}
    recipe = parsed(raw, parameters={"density": 0.5, "normalize": True, "int8_mask": True})
    assert [each.path for each in recipe.models] == ["a", "b", "c"]
    expected = torch.zeros(30, dtype=torch.float64)
    trimmed = []
    for vector in vectors.reshape(3, 30):
        kept = torch.argsort(vector.abs(), descending=True)[:15]
        trimmed.append(torch.zeros_like(vector).index_copy(0, kept, vector[kept]))
    for i in range(30):
        values = [float(v[i]) * (weight or 1) for v in trimmed]
        sign = 1 if sum(values) >= 0 else -1
        agree = [value for value in values if value * sign > 0]
        if agree:
            expected[i] = sum(agree) / (len(agree) * (weight or 1))
    near(merged(recipe, vectors), expected.reshape(6, 5))


@pytest.mark.parametrize("normalize", [False, True])
def test_dare_linear(vectors, normalize):
    models = models_of(0.5, 0.2, 0.9, density=0.6)
    raw = {**THEIRS, "merge_method": "dare_linear", "models": models, "seed": 4}
    recipe = parsed(raw, parameters={"lambda": 1.5, "normalize": normalize, "rescale": True})
    assert recipe.parameters["drop_rate"] == 0.4
    expected = torch.zeros(6, 5, dtype=torch.float64)
    for t, weight in enumerate([0.5, 0.2, 0.9]):
        expected += weight * vectors[t] * keep_mask((6, 5), 0.4, draws(4, "w", t)) / 0.6
    near(merged(recipe, vectors), 1.5 * expected / (1.6 if normalize else 1))


def test_other_keys_of_theirs():
    recipe = parsed(THEIRS, dtype="float32", out_dtype="bfloat16", tokenizer_source="base")
    assert recipe.dtype == "bfloat16"
    assert parsed(THEIRS, dtype="float16", tokenizer={"source": "base"}).dtype == "float16"
    shared = parsed(THEIRS, models=[{"model": "a"}, {"model": "b"}], parameters={"weight": [0, 1]})
    assert [each.weight for each in shared.models] == [[0, 1], [0, 1]]
    assert parse(to_yaml(shared)) == shared
    ours = parsed(THEIRS, merge_method="tsv", parameters={"alpha": 0.8}, edition="paper", seed=1)
    assert (ours.method, ours.parameters, ours.edition) == ("tsv", {"alpha": 0.8}, "paper")
    assert [each.weight for each in ours.models] == [0.25, 0.5]
    models = [{"model": "base"}, {"model": "a"}]
    assert parsed(THEIRS, base_model="./base", models=models).models == [ModelSpec("a")]


UNNORMALIZED = {"parameters": {"normalize": False}}
REFUSED = [
    ("slices of layers cannot be merged", {"slices": []}),
    ("the tokenizer is the base's", {"tokenizer_source": "union"}),
    ("the tokenizer is the base's", {"tokenizer": {"source": "base", "tokens": {}}}),
    ("the tokenizer is", {"tokenizer_source": "union", "tokenizer": {"source": "base"}}),
    ("lambda must be one number", {"merge_method": "dare_linear", "parameters": {"lambda": True}}),
    ("density must be one", {"merge_method": "dare_linear", "parameters": {"density": True}}),
    ("unknown key 'chat_template'", {"chat_template": "auto"}),
    ("unknown key 'base_modell'; did you mean 'base_model'", {"base_modell": "x"}),
    ("unknown merge_method 'dare_ties'.*Known: linear", {"merge_method": "dare_ties"}),
    ("unknown merge_method 'slerp'", {"merge_method": "slerp"}),
    ("merge_method must be a name", {"merge_method": ["ties"]}),
    ("key 'base' is missing", {"base_model": None}),
    ("'models' must be a list", {"models": []}),
    (r"models\[0\] must have the keys", {"models": ["a"]}),
    (r"models\[0\]: unknown parameter 'gamma'", {"models": models_of(1, gamma=0.1)}),
    ("task_arithmetic: unknown parameter 't'", {"parameters": {"t": 0.5}}),
    ("task_arithmetic: unknown parameter 'rescale'", {"parameters": {"rescale": True}}),
    ("task_arithmetic takes no density", {"models": models_of(1, density=0.5)}),
    ("task_arithmetic takes no density", {"parameters": {"density": 0.5}}),
    ("normalize must be true or false", {"parameters": {"normalize": 1}}),
    ("parameters must be keys and values", {"parameters": [1]}),
    ("lambda must be one number", {"parameters": {"lambda": [0, 1]}}),
    ("linear: unknown parameter 'lambda'", {"merge_method": "linear", "parameters": {"lambda": 1}}),
    ("linear is supported with normalize", {"merge_method": "linear", **UNNORMALIZED}),
    ("ties is supported with normalize", {"merge_method": "ties", **UNNORMALIZED}),
    ("ties is supported with equal weights", {"merge_method": "ties"}),
    ("density must be one", {"merge_method": "dare_linear", "parameters": {"density": [0, 1]}}),
    ("rescale: true alone", {"merge_method": "dare_linear", "parameters": {"rescale": False}}),
    ("'drop_rate' must be", {"merge_method": "dare_linear", "parameters": {"density": 0}}),
    ("unknown tsv parameter 'lambda'", {"merge_method": "tsv", "parameters": {"lambda": 1}}),
    ("unknown dtype 'int4'", {"out_dtype": "int4"}),
]  # fmt: skip


@pytest.mark.parametrize("message, change", REFUSED, ids=[json.dumps(c) for _, c in REFUSED])
def test_what_cannot_be_followed_is_refused_by_name(message, change):
    with pytest.raises(MergelibError, match=message):
        parsed(THEIRS, **change)


def test_densities_that_differ_are_refused():
    models = [*models_of(1, density=0.5), {"model": "b", "parameters": {"density": 0.6}}]
    for method in ("ties", "dare_linear"):
        with pytest.raises(MergelibError, match="density must be one number, the same for all"):
            parsed(THEIRS, merge_method=method, models=models)


def test_a_card_tells_the_merge_without_the_machine(tmp_path):
    hub = f"{tmp_path}/hub/models--org--tuned/snapshots/abc123"
    models = [
        {"model": f"{tmp_path}/cars/model.safetensors", "weight": [0.1, 0.9]},
        {"model": f"{tmp_path}/sun/model.safetensors"},
        {"model": hub, "weight": [{"filter": "attn", "value": 1}, {"value": 0}]},
    ]
    recipe = parsed(
        OURS, base="org/base", models=models, method="dare", parameters={"alpha": 0.5}, seed=7
    )
    text = card(recipe, "merged", "transformers")
    assert str(tmp_path) not in text and "/snapshots" not in text
    assert ModelCard(text).data.library_name == "transformers"
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "base_model": ["org/base", "cars/model.safetensors", "sun/model.safetensors", "org/tuned"],
        "tags": ["merge", "mergelib"],
        "library_name": "transformers",
    }
    assert "# merged" in body and "2311.03099" in body and "seed 7" in body
    assert "| `cars/model.safetensors` | [0.1, 0.9] over the layers |" in body
    assert "| `sun/model.safetensors` | 1.0 |" in body
    assert "`attn`: 1; `*`: 0" in body and "- `drop_rate`: 0.9" in body
    assert 'AutoModel.from_pretrained("merged"' in body
    (shown,) = re.findall(r"```yaml\n(.*?)```", body, re.DOTALL)
    assert parse(shown).models[2] == ModelSpec("org/tuned", recipe.models[2].weight)
    held = texts(recipe, "merged")
    assert parse(held[RECIPE_FILE]) == recipe
    assert "library_name" not in held["README.md"] and "load_file" in held["README.md"]
    compile(re.findall(r"```python\n(.*?)```", body, re.DOTALL)[0], "card", "exec")


def test_paths_are_told_by_their_shortest_different_ends():
    assert told(["/a/base", "/a/x", "rel/y"]) == ["base", "x", "rel/y"]
    assert told(["/a/m", "/b/m", "/b/n"]) == ["a/m", "b/m", "b/n"]
    assert told(["/a/m", "/a/m"]) == ["m", "m"]
    assert told(["/m", "/a/m"]) == ["/m", "a/m"]
    assert told(["m"]) == ["m"]
