"""How far rounding alone may take a result: the tolerances of the numeric tests."""

import numpy as np
import torch


def bound(dtype: torch.dtype, size: int, condition: float = 1.0, factor: float = 10.0) -> float:
    """factor · eps · size · condition, relative to the result's size.

    eps of the type that the products run in; size, the number of terms in the longest sum or the
    order of the decomposed matrix; condition, by how much the answer amplifies a change of the
    data (σ₁/σᵣ for a polar factor, σ₁/gap for a singular subspace). Backward-stable algorithms
    stay below eps · size · condition (Higham 2002, chapters 3 and 19); the factor is the slack
    between implementations.
    """
    return factor * torch.finfo(dtype).eps * size * condition


def condition(matrix: np.ndarray) -> float:
    """σ₁/σᵣ over the singular values that are not null (numpy's matrix_rank)."""
    s = np.linalg.svd(matrix, compute_uv=False)
    kept = s[s > max(matrix.shape) * np.finfo(matrix.dtype).eps * s[0]]
    return float(kept[0] / kept[-1])
