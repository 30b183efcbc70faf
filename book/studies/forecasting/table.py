"""The bank's table: statistics of random draws of the pools, both sides of every merge."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mergelib.core.store import digest, load_tensors
from mergelib.forecasting.statistics import COUNTS, Outputs, per_image, unlabelled
from mergelib.models.heads import logits
from mergelib.pipeline.params import Run
from mergelib.pipeline.task_data import head
from studies.forecasting.pools import pool, pool_file
from studies.forecasting.probes import merge_file, singles_file

SIZES = (5, 10, 20, 50, 100)
DRAWS = 20


def draws(run: Run, task: str, images: int, number: int = DRAWS) -> np.ndarray:
    """Orders of a pool's images, (number, images); the first n of one are its draw of n.

    So draws are nested in n, and the same for every pair and method, as one folder would be.
    """
    seed = int(digest("draws", run.seed, task)[:15], 16)
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(images) for _ in range(number)])


def side(store: Path, run: Run, pair: Sequence[str], method: str, which: int, size: int) -> dict:
    """What every image of one side's pool adds to the statistics, see `per_image`."""
    task = pair[which]
    held = load_tensors(merge_file(store, run, *pair, method, size))
    singles = _singles(singles_file(store, run, task, size))
    _, labels = pool(pool_file(store, run, task, size))
    found = (held["ab"[which]], singles["tuned"], singles["base"])
    return per_image(*(Outputs(z, logits(z, head(store, run, task))) for z in found), labels)


@lru_cache(maxsize=64)
def _singles(file: Path) -> dict[str, Tensor]:
    return load_tensors(file)


def rows(
    store: Path, run: Run, pair: Sequence[str], size: int, sizes: Sequence[int] = SIZES
) -> pd.DataFrame:
    """The bank's rows of a pair: methods, sides, draws, and `sizes` images asked for.

    `images`: how many a draw has; a pool that is smaller gives all of its images.
    """
    parts = []
    for method in run.methods:
        for which in (0, 1):
            terms = side(store, run, pair, method, which, size)
            total = len(terms["moved"])
            order = torch.from_numpy(draws(run, pair[which], total))
            images = np.minimum(sizes, total)
            sums = {name: x[order].cumsum(dim=1)[:, images - 1] for name, x in terms.items()}
            found = unlabelled(sums, torch.from_numpy(images))
            found |= {name: sums[name].round() for name in COUNTS}
            shape = (len(order), len(sizes))
            axes = {"draw": np.arange(len(order))[:, None], "n": sizes, "images": images}
            columns = {name: np.broadcast_to(x, shape).ravel() for name, x in axes.items()}
            columns |= {name: x.numpy().ravel() for name, x in found.items()}
            of = {"task_a": pair[0], "task_b": pair[1], "method": method, "side": "ab"[which]}
            parts.append(pd.DataFrame(of | columns, columns=list(of | columns)))
    table = pd.concat(parts, ignore_index=True)
    return table.astype(dict.fromkeys(["draw", "n", "images", *COUNTS], "int16"))


def rounded(table: pd.DataFrame, bits: int = 10) -> pd.DataFrame:
    """Floats as float32 with `bits` of mantissa, a relative error of 2^-(bits + 1): they compress.

    Draws of five images spread a hundred times as much.
    """
    out = table.copy()
    for name in table.select_dtypes("floating"):
        mantissa, exponent = np.frexp(table[name].to_numpy(np.float64))
        kept = np.ldexp(np.round(np.ldexp(mantissa, bits)), exponent - bits)
        out[name] = kept.astype(np.float32)
    return out


def pairs_of(tasks: Sequence[str]) -> Iterator[tuple[str, str]]:
    """All pairs of tasks in their order."""
    for k, first in enumerate(tasks):
        for second in tasks[k + 1 :]:
            yield first, second
