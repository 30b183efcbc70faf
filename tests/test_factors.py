"""Singular vectors from the small Gram matrix, against scipy's SVD and made spectra."""

import numpy as np
import pytest
import scipy.linalg
import torch

from mergelib.core.threads import threaded
from mergelib.linalg import svd
from mergelib.linalg.svd import ends, thin_factors

pytestmark = pytest.mark.numeric

SHAPES = [(90, 40), (40, 90), (60, 60), (45, 44), (25, 12), (7, 30), (3, 2), (1, 5), (1, 1)]


def with_spectrum(m: int, n: int, s: np.ndarray, seed: int = 0) -> np.ndarray:
    """A matrix with these singular values and random singular vectors."""
    random = np.random.default_rng(seed)
    left, right = (np.linalg.qr(random.standard_normal((size, len(s))))[0] for size in (m, n))
    return (left * s) @ right.T


def reference(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    u, s, vt = scipy.linalg.svd(matrix, full_matrices=False, lapack_driver="gesvd")
    return u, s, vt.T


def apart(one: np.ndarray, two: np.ndarray) -> float:
    """Sine of the largest angle between two column spaces."""
    return float(np.linalg.norm(one - two @ (two.T @ one), 2))


def check_ends(matrix: np.ndarray, sigmas: int = 100, k: int = 10) -> svd.Ends:
    """Compare with scipy, within the stated accuracy."""
    found = ends(torch.from_numpy(matrix), sigmas, k)
    u, s, v = reference(matrix)
    k = min(k, len(s))
    np.testing.assert_allclose(found.sigma, s[:sigmas], rtol=0, atol=1e-7 * s[0])
    exact = s[:sigmas] > 1e-3 * s[0]
    np.testing.assert_allclose(
        found.sigma[exact] ** 2, s[:sigmas][exact] ** 2, atol=2e-14 * s[0] ** 2
    )
    ranges = {"top": slice(0, k), "bottom": slice(len(s) - k, len(s))}
    for end, part in ranges.items():
        others = np.delete(s, part)
        away = np.abs(s[part][:, None] - others).min() if len(others) else np.inf
        for side, whole in (("u", u), ("v", v)):
            basis = getattr(found, f"{side}_{end}").numpy()
            assert basis.shape == (whole.shape[0], k)
            np.testing.assert_allclose(basis.T @ basis, np.eye(k), atol=1e-9)
            if away > 1e-11 * s[0]:  # else no space is determined
                angle = apart(basis, whole[:, part])
                assert angle < 1e-11 + 1e-13 * s[0] / away, (side, end, angle)
    return found


@pytest.mark.parametrize("shape", SHAPES)
def test_ends_of_random_matrices(shape):
    check_ends(np.random.default_rng(1).standard_normal(shape))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("low", [-1, -2, -4, -6, -8, -10, -13])
def test_ends_of_wide_spectra(low, flip):
    matrix = with_spectrum(120, 64, np.logspace(0, low, 64))
    check_ends(matrix.T.copy() if flip else matrix)


def test_the_bottom_is_refined_not_left_to_an_svd(monkeypatch):
    # σ_min/σ_max of 1e-6: AᵀA alone is 1e-4 off
    s = np.concatenate([np.linspace(1, 0.1, 60), np.logspace(-2, -6, 60)])
    matrix = with_spectrum(200, 120, s)
    vectors = np.linalg.eigh(matrix.T @ matrix)[1][:, :10]
    wanted = reference(matrix)[2][:, -10:]
    assert apart(vectors, wanted) > 1e-9
    monkeypatch.setattr(svd, "_svd", lambda tall: pytest.fail("fell back"))
    assert apart(ends(torch.from_numpy(matrix)).v_bottom.numpy(), wanted) < 1e-10


@pytest.mark.parametrize("gap", [1e-2, 1e-5, 1e-8, 0])
@pytest.mark.parametrize("place", [10, 54])
def test_near_degenerate_values(gap, place):
    """Two values at the edge of a kept group nearly meet, and one group of five is equal."""
    s = np.linspace(2, 1, 64)
    s[place] = s[place - 1] - gap
    s = np.sort(s)[::-1]
    s[30:35] = s[30]
    matrix = with_spectrum(100, 64, s)
    found = check_ends(matrix)
    np.testing.assert_allclose(found.sigma, s, rtol=1e-13)
    # Whichever basis of a nearly degenerate space it is, its vectors are singular pairs.
    for u, v, values in (
        (found.u_top, found.v_top, s[:10]),
        (found.u_bottom, found.v_bottom, s[-10:]),
    ):
        np.testing.assert_allclose(matrix @ v.numpy(), u.numpy() * values, atol=1e-12)
        np.testing.assert_allclose(matrix.T @ u.numpy(), v.numpy() * values, atol=1e-12)


def test_all_values_equal():
    matrix = with_spectrum(70, 50, np.full(50, 3.0))
    found = ends(torch.from_numpy(matrix))
    np.testing.assert_allclose(found.sigma, 3, rtol=1e-12)
    for u, v in ((found.u_top, found.v_top), (found.u_bottom, found.v_bottom)):
        np.testing.assert_allclose(matrix @ v.numpy(), 3 * u.numpy(), atol=1e-12)


@pytest.mark.parametrize("rank", [1, 5, 10, 15, 35, 49])
@pytest.mark.parametrize("flip", [False, True])
def test_rank_deficient(rank, flip):
    s = np.linspace(2, 1, rank)
    matrix = with_spectrum(80, 50, s, seed=rank)
    matrix = matrix.T.copy() if flip else matrix
    found = ends(torch.from_numpy(matrix))
    np.testing.assert_allclose(found.sigma[:rank], s, rtol=1e-13)
    np.testing.assert_allclose(found.sigma[rank:], 0, atol=1e-7)
    u, _, v = reference(matrix)
    for end in ("top", "bottom"):  # orthonormal, and null directions are mapped to zero
        for side in ("u", "v"):
            basis = getattr(found, f"{side}_{end}")
            np.testing.assert_allclose(basis.T @ basis, np.eye(10), atol=1e-12)
    if rank <= 40:
        np.testing.assert_allclose(matrix @ found.v_bottom.numpy(), 0, atol=1e-13)
        np.testing.assert_allclose(matrix.T @ found.u_bottom.numpy(), 0, atol=1e-13)
    if rank >= 10:
        assert apart(found.u_top.numpy(), u[:, :10]) < 1e-12
        assert apart(found.v_top.numpy(), v[:, :10]) < 1e-12


@pytest.mark.parametrize("shape", [(30, 12), (12, 30), (5, 5), (3, 8)])
def test_zero(shape):
    found = ends(torch.zeros(shape))
    k = min(10, *shape)
    assert not found.sigma.any() and len(found.sigma) == min(shape)
    for side, size in (("u", shape[0]), ("v", shape[1])):
        np.testing.assert_array_equal(getattr(found, f"{side}_top"), np.eye(size)[:, :k])
        last = np.eye(size)[:, min(shape) - k : min(shape)]
        np.testing.assert_array_equal(getattr(found, f"{side}_bottom"), last)


def test_float32_differences_of_a_checkpoint():
    # As from files: the base rounds the task vector to float32, whose noise makes up the bottom.
    random = np.random.default_rng(2)
    base = random.standard_normal((150, 100)).astype(np.float32) * np.float32(0.02)
    tau = with_spectrum(150, 100, 1e-3 * np.logspace(0, -7, 100))
    tuned = (base + tau).astype(np.float32)
    check_ends(tuned.astype(np.float64) - base.astype(np.float64))


def test_scale_does_not_matter():
    matrix = with_spectrum(60, 50, np.logspace(0, -3, 50))
    one, two = ends(torch.from_numpy(matrix)), ends(torch.from_numpy(2.0**-40 * matrix))
    np.testing.assert_allclose(one.sigma, 2.0**40 * two.sigma, rtol=1e-13)
    assert apart(one.v_bottom.numpy(), two.v_bottom.numpy()) < 1e-11


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [None, 4])
@pytest.mark.parametrize("low", [0, -2, -7])
def test_thin_factors(shape, rank, low):
    matrix = with_spectrum(*shape, np.logspace(0, low, min(shape)))
    u, s, v = (part.numpy() for part in thin_factors(torch.from_numpy(matrix), rank))
    wanted = scipy.linalg.svdvals(matrix)[:rank]
    np.testing.assert_allclose(s**2, wanted**2, rtol=1e-12, atol=2e-14)
    np.testing.assert_allclose(v.T @ v, np.eye(len(s)), atol=1e-8)
    np.testing.assert_allclose(u.T @ u, np.eye(len(s)), atol=1e-8)
    best = sum(np.outer(*pair) for pair in zip((u * s).T, v.T, strict=True))
    least = 0 if len(wanted) == min(shape) else scipy.linalg.svdvals(matrix)[len(wanted)]
    assert np.linalg.norm(matrix - best, 2) < least + 1e-12  # Eckart and Young


def test_threads_keep_order_and_settings():
    before = torch.get_num_threads()
    assert list(threaded(lambda x: (x, torch.get_num_threads()), range(7))) == [
        (x, 1) for x in range(7)
    ]
    with pytest.raises(ZeroDivisionError):
        list(threaded(lambda x: 1 / x, [1, 0, 2]))
    assert torch.get_num_threads() == before
