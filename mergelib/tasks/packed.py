"""Encoded images, or texts to draw, packed into one `.npz` with their own splits.

`data` uint8, all images one after another, `offsets` (N + 1,) of them, or `text` (N,) in place of
both; `label` (N,) counts `classes` (C,); `split` (N,), where there is one, 0 train and 1 test.
"""

import io
import textwrap
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mergelib.core.errors import MergelibError
from mergelib.tasks.images import Images, arrays_of, decoded

SIDE, EM, MARGIN = 448, 26, 14  # pixels of a drawn text: picture, font size, border
COLUMNS = 27  # characters a line, of the width of an M half an em


def is_packed(path: Path) -> bool:
    """Whether an .npz is of this form."""
    return {"label", "classes"} <= set(arrays_of(path))


def read_packed(path: Path) -> tuple[Images, Images | None]:
    """The training and the test images of a packed file; no test images where it has no splits.

    Raises MergelibError, naming the file, for arrays that do not fit each other.
    """
    held = arrays_of(path)
    labels, names = held["label"].astype(np.int64), tuple(map(str, held["classes"]))
    splits = held.get("split", np.zeros(len(labels), dtype=np.uint8))
    texts = "text" in held
    fits = "offsets" in held and "data" in held and len(held["offsets"]) == len(labels) + 1
    if not (fits or (texts and len(held["text"]) == len(labels))) or splits.shape != labels.shape:
        raise MergelibError(f"{path}: data, offsets, label and split do not fit: write it again")
    if not len(labels) or labels.min() < 0 or labels.max() >= len(names):
        raise MergelibError(f"{path}: labels must lie in 0 … {len(names) - 1}: write it again")

    def raw(i: int) -> bytes:
        if texts:
            return str(held["text"][i]).encode()
        return held["data"][held["offsets"][i] : held["offsets"][i + 1]].tobytes()

    def read(i: int) -> Image.Image:
        if texts:
            return drawn(str(held["text"][i]))
        return decoded(io.BytesIO(raw(i)), f"{i} of {path}")

    def part(which: int) -> Images:
        at = np.flatnonzero(splits == which)
        return Images(
            str(path), len(at), lambda i: read(at[i]), labels[at], names, lambda i: raw(at[i])
        )

    return part(0), part(1) if (splits == 1).any() else None


def drawn(text: str) -> Image.Image:
    """A text in DejaVu Sans, black on white, broken into lines."""
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    lines = "\n".join(textwrap.wrap(text, COLUMNS))
    ImageDraw.Draw(picture).multiline_text((MARGIN, MARGIN), lines, "black", _font())
    return picture


@cache
def _font() -> ImageFont.FreeTypeFont:
    import matplotlib  # which ships the font

    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(file), EM, layout_engine=ImageFont.Layout.BASIC)
