"""Ridge regression on columns that are means over n images, for any n, from a bank of several n.

Of columns x seen on n images the expected products E[z z'], z = (1, x, y), are those of an endless
sample and a noise that falls as 1 / n. A fit for n images is ridge regression on the products that
columns on n images have: so a statistic counts as much as n images make it worth.
Source: regression calibration for errors in variables (Fuller 1987, section 1.2).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mergelib.forecasting.bank import Bank
from mergelib.forecasting.intervals import between


@dataclass(frozen=True)
class Moments:
    """Sums of z z' over sides of merges at S sizes, z = (1, x, y) of K columns.

    total (..., S, M, K + 2, K + 2); sizes (S,), rising: the images that the columns were seen on.
    """

    names: tuple[str, ...]
    sizes: np.ndarray
    total: np.ndarray

    def of(self, names: Sequence[str]) -> "Moments":
        """Those of some columns."""
        at = [0, *(1 + self.names.index(name) for name in names), len(self.names) + 1]
        return Moments(tuple(names), self.sizes, self.total[..., at, :][..., at])

    def at(self, n: float) -> np.ndarray:
        """E[z z'] (..., M, K + 2, K + 2) of columns on n images.

        Linear in 1 / n between the sizes, as of means it is; beyond them that of the nearest size.
        """
        low, high, share = between(self.sizes, n)
        one, other = (
            self.total[..., k, :, :, :] / self.total[..., k, :, :1, :1] for k in (low, high)
        )
        return (1 - share) * one + share * other


def moments_of_pairs(bank: Bank) -> Moments:
    """The sums of every pair of a bank, (P, S, M, K + 2, K + 2), means over draws.

    A side that has fewer images than a size asks for counts with those that it has.
    """
    found = []
    for X, y in zip(bank.X, bank.kept, strict=True):
        y = np.broadcast_to(y[:, :, None, None, None], (*X.shape[:-1], 1))
        z = np.concatenate([np.ones_like(y), X, y], axis=-1)
        found.append(np.einsum("mtrsi,mtrsj->smij", z, z, optimize=True) / z.shape[2])
    return Moments(bank.names, bank.sizes, np.stack(found))


def summed(moments: Moments, kept: np.ndarray) -> Moments:
    """Sums over the pairs that each of F masks (F, P) keeps: total (F, S, M, K + 2, K + 2)."""
    total = np.tensordot(kept.astype(np.float64), moments.total, axes=1)
    return Moments(moments.names, moments.sizes, total)


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
