"""Principal angle metrics (extra): the angles between the leading subspaces, one by one.

The cosines of the principal angles between the spans of B_i and B_j, the first k left (or right)
singular vectors of τ_i,ℓ and τ_j,ℓ, are the singular values 1 ≥ c_1 ≥ … ≥ c_k ≥ 0 of B_iᵀ B_j. Each
metric is a mean over the matrices ℓ that are not zero in either task vector (0 if none is left).
The subspace category's overlaps are their root mean square. Of a matrix with a rank below k
some vectors are arbitrary, and so is the smallest cosine.
"""

from collections.abc import Callable

import numpy as np

from mergelib.metrics.inputs import Inputs, basis_products
from mergelib.metrics.registry import metric
from mergelib.metrics.subspace import layer_mean

CATEGORY = "principal_angles"
REFERENCE = "Björck and Golub 1973, Numerical methods for computing angles between linear subspaces"
STATISTICS = {
    "mean": lambda cosines: cosines.mean(axis=-1),
    "min": lambda cosines: cosines[..., -1],
    "max": lambda cosines: cosines[..., 0],
}


def principal_cosines(bases: np.ndarray) -> np.ndarray:
    """Cosines of the principal angles of T orthonormal bases (m, T, k): (T, T, k), descending."""
    products = basis_products(bases).transpose(0, 2, 1, 3)
    return np.clip(np.linalg.svd(products, compute_uv=False), 0, 1)


def _define(side: str, end: str, statistic: str) -> None:
    reduce: Callable[[np.ndarray], np.ndarray] = STATISTICS[statistic]

    def function(x: Inputs) -> np.ndarray:
        return layer_mean(
            x, "corrected", lambda part: reduce(principal_cosines(getattr(part, end))), 0.0
        )

    function.__doc__ = f"Mean over ℓ of the {statistic} of the cosines of the {side} subspaces."
    name = f"{side}_principal_cosine_{statistic}"
    metric(name, CATEGORY, (0, 1), REFERENCE)(function)


for _side, _end in (("left", "u_top"), ("right", "v_top")):
    for _statistic in STATISTICS:
        _define(_side, _end, _statistic)
