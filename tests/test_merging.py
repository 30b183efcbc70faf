"""Merging against literal numpy formulas, identities, and bad input."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from bounds import bound, condition

from mergelib.cli import main
from mergelib.core.errors import MergelibError
from mergelib.core.store import load_tensors, save_tensors
from mergelib.linalg.polar import WEAK, polar, split_pair
from mergelib.merging import engine
from mergelib.merging.cache import cached_factors
from mergelib.merging.engine import merge
from mergelib.merging.knowledge import weights_of_knowledge
from mergelib.merging.layer import Layer
from mergelib.merging.methods.dare import draws, keep_mask
from mergelib.merging.registry import EDITIONS, METHODS, preset

pytestmark = pytest.mark.numeric

DETERMINISTIC = [name for name in METHODS if not METHODS[name].random]
SHAPES = {
    "scale": (),
    "bias": (7,),
    "tall": (12, 8),
    "wide": (6, 11),
    "conv": (4, 3, 2, 2),
    "text_projection": (8, 8),
}


def models(count, shapes=None, seed=0):
    """A base and fine-tuned models with random float32 tensors, an integer one among them."""
    generator = torch.Generator().manual_seed(seed)
    shapes = SHAPES if shapes is None else shapes
    base = {k: torch.randn(s, generator=generator) for k, s in shapes.items()}
    base["counter"] = torch.tensor(3)
    tuned = []
    for i in range(count):
        model = {k: base[k] + torch.randn(s, generator=generator) for k, s in shapes.items()}
        tuned.append({**model, "counter": torch.tensor(10 + i)})
    return base, tuned


def zeros_like(base):
    return {name: torch.zeros_like(tensor) for name, tensor in base.items()}


# --- the formulas, written out slowly -----------------------------------------------------------


def numpy_ties(taus, density, alpha):
    flat = [t.ravel() for t in taus]
    kept = []
    for t in flat:
        m = max(1, int(math.floor(density * t.size)))
        threshold = np.sort(np.abs(t))[::-1][m - 1]
        kept.append([x if abs(x) >= threshold else 0.0 for x in t])
    elected = [np.sign(sum(k[i] for k in kept)) for i in range(flat[0].size)]
    majority = np.sign(sum(elected)) or 1.0
    out = []
    for i, sign in enumerate(elected):
        sign = sign or majority
        votes = [k[i] for k in kept if k[i] != 0 and np.sign(k[i]) == sign]
        out.append(sum(votes) / len(votes) if votes else 0.0)
    return alpha * np.array(out).reshape(taus[0].shape)


def numpy_polar(a):
    p, _, qt = np.linalg.svd(a, full_matrices=False)
    return p @ qt


def numpy_tsv(taus, alpha):
    r = min(taus[0].shape) // len(taus)
    us, ss, vts = [], [], []
    for t in taus:
        u, s, vt = np.linalg.svd(t, full_matrices=False)
        us.append(u[:, :r])
        ss.extend(s[:r])
        vts.append(vt[:r])
    u, vt = numpy_polar(np.hstack(us)), numpy_polar(np.vstack(vts))
    return alpha * u @ np.diag(ss) @ vt


def numpy_isotropic(taus, alpha, truncate):
    total = np.zeros_like(taus[0])
    for t in taus:
        if truncate:
            u, s, vt = np.linalg.svd(t, full_matrices=False)
            s[min(t.shape) // len(taus) :] = 0
            t = u @ np.diag(s) @ vt
        total = total + t
    u, s, vt = np.linalg.svd(total, full_matrices=False)
    return alpha * u @ np.diag(np.full(len(s), s.mean())) @ vt


def numpy_dare(taus, name, drop_rate, alpha, seed):
    total = 0.0
    for position, t in enumerate(taus):
        mask = keep_mask(t.shape, drop_rate, draws(seed, name, position)).numpy()
        total = total + np.where(mask, t, 0.0) / (1 - drop_rate)
    return alpha * total / len(taus)


def numpy_iso_cts(taus, alpha, common):
    size, count = min(taus[0].shape), len(taus)
    own = round((size - int(common * size)) / count)
    shared = size - own * count
    u, s, vt = np.linalg.svd(sum(taus), full_matrices=False)
    u, s, vt = u[:, :shared], s[:shared], vt[:shared]
    us, ss, vts = [], [], []
    for t in taus:
        rest = (np.eye(len(u)) - u @ u.T) @ t  # rank-deficient: divide and conquer may not converge
        a, b, c = scipy.linalg.svd(rest, full_matrices=False, lapack_driver="gesvd")
        us.append(a[:, :own])
        ss.append(b[:own])
        vts.append(c[:own])
    u, vt = numpy_polar(np.hstack([*us, u])), numpy_polar(np.vstack([*vts, vt]))
    s = np.concatenate([*ss, s])
    return alpha * u @ np.diag(np.full(len(s), s.mean())) @ vt


def numpy_tall_masks(taus, threshold, agree, task, alpha):
    tuned, merged = taus, sum(taus)  # with the base at zero, models are their task vectors
    out = np.zeros(taus[0].size)
    for i in range(out.size):
        votes = [abs(0 - t.flat[i]) > threshold * abs(merged.flat[i] - t.flat[i]) for t in tuned]
        least = agree if agree is not None else (1 if len(taus) <= 2 else 2)
        keep = sum(votes) >= least if task is None else votes[task]
        out[i] = merged.flat[i] if keep else 0.0
    return alpha * out.reshape(taus[0].shape)


def numpy_unified(taus):
    out = np.zeros(taus[0].size)
    for i in range(out.size):
        values = [t.flat[i] for t in taus]
        sign = np.sign(sum(values))
        out[i] = sign * max([abs(v) for v in values if np.sign(v) == sign], default=0.0)
    return out.reshape(taus[0].shape)


def literal(method, taus, name, params, seed):
    matrix = taus[0].ndim == 2 and "text_projection" not in name
    if method == "weight_avg":
        return sum(taus) / len(taus)
    if method == "arithmetic":
        return params["alpha"] * sum(taus)
    if method == "ties":
        return numpy_ties(taus, **params)
    if method == "dare":
        return numpy_dare(taus, name, seed=seed, **params)
    if method == "tall_masks":
        return numpy_tall_masks(taus, **params)
    if method == "emr":
        return numpy_unified(taus)
    if method == "base_protecting":
        return params["alpha"] * sum(taus) / len(taus)
    if not matrix:
        return params["alpha"] * sum(taus) / len(taus)
    spectral = {"tsv": numpy_tsv, "isotropic": numpy_isotropic, "iso_cts": numpy_iso_cts}
    return spectral[method](taus, **params)


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("edition", EDITIONS)
@pytest.mark.parametrize("method", list(METHODS))
def test_literal_formula(method, edition, count):
    shapes = SHAPES
    if method == "isotropic" and edition == "paper":
        # The sum of the cut task vectors has full rank only where T divides min(m, n).
        shapes = {**SHAPES, "tall": (24, 6 if count < 5 else 10), "wide": (30, 60)}
    base, tuned = models(count, shapes, seed=count)
    params = preset(method, edition)
    merged = merge(base, tuned, method, seed=4, **params)
    assert list(merged) == list(base)
    for name in shapes:
        origin = base[name].double().numpy()
        taus = [t[name].double().numpy() - origin for t in tuned]
        expected = origin + literal(method, taus, name, params, seed=4)
        assert merged[name].dtype == torch.float32
        np.testing.assert_allclose(merged[name].numpy(), expected, rtol=2e-6, atol=1e-6)
    assert merged["counter"].dtype == torch.int64
    assert merged["counter"] == 3


def test_defaults_are_the_corrected_edition():
    base, tuned = models(2)
    for method in METHODS:
        ours = merge(base, tuned, method)
        named = merge(base, tuned, method, **preset(method, "corrected"))
        assert all(torch.equal(ours[k], named[k]) for k in base)


def test_isotropic_truncation_is_the_one_difference_of_the_paper_edition():
    for method in METHODS:
        same = preset(method, "paper") == preset(method, "corrected")
        assert same == (method != "isotropic")
    base, tuned = models(2)
    paper = merge(base, tuned, "isotropic", **preset("isotropic", "paper"))
    ours = merge(base, tuned, "isotropic")
    assert not torch.allclose(paper["tall"], ours["tall"], atol=1e-2)
    assert torch.equal(paper["bias"], ours["bias"])


# --- identities ---------------------------------------------------------------------------------


def test_weight_average_of_one_model_with_itself_is_that_model():
    base, (model,) = models(1)
    merged = merge(base, [model, model], "weight_avg")
    assert all(torch.equal(merged[k], model[k]) for k in SHAPES)


@pytest.mark.parametrize("method", ["tsv", "weight_avg"])
def test_one_model_alone_comes_back(method):
    base, (model,) = models(1)
    merged = merge(base, [model], method)
    for name in SHAPES:
        torch.testing.assert_close(merged[name], model[name], rtol=1e-6, atol=1e-6)


def test_arithmetic_at_one_over_t_is_weight_averaging():
    base, tuned = models(4)
    arithmetic = merge(base, tuned, "arithmetic", alpha=0.25)
    average = merge(base, tuned, "weight_avg")
    assert all(torch.equal(arithmetic[k], average[k]) for k in base)


@pytest.mark.parametrize("truncate", [False, True])
def test_isotropic_flattens_the_spectrum(truncate):
    base, tuned = models(2)
    merged = merge(zeros_like(base), tuned, "isotropic", truncate=truncate)
    for name in ["tall", "wide"]:
        s = torch.linalg.svdvals(merged[name].double())
        torch.testing.assert_close(s, s.mean().expand_as(s), rtol=1e-5, atol=0)


def test_tsv_of_orthogonal_subspaces_is_the_sum_of_the_truncations():
    left = np.linalg.qr(np.random.default_rng(0).normal(size=(20, 12)))[0]
    right = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 12)))[0]
    s = np.linspace(6, 1, 6)
    taus, cut = [], 0.0
    for i in range(3):  # rank 4 each; ⌊12/3⌋ = 4 triplets are kept
        u, v = left[:, 4 * i : 4 * i + 4], right[:, 4 * i : 4 * i + 4]
        taus.append(torch.tensor(u @ np.diag(s[:4]) @ v.T, dtype=torch.float32))
        cut = cut + u @ np.diag(s[:4]) @ v.T
    merged = merge({"w": torch.zeros(20, 12)}, [{"w": t} for t in taus], "tsv")
    np.testing.assert_allclose(merged["w"].numpy(), cut, atol=2e-6)


def test_tsv_keeps_the_leading_triplets_only():
    s1, s2 = torch.tensor([5.0, 4.0, 0.5, 0, 0, 0]), torch.tensor([0.0, 0.2, 0, 7, 6, 3])
    expected = torch.diag(torch.tensor([5.0, 4.0, 0.5, 7, 6, 3]))
    tuned = [{"w": torch.diag(s)} for s in (s1, s2)]
    merged = merge({"w": torch.zeros(6, 6)}, tuned, "tsv")
    torch.testing.assert_close(merged["w"], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", DETERMINISTIC)
def test_the_order_of_the_models_does_not_matter(method):
    base, tuned = models(3, {**SHAPES, "tall": (12, 9), "wide": (6, 11)})
    ahead, back = merge(base, tuned, method), merge(base, tuned[::-1], method)
    for name in base:
        torch.testing.assert_close(ahead[name], back[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("edition", EDITIONS)
def test_zero_and_rank_deficient_task_vectors(method, edition):
    base, (one, two) = models(2)
    params = preset(method, edition)
    unchanged = merge(base, [base, base], method, **params)
    assert all(torch.equal(unchanged[k], base[k]) for k in base)
    one["tall"] = base["tall"] + torch.outer(torch.arange(12.0), torch.ones(8))
    cases = [[one, base], [one, one], [one, two, one], [one] * 20]
    for tuned in cases:
        merged = merge(base, tuned, method, **params)
        assert all(torch.isfinite(merged[k]).all() for k in SHAPES)


@pytest.mark.parametrize("method", ["tsv", "isotropic"])
def test_rank_deficient_results_do_not_hang_on_arbitrary_null_vectors(method):
    # Rotating both spaces must rotate the result: a completion by null vectors would not follow.
    rng = np.random.default_rng(3)
    taus = [rng.normal(size=(10, 2)) @ rng.normal(size=(2, 8)) for _ in range(2)]
    q, p = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (10, 8))

    def delta(matrices):
        vectors = torch.stack([torch.tensor(m) for m in matrices])
        return METHODS[method].function(Layer.of(vectors, "w"), **preset(method)).numpy()

    turned = delta([q @ t @ p for t in taus])
    np.testing.assert_allclose(turned, q @ delta(taus) @ p, atol=1e-10)


# --- models of one task, weights ----------------------------------------------------------------


@pytest.mark.parametrize("task", [0, 1, 2])
def test_emr_of_one_task_is_masked_and_rescaled(task):
    base, tuned = models(3)
    merged = merge(base, tuned, "emr", task=task)
    taus = {k: [t[k].double().numpy() - base[k].double().numpy() for t in tuned] for k in SHAPES}
    elected = {k: numpy_unified(v) for k, v in taus.items()}
    masked = {k: np.where(taus[k][task] * elected[k] > 0, elected[k], 0) for k in SHAPES}
    scale = sum(np.abs(taus[k][task]).sum() for k in SHAPES)
    scale /= sum(np.abs(masked[k]).sum() for k in SHAPES)
    for name in SHAPES:
        expected = base[name].double().numpy() + scale * masked[name]
        np.testing.assert_allclose(merged[name].numpy(), expected, rtol=2e-6, atol=1e-6)


def test_emr_of_one_model_gives_it_back():
    base, tuned = models(1)
    for task in (None, 0):
        merged = merge(base, tuned, "emr", task=task)
        for name in SHAPES:
            torch.testing.assert_close(merged[name], tuned[0][name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("task", [0, 1, 2])
def test_tall_masks_of_one_task_and_of_several_that_agree(task):
    base, tuned = models(3)
    for params in ({"task": task}, {"agree": task + 1}, {"threshold": 0.2, "alpha": 0.5}):
        merged = merge(base, tuned, "tall_masks", **params)
        for name in SHAPES:
            origin = base[name].double().numpy()
            taus = [t[name].double().numpy() - origin for t in tuned]
            delta = numpy_tall_masks(taus, **{**preset("tall_masks"), **params})
            np.testing.assert_allclose(merged[name].numpy(), origin + delta, rtol=2e-6, atol=1e-6)


def test_tall_masks_tell_tasks_apart_where_they_move_other_entries():
    one, two = torch.tensor([3.0, 0, 0, 1]), torch.tensor([0.0, -2, 0, 1])
    tuned = [{"w": one}, {"w": two}]
    for task, own in enumerate((one, two)):
        found = merge({"w": torch.zeros(4)}, tuned, "tall_masks", task=task)["w"]
        assert torch.equal(found[:3], own[:3])
    both = merge({"w": torch.zeros(4)}, tuned, "tall_masks", agree=2)["w"]
    assert torch.equal(both, torch.tensor([0.0, 0, 0, 2]))


@pytest.mark.parametrize("method", ["emr", "tall_masks"])
def test_a_task_that_is_not_there(method):
    base, tuned = models(2)
    with pytest.raises(MergelibError, match="task 2 is not among the 2 models"):
        merge(base, tuned, method, task=2)


def test_what_the_base_knows_least_weighs_most():
    weights = weights_of_knowledge([0.9, 0.2, 0.8], [0.9, 0.8, 0.4])
    assert weights == [0, 1, 0]  # the last model lost what the base knew: nothing to protect
    weights = weights_of_knowledge([0.5, 0.2], [1.0, 0.8])
    np.testing.assert_allclose(weights, [0.5 / 1.25, 0.75 / 1.25])
    assert weights_of_knowledge([0.5, 0.9], [0.5, 0.9]) == [0.5, 0.5]
    base, tuned = models(2)
    merged = merge(base, tuned, "base_protecting", weights=weights, alpha=2.0)
    for name in SHAPES:
        origin = base[name].double()
        delta = sum(w * (t[name].double() - origin) for w, t in zip(weights, tuned, strict=True))
        torch.testing.assert_close(merged[name].double(), origin + 2 * delta, rtol=1e-6, atol=1e-6)
    heavier = merge(base, tuned, "base_protecting", weights=[4 * w for w in weights], alpha=2.0)
    for name in SHAPES:
        torch.testing.assert_close(heavier[name], merged[name])
    alone = merge(base, tuned, "base_protecting", weights=[0, 7])
    for name in SHAPES:
        torch.testing.assert_close(alone[name], tuned[1][name])


def test_weights_and_accuracies_that_do_not_fit():
    base, tuned = models(2)
    with pytest.raises(MergelibError, match="3 weights for 2 models"):
        merge(base, tuned, "base_protecting", weights=[1, 2, 3])
    for before, after in [([0.5], [0.5, 0.6]), ([], []), ([0.5], [0.0]), ([1.5], [0.9])]:
        with pytest.raises(MergelibError, match="accurac"):
            weights_of_knowledge(before, after)


# --- polar factors ------------------------------------------------------------------------------


def orthonormal(rows, columns, rng):
    return np.linalg.qr(rng.normal(size=(rows, columns)))[0]


@pytest.mark.parametrize("decades", [0, 2, 4, 6, 8])
def test_polar_factor_of_wide_spectra(decades):
    rng = np.random.default_rng(decades)
    u, v = orthonormal(60, 40, rng), orthonormal(40, 40, rng)
    matrix = torch.tensor(u * np.logspace(0, -decades, 40) @ v.T)
    # Rounding of the matrix alone turns the last directions by eps times the condition number.
    condition_of = 10.0**decades
    gram = bound(torch.float64, 1, min(condition_of, 1 / WEAK[torch.float64]) ** 2)
    allowed = bound(torch.float64, 60, condition_of) + gram
    assert np.linalg.norm(polar(matrix).numpy() - u @ v.T) < allowed
    assert np.linalg.norm(polar(matrix.T).numpy() - (u @ v.T).T) < allowed


@pytest.mark.parametrize("rank", [0, 1, 7])
def test_polar_factor_is_zero_on_the_null_space(rank):
    rng = np.random.default_rng(rank)
    matrix = rng.normal(size=(30, rank)) @ rng.normal(size=(rank, 20))
    u, _, vt = np.linalg.svd(matrix, full_matrices=False)
    found = polar(torch.tensor(matrix)).numpy()
    np.testing.assert_allclose(found, u[:, :rank] @ vt[:rank], atol=1e-12)


@pytest.mark.parametrize("apart", [1.0, 1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize(("rows", "first", "second"), [(60, 20, 20), (40, 20, 20), (60, 20, 7)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_polar_factor_of_two_blocks_that_share_directions(rows, first, second, apart, dtype):
    rng = np.random.default_rng(first + second)
    left = orthonormal(rows, first, rng)
    near = left[:, :5] + apart * rng.normal(size=(rows, 5)) / np.sqrt(rows)
    right = np.linalg.qr(np.hstack([near, rng.normal(size=(rows, second - 5))]))[0]
    blocks = [torch.tensor(block).to(dtype) for block in (left, right)]
    stack = np.hstack([block.double().numpy() for block in blocks])  # as rounded
    found = split_pair(*blocks, dtype)
    error = np.linalg.norm(found.full().double().numpy() - numpy_polar(stack))
    times = found.times(torch.eye(stack.shape[1], dtype=dtype))
    rounding = bound(torch.float32, stack.shape[1])
    torch.testing.assert_close(times, found.full(), rtol=0, atol=rounding)
    amplified = condition(stack)
    if dtype == torch.float64:
        # Strong directions come from the Gram matrix, which squares their condition.
        gram = bound(dtype, 1, min(amplified, 1 / WEAK[dtype]) ** 2)
        assert error < bound(dtype, rows, amplified) + gram
    elif amplified < 3e5:  # beyond, float32 does not hold the directions
        assert error < bound(dtype, rows)


def test_polar_factor_of_two_equal_or_empty_blocks():
    block = torch.tensor(orthonormal(30, 8, np.random.default_rng(0)))
    for other in (block, block[:, :3], block[:, :0]):
        found = split_pair(block, other, torch.float64).full().numpy()
        u, s, vt = np.linalg.svd(torch.cat([block, other], 1).numpy(), full_matrices=False)
        rank = int((s > 1e-10).sum())
        np.testing.assert_allclose(found, u[:, :rank] @ vt[:rank], atol=1e-12)


# --- large matrices, kept factors, streaming ----------------------------------------------------


def fine_tuned_like(count, shapes):
    """Models whose task vectors share a few strong directions, over noise."""
    rng = np.random.default_rng(7)
    base = {k: torch.tensor(rng.normal(size=s), dtype=torch.float32) for k, s in shapes.items()}
    tuned = [{} for _ in range(count)]
    for name, (m, n) in shapes.items():
        common = rng.normal(size=(m, 6)) * np.logspace(0, -1, 6) @ rng.normal(size=(6, n))
        for model in tuned:
            own = rng.normal(size=(m, 6)) @ rng.normal(size=(6, n))
            noise = rng.normal(size=(m, n)) * np.logspace(0, -1.5, n)
            delta = torch.tensor(1e-2 * (common + own + noise))
            model[name] = (base[name] + delta).float()
    return base, tuned


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("method", ["tsv", "isotropic", "iso_cts"])
def test_large_matrices_keep_their_accuracy(method, count):
    # From 2^18 entries on, products run in float32.
    shapes = {"tall": (1024, 256), "wide": (256, 1024)}
    base, tuned = fine_tuned_like(count, shapes)
    merged = merge(base, tuned, method)
    for name in shapes:
        origin = base[name].double().numpy()
        taus = [t[name].double().numpy() - origin for t in tuned]
        expected = literal(method, taus, name, preset(method), 0)
        error = np.linalg.norm(merged[name].numpy() - origin - expected)
        assert error < 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_kept_factors_give_the_same_merge(count, tmp_path):
    shapes = {"tall": (1024, 256), "wide": (256, 1024), "small": (30, 20)}
    base, tuned = fine_tuned_like(count, shapes)
    kept = cached_factors(tmp_path, base, tuned)
    assert len(set(kept)) == count
    stamps = [path.stat().st_mtime_ns for path in kept]
    assert cached_factors(tmp_path, base, tuned) == kept
    assert [path.stat().st_mtime_ns for path in kept] == stamps  # not made again
    fresh, reused = merge(base, tuned, "tsv"), merge(base, tuned, "tsv", factors=kept)
    for name in shapes:
        delta = fresh[name] - base[name]
        bound = 1e-12 if name == "small" else 1e-4  # small ones are kept in float64
        assert (reused[name] - fresh[name]).norm() <= bound * delta.norm()


def test_kept_factors_follow_the_content_and_are_checked(tmp_path):
    base, tuned = fine_tuned_like(2, {"w": (12, 8)})
    kept = cached_factors(tmp_path, base, tuned)
    other = {"w": tuned[0]["w"] + 1}
    assert cached_factors(tmp_path, base, [other]) != kept[:1]
    assert cached_factors(tmp_path, other, tuned[:1]) != kept[:1]
    with pytest.raises(MergelibError, match="1 files of factors for 2 models"):
        merge(base, tuned, "tsv", factors=kept[:1])
    more = cached_factors(tmp_path, *(lambda b, t: (b, t[:1]))(*fine_tuned_like(1, {"w": (9, 8)})))
    with pytest.raises(MergelibError, match="u/w.*shape.*factors of these models"):
        merge(base, tuned, "tsv", factors=[*more, kept[1]])


@pytest.mark.parametrize("method", list(METHODS))
def test_openings_between_tensors_change_nothing(method, tmp_path, monkeypatch):
    base, tuned = models(3)
    whole = merge(base, tuned, method)
    monkeypatch.setattr(engine, "BATCH", 1)
    paths = [tmp_path / f"{i}.safetensors" for i in range(4)]
    for path, model in zip(paths, [base, *tuned], strict=True):
        save_tensors(path, model)
    parts = merge(paths[0], paths[1:], method)
    assert all(torch.equal(whole[name], parts[name]) for name in base)


@pytest.mark.parametrize("method", DETERMINISTIC)
def test_a_merge_into_tensors_that_are_there(method):
    base, tuned = models(2)
    expected = merge(base, tuned, method)
    into = {name: torch.full_like(value, 7) for name, value in base.items()}
    found = merge(base, tuned, method, into=into)
    for name, tensor in expected.items():
        assert found[name] is into[name]
        assert torch.equal(into[name], tensor)


def test_tensors_to_write_to_must_fit_and_are_left_alone_if_they_do_not():
    base, tuned = models(2)
    into = {name: torch.full_like(value, 7) for name, value in base.items()} | {
        "bias": torch.ones(8)
    }
    with pytest.raises(MergelibError, match=r"'bias' has shape \(8,\) in the tensors to write to"):
        merge(base, tuned, "weight_avg", into=into)
    assert (into["tall"] == 7).all()


def test_merge_command_keeps_factors(tmp_path, capsys):
    base, tuned = fine_tuned_like(2, {"w": (30, 20)})
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for path, model in zip(paths, [base, *tuned], strict=True):
        save_tensors(path, model)
    words = ["merge", "--base", paths[0], "--models", *paths[1:], "--method", "tsv"]
    for cache in ([], ["--cache", tmp_path / "cache"]):
        out = tmp_path / f"out{len(cache)}.safetensors"
        assert main([str(word) for word in [*words, *cache, "--out", out]]) == 0
        found = load_tensors(out)["w"]
        torch.testing.assert_close(found, merge(base, tuned, "tsv")["w"])
    assert len(list((tmp_path / "cache" / "factors").iterdir())) == 2
    assert "1 tensors merged from 2 models" in capsys.readouterr().out


# --- DARE ---------------------------------------------------------------------------------------


def test_dare_mean_over_seeds_is_weight_averaging_and_drops_p():
    shapes = {"w": (30, 20)}
    base, tuned = models(2, shapes)
    found = torch.stack([merge(base, tuned, "dare", seed=s)["w"].double() for s in range(400)])
    average = merge(base, tuned, "weight_avg")["w"].double()
    z = (found.mean(0) - average) / (found.std(0) / math.sqrt(len(found)))
    # 600 entries, each about standard normal; a skew of the ten-percent draws widens them a bit.
    assert z.abs().max() < 6
    assert abs(z.mean()) < 5 / math.sqrt(z.numel())
    masks = torch.stack([keep_mask((600,), 0.9, draws(s, "w", 0)) for s in range(400)])
    kept = masks.double().mean()
    assert abs(kept - 0.1) < 5 * math.sqrt(0.09 / 240_000)


def test_dare_mask_depends_on_seed_name_and_position_alone():
    base, tuned = models(2, {"a": (50,), "b": (50,)})
    torch.manual_seed(1)
    first = merge(base, tuned, "dare", seed=5)
    torch.manual_seed(2)
    other = merge(
        dict(reversed(base.items())), [dict(reversed(t.items())) for t in tuned], "dare", seed=5
    )
    assert all(torch.equal(first[k], other[k]) for k in base)
    shape, rate = (200,), 0.5
    mask = keep_mask(shape, rate, draws(0, "a", 0))
    assert torch.equal(mask, keep_mask(shape, rate, draws(0, "a", 0)))
    for changed in [(1, "a", 0), (0, "b", 0), (0, "a", 1)]:
        assert not torch.equal(mask, keep_mask(shape, rate, draws(*changed)))


def test_dare_without_dropping_is_weight_averaging():
    base, tuned = models(3)
    dare, average = merge(base, tuned, "dare", drop_rate=0.0), merge(base, tuned, "weight_avg")
    for name in base:
        torch.testing.assert_close(dare[name], average[name])


@pytest.mark.parametrize("method", list(METHODS))
def test_the_number_of_threads_does_not_matter(method):
    base, tuned = models(2, {"w": (384, 128)})
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(merge(base, tuned, method)["w"])
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(*results, rtol=3e-7, atol=1e-7)  # one float32 rounding


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "params", "words"),
    [
        ("tis", {}, ["merging method", "'tis'", "'ties'", "isotropic"]),
        ("ties", {"density": 2}, ["ties", "density", "[0, 1]", "2"]),
        ("ties", {"density": -0.1}, ["ties", "density", "[0, 1]"]),
        ("arithmetic", {"alpha": "x"}, ["arithmetic", "alpha", "number", "'x'"]),
        ("arithmetic", {"alpha": True}, ["arithmetic", "alpha", "number"]),
        ("arithmetic", {"alpha": math.nan}, ["arithmetic", "alpha", "finite"]),
        ("dare", {"drop_rate": 1.0}, ["dare", "drop_rate", "[0, 1)"]),
        ("isotropic", {"truncate": 1}, ["isotropic", "truncate", "true or false"]),
        ("tsv", {"alhpa": 1.0}, ["tsv", "'alhpa'", "did you mean 'alpha'"]),
        ("weight_avg", {"alpha": 1.0}, ["weight_avg", "alpha", "no parameters"]),
        ("emr", {"task": -1}, ["emr", "task", "whole number", "-1"]),
        ("emr", {"task": True}, ["emr", "task", "whole number"]),
        ("tall_masks", {"agree": 1.5}, ["tall_masks", "agree", "1.5"]),
        ("base_protecting", {"weights": [0, 0]}, ["weights", "not all 0"]),
        ("base_protecting", {"weights": [1, -1]}, ["weights", "0 or more", "-1"]),
        ("base_protecting", {"weights": 1.0}, ["weights", "list"]),
        ("dare", {"seed": 0.5}, ["dare", "seed", "0.5"]),
    ],
)
def test_wrong_method_or_parameter(method, params, words):
    base, tuned = models(2)
    with pytest.raises(MergelibError) as error:
        merge(base, tuned, method, **params)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_unknown_edition():
    with pytest.raises(MergelibError, match="edition.*corrected"):
        preset("ties", "corected")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(tall=torch.zeros(8, 12)), ["tall", "(8, 12)", "(12, 8)", "model 1"]),
        (lambda m: m.pop("bias"), ["bias", "lacks", "model 1"]),
        (lambda m: m.update(more=torch.zeros(2)), ["more", "lacks", "model 1"]),
        (lambda m: m["bias"].__setitem__(2, math.nan), ["bias", "NaN", "model 1"]),
        (lambda m: m["bias"].__setitem__(2, math.inf), ["bias", "infinite", "model 1"]),
        (lambda m: m.update(bias=torch.zeros(7, dtype=torch.int64)), ["bias", "integers"]),
    ],
)
def test_models_that_do_not_fit(change, words):
    base, tuned = models(2)
    change(tuned[1])
    with pytest.raises(MergelibError) as error:
        merge(base, tuned, "weight_avg")
    assert all(word in str(error.value) for word in words), str(error.value)


def test_nan_in_the_base_and_nothing_to_merge():
    base, tuned = models(2)
    with pytest.raises(MergelibError, match="no fine-tuned model"):
        merge(base, [], "ties")
    with pytest.raises(MergelibError, match="as a list"):
        merge(base, tuned[0], "ties")
    base["scale"].fill_(math.nan)
    with pytest.raises(MergelibError, match="base.*'scale' has NaN"):
        merge(base, tuned, "ties")


@pytest.mark.parametrize("method", list(METHODS))
def test_files_give_what_state_dicts_give(method, tmp_path):
    base, tuned = models(2)
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for path, model in zip(paths, [base, *tuned], strict=True):
        save_tensors(path, model)
    from_files, from_memory = merge(paths[0], paths[1:], method), merge(base, tuned, method)
    assert from_files.keys() == from_memory.keys()
    assert all(torch.equal(from_files[k], from_memory[k]) for k in base)
    data = paths[2].read_bytes()
    paths[2].write_bytes(data[: len(data) // 2])
    with pytest.raises(MergelibError, match="2.safetensors is truncated"):
        merge(paths[0], paths[1:], method)


# --- a real architecture ------------------------------------------------------------------------


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("edition", EDITIONS)
def test_a_tiny_clip_tower_by_every_method(method, edition):
    open_clip = pytest.importorskip("open_clip")
    towers = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = open_clip.CLIP(
            embed_dim=16,
            vision_cfg={"image_size": 16, "patch_size": 8, "width": 32, "layers": 2,
                        "head_width": 16},
            text_cfg={"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1},
        )  # fmt: skip
        towers.append(model.visual)
    base, *tuned = (tower.state_dict() for tower in towers)
    before = {name: tensor.clone() for name, tensor in base.items()}
    merged = merge(base, tuned, method, **preset(method, edition))
    towers[0].load_state_dict(merged, strict=True)
    assert all(torch.isfinite(merged[k]).all() for k in before)
    assert all(merged[k].dtype == before[k].dtype for k in before)
    # the tower was loaded in place; the merge itself leaves its inputs alone
    again = merge(before, tuned, method, **preset(method, edition))
    assert all(torch.equal(again[k], merged[k]) for k in before)
    assert any(not torch.equal(merged[k], before[k]) for k in before)
    out = towers[0](torch.rand(2, 3, 16, 16))
    assert out.shape == (2, 16)
    assert torch.isfinite(out).all()
