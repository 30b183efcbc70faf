"""Metrics whose coefficients no data can tell apart."""

from collections.abc import Sequence

import numpy as np


def collinear_groups(
    X: np.ndarray, names: Sequence[str], tolerance: float = 1e-5
) -> list[tuple[str, ...]]:
    """Groups of metrics tied by an exact linear relation (with intercept) over the pairs X (n, p).

    The columns are standardized; singular values below `tolerance` times the largest span the
    null space, V its basis: metric k is identifiable iff (VV')_kk = 0, and metrics i, j share a
    group if (VV')_ij is not 0. A constant metric, collinear with the intercept, is a group of
    its own. The default tolerance is that of values stored in float32. Only a group's joint
    effect is determined: never read one of its members' coefficients as a finding.
    """
    X = np.asarray(X, dtype=np.float64)
    centered = X - X.mean(axis=0)
    spread = np.sqrt((centered**2).mean(axis=0))
    constant = spread <= 1e-12 * np.abs(X).max(axis=0)
    groups: list[tuple[str, ...]] = [(names[k],) for k in np.flatnonzero(constant).tolist()]
    kept = np.flatnonzero(~constant).tolist()
    if not kept:
        return groups
    _, s, vt = np.linalg.svd(centered[:, kept] / spread[kept], full_matrices=True)
    rank = int((s > tolerance * s[0]).sum())
    projector = vt[rank:].T @ vt[rank:]
    tied = np.abs(projector) > 1e-3
    left = set(np.flatnonzero(tied.diagonal()).tolist())
    while left:
        group, frontier = set(), {min(left)}
        while frontier:
            group |= frontier
            frontier = {j for i in frontier for j in np.flatnonzero(tied[i]).tolist()} - group
        left -= group
        groups.append(tuple(names[kept[k]] for k in sorted(group)))
    return groups
