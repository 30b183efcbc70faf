"""Splits of given tasks as uint8 pixels in a file that is mapped, not read: resized once."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import xxhash
from torch import Tensor

from mergelib.core.errors import MergelibError, tell
from mergelib.core.store import save_tensors
from mergelib.tasks.given import Given, dealt
from mergelib.tasks.images import Images, fitted


def write_splits(
    file: Path, given: Given, sizes: Mapping[str, int], seed: int, side: int
) -> dict[str, int]:
    """Write a task's splits, `SPLIT/images` (N, 3, side, side) uint8 and `SPLIT/labels` (N,) int64.

    One image is in memory at a time. What is in the test split as well, pixel by pixel, is left out
    of calibration, and what is in either out of training, which is told. Returns the numbers left
    out. Raises MergelibError as `dealt` does, for an image that cannot be read, and where nothing
    is left.
    """
    parts, seen = dealt(given, sizes, seed), set[str]()
    held: dict[str, Tensor] = {}
    left_out = {}
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=file.parent) as room:  # no name: a killed run leaves nothing
        total = sum(len(chosen) for _, chosen in parts.values())
        pixels = np.memmap(room, np.uint8, "w+", shape=(total, 3, side, side))
        start = 0
        for split in ("test", "calibration", "train"):
            images, chosen = parts[split]
            kept, hashes = _fill(pixels[start:], images, chosen, side, seen)
            seen |= hashes
            if not len(kept):
                raise MergelibError(
                    f"task {given.name!r}: every image of {split} is in another split: give others"
                )
            left_out[split] = len(chosen) - len(kept)
            end = start + len(kept)
            assert images.labels is not None
            held[f"{split}/images"] = torch.from_numpy(pixels[start:end])
            held[f"{split}/labels"] = torch.from_numpy(images.labels[kept])
            start = end
        save_tensors(file, held)
        del pixels, held
    tell(
        f"task {given.name!r}: {n} images of {split} are in another split too and are left out"
        for split, n in left_out.items()
        if n
    )
    return left_out


def _fill(
    pixels: np.ndarray, images: Images, chosen: np.ndarray, side: int, seen: set[str]
) -> tuple[np.ndarray, set[str]]:
    """Write the chosen images that were not seen, from the first row on: which, and their hashes.

    An image that comes twice in one split is there twice.
    """
    kept: list[int] = []
    hashes: set[str] = set()
    for i in chosen:
        image = fitted(images.read(int(i)), side)
        name = xxhash.xxh3_128_hexdigest(image.tobytes())
        if name not in seen:
            pixels[len(kept)] = image
            kept.append(int(i))
            hashes.add(name)
    return np.array(kept, dtype=np.int64), hashes
