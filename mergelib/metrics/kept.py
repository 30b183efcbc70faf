"""Weight summaries and Gram entries kept in a folder, so that one more model costs one pass.

Files are named by the content of base and model (`mergelib.contents`).
"""

from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mergelib.metrics.weights import summarize
from mergelib.store import digest, load_tensors, save_tensors
from mergelib.vectors import Source, grams, opened

FORMAT = 1  # raised when what a file holds or how it is computed changes


def kept_summaries(
    folder: Path, base: Source, models: Sequence[Source], keys: Sequence[str], device: str = "cpu"
) -> list[Path]:
    """Files of `summarize`; those that are missing are made. `keys`: contents of base and models.

    Raises MergelibError as `summarize` does.
    """
    paths = []
    for model, key in zip(models, keys[1:], strict=True):
        paths.append(_file(folder, "summaries", keys[0], key))
        if not paths[-1].is_file():
            save_tensors(paths[-1], summarize(base, model, device))
    return paths


def kept_grams(
    folder: Path, base: Source, models: Sequence[Source], keys: Sequence[str], device: str = "cpu"
) -> dict[str, np.ndarray]:
    """Gram matrices (T, T) by tensor, as `mergelib.vectors.grams`; missing entries are made.

    A model's file holds `with/<content>` (L,), its products with others in the L tensors, in
    alphabetical order. One new model among many costs its row, which reads all models once.
    """
    origin, *keys = keys
    files = [_file(folder, "grams", origin, key) for key in keys]
    held = [load_tensors(file) if file.is_file() else {} for file in files]
    pairs = list(combinations_with_replacement(range(len(models)), 2))
    missing = [pair for pair in pairs if _entry(held, keys, *pair) is None]
    if missing:
        rows = _cover(missing)
        whole = len(rows) > len(models) // 2
        rows = list(range(len(models))) if whole else rows
        found = grams(base, models, None if whole else rows, device)
        products = torch.from_numpy(np.stack(list(found.values()), axis=-1))  # (R, T, L)
        for row, line in zip(rows, products, strict=True):
            for other, values in enumerate(line):
                if not whole or other <= row:
                    held[row][f"with/{keys[other]}"] = values.clone()
            save_tensors(files[row], held[row])
    names = _names(base)
    total = np.empty((len(names), len(models), len(models)))
    for i, j in pairs:
        total[:, i, j] = total[:, j, i] = _entry(held, keys, i, j)
    # A row's products with a model that did not move are rounding, not zero.
    still = np.diagonal(total, axis1=1, axis2=2) == 0
    total[still[:, :, None] | still[:, None, :]] = 0
    return dict(zip(names, total, strict=True))


def _names(base: Source) -> list[str]:
    with opened(base) as weights:
        return sorted(weights.floating)


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
