"""Every pair of the bank forecast with its two tasks left out of whatever is learned.

Coefficients leave out both tasks. The errors that intervals and probabilities rest on are those of
the pairs inside a fold, by coefficients that leave out their two tasks as well: four in all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from mergelib.forecasting.bank import Bank
from mergelib.forecasting.calibration import (
    SHARING,
    STRENGTH,
    Calibration,
    calibrate,
    held_out,
    variance_of,
    with_paired,
)
from mergelib.forecasting.moments import Moments, summed

INNER_DRAWS = 5  # of the bank's, that errors inside a fold are taken from
BLOCKS = 300  # blocks of four tasks at once


@dataclass(frozen=True)
class Outcome:
    """Left-out forecasts (P, M, R, S) of mean and worse side; the calibration of every fold."""

    mean: np.ndarray
    worse: np.ndarray
    calibration: list[Calibration]


def evaluate(
    bank: Bank,
    of_pairs: Moments,
    names: list[str],
    paired: Sequence[str] = (),
    strength: float = STRENGTH,
    sharing: float = SHARING,
) -> Outcome:
    """Forecasts by the columns `names` and the `paired` ones, and what each fold knows of errors.

    of_pairs: `moments_of_pairs` of the bank.
    """
    every = np.arange(len(bank.ends))
    of_pairs = of_pairs.of(names)
    folds = summed(of_pairs, np.array([bank.without(e) for e in bank.ends]))
    own, _ = held_out(bank, folds, every, every, names, strength, sharing)
    found = inner(bank, of_pairs, names, paired, strength, sharing)
    parts, methods = [], list(range(len(bank.methods)))
    for k, of in enumerate(found):
        pair = every[k : k + 1]
        variance = variance_of(bank, pair, of.side, methods)
        parts.append(with_paired(bank, pair, own[pair], variance, of.gamma, paired))
    sides = np.concatenate(parts)
    return Outcome(sides.mean(axis=2), sides.min(axis=2), found)


def inner(
    bank: Bank,
    of_pairs: Moments,
    names: list[str],
    paired: Sequence[str],
    strength: float,
    sharing: float,
) -> list[Calibration]:
    """The calibration of every fold, from the pairs inside it.

    For the fold without (a, b), the pair (c, d) is forecast by coefficients without a, b, c, d: one
    fit of a block of four tasks serves six pairs and six folds.
    """
    few = replace(bank, X=bank.X[:, :, :, :INNER_DRAWS])
    place = {tuple(sorted(e)): k for k, e in enumerate(bank.ends.tolist())}
    blocks = list(combinations(np.unique(bank.ends).tolist(), 4))
    outer, pair, found = [], [], []
    for start in range(0, len(blocks), BLOCKS):
        part = blocks[start : start + BLOCKS]
        folds = summed(of_pairs, np.array([bank.without(block) for block in part]))
        asked = []
        for k, block in enumerate(part):
            for a, b in combinations(block, 2):
                c, d = sorted(set(block) - {a, b})
                if (a, b) in place and (c, d) in place:
                    asked.append((k, place[a, b], place[c, d]))
        fold, of_outer, of_pair = np.array(asked).T
        sides = held_out(few, folds, fold, of_pair, names, strength, sharing)
        found.append(sides.astype(np.float32))  # half the memory
        outer.append(of_outer)
        pair.append(of_pair)
    which, whose = np.concatenate(outer), np.concatenate(pair)
    forecasts = np.concatenate(found, axis=1)
    out = []
    for k in range(len(bank.ends)):
        rows = np.flatnonzero(which == k)
        out.append(calibrate(few, whose[rows], forecasts[:, rows].astype(np.float64), paired))
    return out
