"""The 28 metrics against literal formulas, identities, symmetry, ranges, editions, bad input."""

import json
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch

from mergelib.core.errors import MergelibError
from mergelib.core.store import save_tensors
from mergelib.metrics.inputs import Inputs, read_inputs
from mergelib.metrics.registry import METRICS, published_metrics
from mergelib.metrics.table import pairwise
from mergelib.metrics.weights import summarize

pytestmark = pytest.mark.numeric

TASKS = ["ant", "bee", "cow", "dog"]
PUBLISHED = published_metrics()
PUBLISHED_ROWS = [METRICS[name] for name in PUBLISHED]
SHAPES = {
    "attn.weight": (24, 12),
    "mlp.wide": (12, 60),
    "mlp.large": (104, 107),  # more than 100 singular values
    "positions": (5, 16),  # fewer than 10
    "conv": (6, 3, 2, 2),
    "bias": (24,),
    "scale": (),
}
MATRICES = [name for name, shape in SHAPES.items() if len(shape) == 2]


# --- The literal reference: the published formulas, pair by pair, on numpy arrays ---------------


def literal_effective_rank(a, b):
    s = np.linalg.svd(np.stack([a.ravel(), b.ravel()]), compute_uv=False)
    p = s / (s.sum() + 1e-10)
    return np.exp(-np.sum(p * np.log(p + 1e-10)))


def literal_geometry(a, b):
    lengths = np.linalg.norm(a), np.linalg.norm(b)
    cosine = a @ b / (max(lengths[0], 1e-8) * max(lengths[1], 1e-8))
    ratio = 0.0 if min(lengths) < 1e-8 else min(lengths) / max(lengths)
    return cosine, np.linalg.norm(a - b), a @ b, ratio


def literal_subspace(a, b, edition, zeros):
    """a, b: lists of matrices."""
    rows = []
    extra = [np.zeros((40, 30))] * zeros if edition == "paper" else []
    for p, q in zip([*a, *extra], [*b, *extra], strict=True):
        if edition == "corrected" and not (p.any() and q.any()):
            continue
        k = min(10, *p.shape)
        u1, s1, vt1 = np.linalg.svd(p, full_matrices=False)
        u2, s2, vt2 = np.linalg.svd(q, full_matrices=False)
        n1, n2 = s1[:100] / (s1.sum() + 1e-8), s2[:100] / (s2.sum() + 1e-8)
        values = n1 @ n2 / (max(np.linalg.norm(n1), 1e-8) * max(np.linalg.norm(n2), 1e-8))
        left = np.linalg.norm(u1[:, :k].T @ u2[:, :k])
        top = vt1[:k] @ vt2[:k].T
        bottom = vt1[-k:] @ vt2[-k:].T
        rows.append(
            [
                values,
                left / (k if edition == "paper" else np.sqrt(k)),
                np.linalg.norm(top) / np.sqrt(k),
                np.linalg.norm(bottom) / np.sqrt(k),
                np.mean(np.linalg.svd(top, compute_uv=False) ** 2),
                np.mean(np.linalg.svd(bottom, compute_uv=False) ** 2),
            ]
        )
    return np.mean(rows, axis=0)


def literal(base, one, two, data_one, data_two, edition="corrected", zeros=0):
    """All metrics of one pair, in the published order within a category."""
    taus = [
        {n: m[n].numpy().astype(np.float64) - base[n].numpy().astype(np.float64) for n in base}
        for m in (one, two)
    ]
    a, b = (np.concatenate([t[n].ravel() for n in sorted(t)]) for t in taus)
    row = {}
    cosine, away, dot, ratio = literal_geometry(a, b)
    row["task_vector_cosine_similarity"] = cosine
    row["task_vector_l2_distance"] = away
    row["task_vector_dot_product"] = dot
    row["weight_space_angle"] = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    row["task_vector_magnitude_ratio"] = ratio

    s1, s2 = np.linalg.svd(np.stack([a, b]), compute_uv=False)
    rank = literal_effective_rank(a, b)
    total, weights = 0.0, 0.0
    for name in base:
        p, q = taus[0][name], taus[1][name]
        if np.linalg.norm(p) < 1e-10 or np.linalg.norm(q) < 1e-10:
            continue
        weight = np.linalg.norm(p) + np.linalg.norm(q)
        total += weight * literal_effective_rank(p, q)
        weights += weight
    layers = total / weights if weights else 2.0
    row["effective_rank"] = rank
    row["effective_rank_mergeability_score"] = min(max(2 - rank, 0), 1)
    row["stable_rank"] = (s1 + s2) ** 2 / (s1**2 + s2**2 + 1e-10)
    row["spectral_gap"] = (s1 - s2) / (s1 + 1e-10)
    row["singular_value_ratio"] = s2 / (s1 + 1e-10)
    row["layerwise_effective_rank"] = layers
    row["layerwise_effective_rank_mergeability_score"] = min(max(2 - layers, 0), 1)

    matrices = [[t[n] for n in t if t[n].ndim == 2] for t in taus]
    found = literal_subspace(*matrices, edition, zeros)
    for name, value in zip(
        [
            "singular_value_overlap",
            "subspace_overlap",
            "right_subspace_overlap_top_k",
            "right_subspace_overlap_bottom_k",
            "interaction_matrix_overlap_top_k",
            "interaction_matrix_overlap_bottom_k",
        ],
        found,
        strict=True,
    ):
        row[name] = value

    kinds = ["cosine_similarity", "l2_distance", "dot_product", "magnitude_ratio"]
    geometry = [literal_geometry(p, q) for p, q in zip(data_one, data_two, strict=True)]
    for kind, value in zip(kinds, geometry[0], strict=True):
        row[f"activation_{kind}"] = value
    for source, values in zip(["encoder", "input"], geometry[1:], strict=True):
        for kind, value in zip(kinds[:3], values[:3], strict=True):
            row[f"{source}_gradient_{kind}"] = value
    return row


# --- Models ---------------------------------------------------------------------------------------


def make_models(seed=0, count=4):
    """A base and models whose task vectors share a part, as float32 tensors."""
    generator = torch.Generator().manual_seed(seed)

    def draw():
        return {n: torch.randn(shape, generator=generator) for n, shape in SHAPES.items()}

    base, common = draw(), draw()
    models = []
    for t in range(count):
        own = draw()
        models.append({n: base[n] + 0.02 * (1 + t) * (own[n] + common[n]) for n in base})
    return base, models


def make_data(seed=1, count=4):
    """Activation, encoder gradient (two tensors) and input gradient of each model."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(8, generator=generator)
    return [
        {
            "activation": shared + 0.3 * torch.randn(8, generator=generator),
            "encoder_gradient/conv": torch.randn(6, 3, 2, 2, generator=generator),
            "encoder_gradient/bias": torch.randn(24, generator=generator),
            "input_gradient": torch.randn(4, 3, 5, 5, generator=generator),
        }
        for _ in range(count)
    ]


def flat_data(data):
    encoder = [data["encoder_gradient/conv"], data["encoder_gradient/bias"]]
    return [
        data["activation"].double().numpy(),
        torch.cat([part.flatten() for part in encoder]).double().numpy(),
        data["input_gradient"].flatten().double().numpy(),
    ]


def gather(base, models, data, **options) -> Inputs:
    summaries = [summarize(base, m) | d for m, d in zip(models, data, strict=True)]
    return read_inputs(base, models, summaries, **options)


@pytest.fixture(scope="module")
def world():
    base, models = make_models()
    return base, models, make_data()


@pytest.fixture(scope="module")
def table(world):
    return pairwise(gather(*world), TASKS)


# --- Agreement with the formulas ------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_metric_is_its_formula(world, table, name):
    base, models, data = world
    flats = [flat_data(d) for d in data]
    expected = [
        literal(base, models[i], models[j], flats[i], flats[j])[name]
        for i, j in combinations(range(4), 2)
    ]
    np.testing.assert_allclose(table[name], expected, rtol=1e-6, atol=1e-7)


def test_paper_edition_is_its_formula(world):
    base, models, data = world
    flats = [flat_data(d) for d in data]
    found = pairwise(gather(*world, zero_matrices=3), TASKS, edition="paper")
    for row, (i, j) in enumerate(combinations(range(4), 2)):
        expected = literal(base, models[i], models[j], flats[i], flats[j], "paper", 3)
        for name in PUBLISHED:
            np.testing.assert_allclose(
                found[name][row], expected[name], rtol=1e-6, atol=1e-7, err_msg=name
            )


def test_files_give_the_same_table(world, table, tmp_path):
    base, models, data = world
    save_tensors(tmp_path / "base.safetensors", base)
    checkpoints, summaries = [], []
    for t, (model, extra) in enumerate(zip(models, data, strict=True)):
        checkpoints.append(tmp_path / f"{t}.safetensors")
        save_tensors(checkpoints[-1], model)
        summaries.append(tmp_path / f"{t}.summary.safetensors")
        kept = summarize(tmp_path / "base.safetensors", checkpoints[-1])
        save_tensors(summaries[-1], kept | extra)
    found = pairwise(read_inputs(tmp_path / "base.safetensors", checkpoints, summaries), TASKS)
    assert found.equals(table)


def test_summary_holds_the_ends_of_the_svd(world):
    base, models, _ = world
    kept = summarize(base, models[0])
    assert {key.split("/")[1] for key in kept} == set(MATRICES)
    for name in MATRICES:
        tau = (models[0][name].double() - base[name].double()).numpy()
        u, s, vt = np.linalg.svd(tau, full_matrices=False)
        k = min(10, *tau.shape)
        np.testing.assert_allclose(kept[f"sigma/{name}"], s[:100], rtol=1e-12)
        assert kept[f"sigma/{name}"].dtype == torch.float64
        for key, basis in {
            "u_top": u[:, :k],
            "v_top": vt[:k].T,
            "u_bottom": u[:, -k:],
            "v_bottom": vt[-k:].T,
        }.items():
            assert kept[f"{key}/{name}"].dtype == torch.float32
            held = kept[f"{key}/{name}"].numpy()
            assert held.shape == basis.shape
            signs = np.sign((held * basis).sum(axis=0))
            np.testing.assert_allclose(held * signs, basis, atol=1e-7)


# --- The table ------------------------------------------------------------------------------------


def test_table_has_the_schema(table):
    assert len(PUBLISHED) == 28
    sizes = Counter(row.category for row in PUBLISHED_ROWS)
    assert sizes == {
        "task_vector": 5,
        "effective_rank": 7,
        "subspace": 6,
        "activation": 4,
        "gradient": 6,
    }
    assert list(table.columns) == ["task_a", "task_b", *PUBLISHED]
    assert list(zip(table.task_a, table.task_b, strict=True)) == list(combinations(TASKS, 2))
    assert (table.dtypes.iloc[2:] == np.float64).all()
    assert np.isfinite(table.iloc[:, 2:].to_numpy()).all()


def test_names_select_columns_in_table_order(world, table):
    found = pairwise(gather(*world), TASKS, names=["stable_rank", "weight_space_angle"])
    assert list(found.columns) == ["task_a", "task_b", "weight_space_angle", "stable_rank"]
    assert found.equals(table[found.columns])


@pytest.mark.parametrize("name", PUBLISHED)
def test_range_and_symmetry(world, name):
    row = METRICS[name]
    for edition in ("corrected", "paper"):
        values = row(gather(*world), edition)
        assert values.shape == (4, 4)
        assert row.symmetric
        np.testing.assert_allclose(values, values.T, rtol=1e-12, atol=1e-12)
        assert values.min() >= row.range[0] - 1e-6 and values.max() <= row.range[1] + 1e-6


@pytest.mark.parametrize("order", [(3, 1, 0, 2), (1, 0, 3, 2)])
def test_permuting_models_permutes_the_table(world, order):
    base, models, data = world
    x = gather(base, models, data)
    y = gather(base, [models[t] for t in order], [data[t] for t in order])
    for name in PUBLISHED:
        before, after = METRICS[name](x), METRICS[name](y)
        # A distance of 0 on the diagonal is the root of a rounding error: 1e-7 absolute.
        np.testing.assert_allclose(
            after, before[np.ix_(order, order)], rtol=1e-9, atol=1e-7, err_msg=name
        )


def test_a_model_with_itself(world):
    base, models, data = world
    x = gather(base, [models[0], models[0]], [data[0], data[0]])
    row = pairwise(x, ["one", "two"]).iloc[0]
    ones = [n for n in PUBLISHED if "cosine" in n or "ratio" in n or "overlap" in n or "rank" in n]
    for name in ones:
        value = 0 if name == "singular_value_ratio" else 1
        assert row[name] == pytest.approx(value, abs=2e-6), name
    for name in PUBLISHED:
        if "distance" in name:
            assert row[name] == pytest.approx(0, abs=1e-6), name
    assert row["weight_space_angle"] == pytest.approx(0, abs=1e-5)
    assert row["spectral_gap"] == pytest.approx(1, abs=1e-6)


def test_opposite_and_orthogonal_task_vectors():
    base = {"w": torch.zeros(4, 4)}
    first = torch.zeros(4, 4)
    first[0, 0] = 3.0
    second = torch.zeros(4, 4)
    second[1, 1] = 3.0
    models = [{"w": first}, {"w": second}, {"w": -first}]
    x = read_inputs(base, models, [summarize(base, m) for m in models])
    names = [n for n in PUBLISHED if METRICS[n].category in ("task_vector", "effective_rank")]
    orthogonal, opposite, _ = (row for _, row in pairwise(x, ["a", "b", "c"], names).iterrows())
    assert orthogonal["weight_space_angle"] == pytest.approx(90)
    assert orthogonal["task_vector_l2_distance"] == pytest.approx(3 * np.sqrt(2))
    assert orthogonal["effective_rank"] == pytest.approx(2)
    assert orthogonal["stable_rank"] == pytest.approx(2)
    assert orthogonal["effective_rank_mergeability_score"] == pytest.approx(0, abs=1e-8)
    assert opposite["weight_space_angle"] == pytest.approx(180)
    assert opposite["effective_rank"] == pytest.approx(1)


# --- Identities -----------------------------------------------------------------------------------


def test_redundancy_identities(table):
    t = table
    c, r = t["task_vector_cosine_similarity"], t["task_vector_magnitude_ratio"]
    v = t["singular_value_ratio"]
    np.testing.assert_allclose(t["weight_space_angle"], np.degrees(np.arccos(c)), rtol=1e-12)
    np.testing.assert_allclose(t["spectral_gap"], 1 - v, atol=1e-8)
    np.testing.assert_allclose(t["stable_rank"], (1 + v) ** 2 / (1 + v**2), atol=1e-8)
    p = np.stack([1 / (1 + v), v / (1 + v)])
    np.testing.assert_allclose(t["effective_rank"], np.exp(-(p * np.log(p)).sum(0)), atol=1e-8)
    for prefix in ("", "layerwise_"):
        rank, score = f"{prefix}effective_rank", f"{prefix}effective_rank_mergeability_score"
        np.testing.assert_allclose(t[score], 2 - t[rank], atol=1e-12)
    s = r + 1 / r
    root = np.sqrt(s**2 - 4 * (1 - c**2))
    np.testing.assert_allclose(v**2, (s - root) / (s + root), rtol=1e-8)
    for kind in ("task_vector", "activation"):
        dot, ratio = t[f"{kind}_dot_product"], t[f"{kind}_magnitude_ratio"]
        product = dot / t[f"{kind}_cosine_similarity"]  # ‖a‖ ‖b‖
        squared = product * (ratio + 1 / ratio) - 2 * dot
        np.testing.assert_allclose(t[f"{kind}_l2_distance"] ** 2, squared, rtol=1e-9)


def test_duplicates_name_earlier_known_metrics_and_end():
    def roots(name):
        row = METRICS[name]
        return set().union(*map(roots, row.duplicates)) if row.duplicates else {name}

    free = set().union(*map(roots, PUBLISHED))
    assert sum(METRICS[n].category == "task_vector" for n in free) == 3
    assert sum(METRICS[n].category == "effective_rank" for n in free) == 1
    assert len(free) == 28 - 9


SETTINGS = ["ViT-B-16_AdamW", "ViT-B-32_AdamW", "ViT-B-16_SGD"]


def released(shared, setting):
    path = shared / "published" / "results" / "mergeability" / setting
    metrics = json.loads((path / "pairwise_metrics_N20.json").read_text())["metrics"]
    columns = {name: metrics[name]["pairs"] for name in PUBLISHED}
    pairs = [
        p for p in columns["effective_rank"] if all(c[p] is not None for c in columns.values())
    ]
    assert len(pairs) > 150
    return {name: np.array([column[p] for p in pairs]) for name, column in columns.items()}


def from_gram(name, squares_a, squares_b, dots):
    """One of our Gram metrics for each released pair."""
    return np.array(
        [
            METRICS[name](Inputs(np.array([[a, g], [g, b]]), {}))[0, 1]
            for a, b, g in zip(squares_a, squares_b, dots, strict=True)
        ]
    )


@pytest.mark.parametrize("setting", SETTINGS)
def test_released_rank_metrics_follow_from_their_singular_value_ratio(shared, setting):
    t = released(shared, setting)
    v = t["singular_value_ratio"]
    for name in (
        "effective_rank",
        "effective_rank_mergeability_score",
        "stable_rank",
        "spectral_gap",
        "singular_value_ratio",
    ):
        ours = from_gram(name, np.ones_like(v), v**2, np.zeros_like(v))
        np.testing.assert_allclose(ours, t[name], atol=2e-6, err_msg=name)
    score = t["layerwise_effective_rank_mergeability_score"]
    np.testing.assert_allclose(score, 2 - t["layerwise_effective_rank"], atol=1e-6)


@pytest.mark.parametrize("setting", SETTINGS[:2])
def test_released_metrics_follow_from_cosine_ratio_and_dot(shared, setting):
    # The SGD setting is left out: its float32 cosines exceed 1.
    t = released(shared, setting)
    c, r = t["task_vector_cosine_similarity"], t["task_vector_magnitude_ratio"]
    product = t["task_vector_dot_product"] / c
    gram = product / r, product * r, t["task_vector_dot_product"]
    np.testing.assert_allclose(
        from_gram("weight_space_angle", *gram), t["weight_space_angle"], atol=1e-3
    )
    # The released norms are float32 sums over 112 million entries, off by up to 3 %.
    np.testing.assert_allclose(
        from_gram("task_vector_l2_distance", *gram), t["task_vector_l2_distance"], rtol=0.01
    )
    ours = from_gram("singular_value_ratio", *gram)
    assert np.corrcoef(ours, t["singular_value_ratio"])[0, 1] > 0.998
    np.testing.assert_allclose(ours, t["singular_value_ratio"], atol=0.04)


@pytest.mark.parametrize("setting", SETTINGS)
def test_released_activation_distance_follows(shared, setting):
    t = released(shared, setting)
    product = t["activation_dot_product"] / t["activation_cosine_similarity"]
    r = t["activation_magnitude_ratio"]
    squared = product / r + product * r - 2 * t["activation_dot_product"]
    np.testing.assert_allclose(t["activation_l2_distance"] ** 2, squared, rtol=2e-3)


# --- Degenerate weights ---------------------------------------------------------------------------


def test_zero_and_deficient_tensors(world):
    base, models, data = world
    models = [{n: tensor.clone() for n, tensor in model.items()} for model in models]
    models[0]["attn.weight"] = base["attn.weight"].clone()  # zero in one model
    for model in models:
        model["bias"] = base["bias"].clone()  # zero in all
    base = base | {"mlp.wide": torch.zeros(12, 60)}
    generator = torch.Generator().manual_seed(2)
    for model in models:  # rank one
        left, right = (torch.randn(n, generator=generator) for n in (12, 60))
        model["mlp.wide"] = torch.outer(left, right)
    x = gather(base, models, data)
    found = pairwise(x, TASKS)
    assert np.isfinite(found.iloc[:, 2:].to_numpy()).all()
    flats = [flat_data(d) for d in data]
    # Below its rank a matrix has no singular vectors of its own, so only these are determined.
    sure = [n for n in PUBLISHED if METRICS[n].category != "subspace"] + ["singular_value_overlap"]
    for row, (i, j) in enumerate(combinations(range(4), 2)):
        expected = literal(base, models[i], models[j], flats[i], flats[j])
        for name in sure:
            np.testing.assert_allclose(found[name][row], expected[name], rtol=1e-6, atol=1e-7)
    for name, row in zip(PUBLISHED, PUBLISHED_ROWS, strict=True):
        assert found[name].between(row.range[0] - 1e-6, row.range[1] + 1e-6).all(), name


def test_a_model_equal_to_the_base(world):
    base, models, data = world
    found = pairwise(gather(base, [base, models[1]], data[:2]), ["still", "moved"]).iloc[0]
    assert found["task_vector_cosine_similarity"] == 0
    assert found["task_vector_magnitude_ratio"] == 0
    assert found["weight_space_angle"] == 90
    assert found["layerwise_effective_rank"] == 2  # no tensor counts
    assert found["subspace_overlap"] == 0 and found["singular_value_overlap"] == 0
    assert np.isfinite(found.iloc[2:].astype(float)).all()


# --- Editions -------------------------------------------------------------------------------------


def test_editions_differ_only_where_documented(world, table):
    paper = pairwise(gather(*world), TASKS, edition="paper")
    changed = [name for name in PUBLISHED if not np.allclose(paper[name], table[name], rtol=1e-12)]
    assert changed == ["subspace_overlap"]


def test_paper_divides_left_overlap_by_k():
    base = {"w": torch.zeros(30, 20)}
    generator = torch.Generator().manual_seed(0)
    models = [{"w": torch.randn(30, 20, generator=generator)} for _ in range(2)]
    x = read_inputs(base, models, [summarize(base, m) for m in models])
    corrected = METRICS["subspace_overlap"](x)
    np.testing.assert_allclose(METRICS["subspace_overlap"](x, "paper"), corrected / np.sqrt(10))
    np.testing.assert_allclose(np.diagonal(corrected), 1, rtol=1e-6)


def test_paper_counts_zero_matrices():
    # 50 matrices and 3 zero ones: the released singular value overlaps stay below 50/53.
    base = {f"w{n}": torch.zeros(11, 12) for n in range(50)}
    generator = torch.Generator().manual_seed(0)
    model = {name: torch.randn(11, 12, generator=generator) for name in base}
    summary = summarize(base, model)
    x = read_inputs(base, [model, model], [summary, summary], zero_matrices=3)
    values = {n: METRICS[n](x, "paper")[0, 1] for n in PUBLISHED if "overlap" in n}
    assert values.pop("singular_value_overlap") == pytest.approx(50 / 53)
    assert values.pop("subspace_overlap") == pytest.approx(1 / np.sqrt(10))
    assert all(value == pytest.approx(1) for value in values.values())
    assert METRICS["singular_value_overlap"](x)[0, 1] == pytest.approx(1)


def test_paper_counts_a_zero_tensor_and_corrected_does_not(world):
    base, models, data = world
    still = {"frozen": torch.ones(13, 14)}
    x = gather(base, models, data)
    y = gather(base | still, [m | still for m in models], data)
    n = len(MATRICES)
    for name in (m for m in PUBLISHED if METRICS[m].category == "subspace"):
        before, after = METRICS[name](x), METRICS[name](y)
        np.testing.assert_allclose(after, before, rtol=1e-12)
    name = "singular_value_overlap"
    paper = METRICS[name](y, "paper")
    np.testing.assert_allclose(paper, METRICS[name](x, "paper") * n / (n + 1))


# --- Bad input ------------------------------------------------------------------------------------


def test_unknown_metric_offers_the_nearest(world):
    with pytest.raises(MergelibError, match="unknown metric 'stable_rnak'.*'stable_rank'"):
        pairwise(gather(*world), TASKS, names=["stable_rnak"])


def test_unknown_mode(world):
    with pytest.raises(MergelibError, match="unknown edition 'papre'.*'paper'"):
        pairwise(gather(*world), TASKS, edition="papre")


@pytest.mark.parametrize("tasks", [TASKS[:3], ["ant", "ant", "bee", "cow"]])
def test_tasks_must_fit_the_models(world, tasks):
    with pytest.raises(MergelibError, match="task names .* for 4 models"):
        pairwise(gather(*world), tasks)


def test_missing_summaries_are_named(world):
    base, models, _ = world
    x = read_inputs(base, models, [summarize(base, m) for m in models])
    weights = [n for n in PUBLISHED if METRICS[n].category not in ("activation", "gradient")]
    assert len(pairwise(x, TASKS, names=weights).columns) == 2 + 18
    with pytest.raises(MergelibError, match="no activation"):
        pairwise(x, TASKS)
    with pytest.raises(MergelibError, match="no input_gradient_gram"):
        pairwise(x, TASKS, names=["input_gradient_l2_distance"])


def test_summaries_must_match(world):
    base, models, data = world
    summaries = [summarize(base, m) for m in models]
    with pytest.raises(MergelibError, match="4 checkpoints but 3 summaries"):
        read_inputs(base, models, summaries[:3])
    with pytest.raises(MergelibError, match="summary 2 lacks tensor 'activation'"):
        read_inputs(base, models, [*(s | data[0] for s in summaries[:2]), *summaries[2:]])
    with pytest.raises(MergelibError, match="'positions', which the checkpoints do not have"):
        less = [{n: t for n, t in m.items() if n != "positions"} for m in (base, *models)]
        read_inputs(less[0], less[1:], summaries)
    broken = {key: part for key, part in summaries[0].items() if key != "v_top/positions"}
    with pytest.raises(MergelibError, match="lacks 'v_top/positions'"):
        read_inputs(base, models, [broken] * 4)


def test_truncated_summary_is_named(world, tmp_path):
    base, models, _ = world
    path = tmp_path / "summary.safetensors"
    save_tensors(path, summarize(base, models[0]))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(MergelibError, match="summary.safetensors is truncated"):
        read_inputs(base, [models[0]], [path])
