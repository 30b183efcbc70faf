"""The SVD of a product from its factors, against LAPACK's of the product."""

import pytest
import torch

from mergelib.linalg.low_rank import product_triplets

EPS = torch.finfo(torch.float64).eps


def randn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(("m", "n", "r"), [(9, 7, 3), (7, 9, 3), (4, 9, 6), (9, 4, 6)])
def test_triplets_of_a_product(m, n, r):
    """Against LAPACK's SVD of the product; what QR and products round is a few eps·‖L‖‖R‖."""
    left, right = randn(m, r).double(), randn(r, n).double()
    u, s, v = product_triplets(left, right)
    room = 50 * EPS * float(left.norm() * right.norm())
    wanted = torch.linalg.svdvals(left @ right)[: min(m, n, r)]
    torch.testing.assert_close(s, wanted, rtol=0, atol=room)
    torch.testing.assert_close((u * s) @ v.T, left @ right, rtol=0, atol=room)
    few = product_triplets(left, right, rank=2)[1]
    torch.testing.assert_close(few, wanted[:2], rtol=0, atol=room)
    left[:, 1:] = left[:, :1]  # of rank one
    assert [part.shape for part in product_triplets(left, right)] == [(m, 1), (1,), (n, 1)]
    assert not len(product_triplets(0 * left, right)[1])
