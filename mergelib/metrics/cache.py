"""Weight summaries and Gram entries kept in a folder, so that one more model costs one pass.

Files are named by the content of base and model (`mergelib.checkpoints.digests`).
"""

from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mergelib.checkpoints.reading import Source, opened
from mergelib.core.store import digest, load_tensors, save_tensors
from mergelib.metrics.weights import survey

FORMAT = 2  # raised when what a file holds or how it is computed changes
GROUP = 20  # models that are surveyed in one pass: what they make is in memory until they are kept


def cached_survey(
    folder: Path, base: Source, models: Sequence[Source], keys: Sequence[str], device: str = "cpu"
) -> tuple[dict[str, np.ndarray], list[Path]]:
    """Gram matrices (T, T) by tensor, and files of summaries, as of `survey`; what is missing is
    made. `keys`: content digests of base and models.

    A model's file of Gram entries holds `with/<content>` (L,), its products with others in the L
    tensors, in alphabetical order. One new model among many costs its row, which reads all models
    once. Raises MergelibError as `survey` does.
    """
    origin, *keys = keys
    summaries = [_file(folder, "summaries", origin, key) for key in keys]
    files = [_file(folder, "grams", origin, key) for key in keys]
    held = [load_tensors(file) if file.is_file() else {} for file in files]
    pairs = list(combinations_with_replacement(range(len(models)), 2))
    rows = _cover([pair for pair in pairs if _entry(held, keys, *pair) is None])
    fresh = [t for t, file in enumerate(summaries) if not file.is_file()]
    todo = sorted({*rows, *fresh})
    whole = len(models) // 2 < len(rows) and len(todo) <= GROUP
    for start in range(0, len(todo), GROUP):
        group = todo[start : start + GROUP]
        some = list(range(len(models))) if whole else [t for t in group if t in rows]
        new = [t for t in group if t in fresh]
        found, made = survey(base, models, None if whole else some, new, device)
        for t, summary in zip(new, made, strict=True):
            save_tensors(summaries[t], summary)
        products = torch.from_numpy(np.stack(list(found.values()), axis=-1))  # (R, T, L)
        for row, line in zip(some, products, strict=True):
            for other, values in enumerate(line):
                if not whole or other <= row:
                    held[row][f"with/{keys[other]}"] = values.clone()
            save_tensors(files[row], held[row])
    return _symmetric(base, held, keys, pairs), summaries


def _symmetric(
    base: Source,
    held: Sequence[Mapping[str, Tensor]],
    keys: Sequence[str],
    pairs: Sequence[tuple[int, int]],
) -> dict[str, np.ndarray]:
    """Gram matrices (T, T) by tensor from the entries of the pairs."""
    with opened(base) as weights:
        names = sorted(weights.floating)
    total = np.empty((len(names), len(keys), len(keys)))
    for i, j in pairs:
        total[:, i, j] = total[:, j, i] = _entry(held, keys, i, j)
    # A row's products with a model that did not move are rounding, not zero.
    still = np.diagonal(total, axis1=1, axis2=2) == 0
    total[still[:, :, None] | still[:, None, :]] = 0
    return dict(zip(names, total, strict=True))


def _file(folder: Path, kind: str, *keys: str) -> Path:
    return Path(folder) / kind / f"{digest(FORMAT, *keys)[:24]}.safetensors"


def _entry(
    held: Sequence[Mapping[str, Tensor]], keys: Sequence[str], i: int, j: int
) -> Tensor | None:
    return held[i].get(f"with/{keys[j]}", held[j].get(f"with/{keys[i]}"))


def _cover(pairs: Sequence[tuple[int, int]]) -> list[int]:
    """Models whose rows hold all these pairs: greedily, the one with most of them first."""
    left, rows = set(pairs), []
    while left:
        involved = [model for pair in left for model in set(pair)]
        rows.append(max(sorted(set(involved)), key=involved.count))
        left = {pair for pair in left if rows[-1] not in pair}
    return rows
