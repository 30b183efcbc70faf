"""Ridge regression on columns that are means over n images, for any n, from a bank of several n.

Of columns x seen on n images, the expected products are those of an endless sample and a noise that
falls with n: E[z z'] = A + B / n, z = (1, x, y). A and B are fitted to the bank's sizes, and a fit
for n images is ridge regression on A + B / n: so a statistic counts as much as n images make it
worth. Source: regression calibration for errors in variables (Fuller 1987, section 1.2).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mergelib.forecast.bank import Bank


@dataclass(frozen=True)
class Moments:
    """Sums over sides of merges, z = (1, x, y) of K columns: A and B (..., M, K + 2, K + 2).

    ends (..., 2): the tasks of each pair where the first axis is one, None where it is summed.
    """

    names: tuple[str, ...]
    A: np.ndarray
    B: np.ndarray

    def of(self, names: Sequence[str]) -> "Moments":
        """Those of some columns."""
        at = [0, *(1 + self.names.index(name) for name in names), len(self.names) + 1]
        A, B = (x[..., at, :][..., at] for x in (self.A, self.B))
        return Moments(tuple(names), A, B)

    def at(self, inverse_n: float) -> np.ndarray:
        """Mean products E[z z'] (..., M, K + 2, K + 2) for columns on n images, 1 / n given."""
        total = self.A + self.B * inverse_n
        return total / total[..., :1, :1]


def moments_of_pairs(bank: Bank) -> Moments:
    """A and B of every pair of a bank, (P, M, K + 2, K + 2): least squares on 1 / n, each side."""
    shape = (*bank.X.shape[:-1], 1)
    kept = np.broadcast_to(bank.kept[:, :, :, None, None, None], shape)
    found = []
    for X, y, images in zip(bank.X, kept, bank.images, strict=True):
        z = np.concatenate([np.ones_like(y), X, y], axis=-1)
        products = np.einsum("mtrsi,mtrsj->tsmij", z, z) / z.shape[2]
        line = np.linalg.pinv(np.stack([np.ones(images.shape), 1 / images], axis=-1))
        found.append(np.einsum("tcs,tsmij->cmij", line, products))
    A, B = np.stack(found, axis=1)
    return Moments(bank.names, A, B)


def summed(moments: Moments, kept: np.ndarray) -> Moments:
    """Sums over the pairs that each of F masks (F, P) keeps: (F, M, K + 2, K + 2)."""
    A, B = (np.tensordot(kept.astype(np.float64), x, axes=1) for x in (moments.A, moments.B))
    return Moments(moments.names, A, B)


def ridge(products: np.ndarray, strength: float, sharing: float) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (..., M, K) and intercepts (..., M) from `Moments.at`.

    With columns in units of their standard deviation (mean over methods) and each method's own
    mean taken off, C_m their covariances and a_m those with y:
    b_0 = (mean C_m + strength I)^-1 mean a_m is what methods share,
    b_m = (C_m + (strength + sharing) I)^-1 (a_m + sharing b_0) leans towards it.
    A method that the bank does not hold has b_0 and the mean intercept: the last of M + 1.
    Source: Hoerl and Kennard 1970; shrinkage to a common mean, Lindley and Smith 1972.
    """
    mean = products[..., 0, 1:]
    centered = products[..., 1:, 1:] - mean[..., :, None] * mean[..., None, :]
    C, a = centered[..., :-1, :-1], centered[..., :-1, -1]
    spread = np.sqrt(np.maximum(np.diagonal(C, axis1=-2, axis2=-1).mean(axis=-2), 0.0))
    unit = np.where(spread > 0, spread, 1.0)[..., None, :]
    C, a = C / unit[..., :, None] / unit[..., None, :], a / unit
    eye = np.eye(C.shape[-1])
    common = np.linalg.solve(C.mean(axis=-3) + strength * eye, a.mean(axis=-2)[..., None]).swapaxes(
        -1, -2
    )
    right = (a + sharing * common)[..., None]
    own = np.linalg.solve(C + (strength + sharing) * eye, right)[..., 0]
    coef = np.concatenate([own, common], axis=-2) / unit
    mean = np.concatenate([mean, mean.mean(axis=-2, keepdims=True)], axis=-2)
    return coef, mean[..., -1] - (coef * mean[..., :-1]).sum(axis=-1)
