"""Half Gram matrices and a few eigenvectors, against numpy's whole ones."""

import numpy as np
import pytest
import torch

from mergelib.linalg.lapack import Tridiagonal, small_gram

pytestmark = pytest.mark.numeric


def symmetric(n: int, seed: int = 0) -> np.ndarray:
    tall = np.random.default_rng(seed).standard_normal((n + 3, n))
    return tall.T @ tall


@pytest.mark.parametrize("n", [1, 2, 3, 10, 63, 200])
def test_values_and_ends(n):
    matrix = symmetric(n)
    values, vectors = np.linalg.eigh(matrix)
    low, high = min(n, 7), min(n, 4)
    # the upper triangle is not read
    found = Tridiagonal(torch.from_numpy(np.tril(matrix)))
    np.testing.assert_allclose(found.values, values, atol=1e-13 * values[-1])
    ends = (slice(0, low), slice(n - high, n))
    for basis, part in zip(found.ends(low, high), ends, strict=True):
        basis = basis.numpy()
        np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-13)
        np.testing.assert_allclose(matrix @ basis, basis * values[part], atol=1e-12 * values[-1])
        np.testing.assert_allclose(np.abs(basis), np.abs(vectors[:, part]), atol=1e-9)


def test_solving_outside_the_lowest():
    matrix = symmetric(60)
    values, vectors = np.linalg.eigh(matrix)
    found = Tridiagonal(torch.tensor(matrix))
    found.ends(8, 2)
    right = np.random.default_rng(1).standard_normal((60, 3))
    shifts = values[[0, 3, 6]]  # the matrix less a shift is singular; outside the lowest it is not
    others = vectors[:, 8:]
    literal = others @ ((others.T @ right) / (values[8:, None] - shifts))
    solved = found.solve_outside(torch.from_numpy(right), torch.from_numpy(shifts))
    np.testing.assert_allclose(solved, literal, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("matrix", [np.eye(12), np.diag([3.0, 2.0, 1.0]), np.zeros((5, 5))])
def test_blocks_are_refused(matrix):
    found = Tridiagonal(torch.tensor(matrix))
    np.testing.assert_allclose(found.values, np.sort(np.diag(matrix)))
    with pytest.raises(torch.linalg.LinAlgError, match="falls into blocks"):
        found.ends(1, 1)


def test_the_lower_triangle_of_a_gram_matrix():
    for n in (1, 63, 64, 130, 300):
        wide = np.random.default_rng(n).standard_normal((2 * n + 7, n + 7))
        for tall in (wide[:, :n], np.asfortranarray(wide[:, :n]), wide[::2, :n], wide[:n, 7:]):
            for layout in (tall, np.flip(tall).T.copy().T):
                found = small_gram(torch.from_numpy(layout))
                literal = np.tril(layout.T @ layout)
                np.testing.assert_allclose(found.tril(), literal, rtol=1e-11, atol=1e-12)
                written = small_gram(torch.from_numpy(layout), found.fill_(7))
                assert written is found
                np.testing.assert_allclose(found.tril(), literal, rtol=1e-11, atol=1e-12)
