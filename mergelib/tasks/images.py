"""Images of a task where a user keeps them, drawn by a seed and read only when they are drawn.

A folder, flat or with a folder a class; with a CSV of file and label; `.npz` and `.safetensors` of
uint8 `images` (N, 3, H, W) or (N, H, W, 3) and int `labels` (N,); other packed files in `packed`.
"""

import io
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mergelib.core.errors import MergelibError, tell
from mergelib.core.store import load_tensors, read_table

SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
)  # fmt: skip
SPLIT = "calibration/"  # before the names of arrays that a run of this library stores
Transform = Callable[[Image.Image], Tensor]  # a picture to float32 (3, H, W), as an encoder wants


@dataclass(frozen=True)
class Images:
    """Images of a task: `read(i)` gives one, `label` says where they lie.

    `labels` (N,) int64 are numbers of `classes`, in their order, or, without `classes`, rows of the
    task's head. None: not known. `raw(i)` gives the bytes that an image is read from.
    """

    label: str
    count: int
    read: Callable[[int], Image.Image]
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    raw: Callable[[int], bytes] | None = None

    def content(self, i: int) -> bytes:
        """The bytes of an image: as they lie there, or its pixels."""
        return self.raw(i) if self.raw else self.read(i).tobytes()

    def under(self, names: Sequence[str]) -> "Images":
        """The same with labels that count the classes of a head, in its order.

        Raises MergelibError for a class that the head lacks.
        """
        if self.labels is None or not self.classes:
            return self
        absent = [name for name in self.classes if name not in names]
        if absent:
            raise MergelibError(
                f"{self.label}: class {absent[0]!r} is none of the head's {len(names)} classes "
                f"({', '.join(names[:3])}, …): give the folders or labels the names of the classes"
            )
        order = np.array([names.index(name) for name in self.classes], dtype=np.int64)
        return replace(self, labels=order[self.labels], classes=tuple(names))


def find_images(path: Path | str, labels: Path | str | None = None) -> Images:
    """The images at a path; `labels` is a CSV with the columns file and label.

    A label that is a whole number everywhere is a row of the head, others are names of classes.
    Raises MergelibError, naming the file, where there are none, where images lie both beside and in
    folders of classes, and for arrays and tables of another form.
    """
    path = Path(path)
    if path.suffix in (".npz", ".safetensors"):
        if labels is not None:
            raise MergelibError(f"{path} holds its own labels: leave out the CSV {labels}")
        return _arrays(path)
    if not path.is_dir():
        raise MergelibError(
            f"{path} is no folder of images, nor .npz or .safetensors: check the path"
        )
    files = _files(path)
    if not files:
        raise MergelibError(
            f"{path} holds no image ({', '.join(SUFFIXES[:4])}, …): give a folder of images"
        )
    if labels is not None:
        return _listed(path, files, Path(labels))
    parents = {file.relative_to(path).parts[0] for file in files if file.parent != path}
    if not parents:
        return _of_files(path, files)
    beside = [file for file in files if file.parent == path]
    if beside:
        raise MergelibError(
            f"{path} holds images ({beside[0].name}, …) beside folders of images "
            f"({min(parents)}, …): keep all of them in folders of classes, or none"
        )
    classes = in_order(parents)
    numbers = [classes.index(file.relative_to(path).parts[0]) for file in files]
    return _of_files(path, files, np.array(numbers, dtype=np.int64), classes)


def encoded(
    where: str, raw: Callable[[int], bytes], labels: Iterable[int], classes: tuple[str, ...]
) -> Images:
    """Images whose bytes `raw(i)` are files of pictures, a label each; `where` names them."""
    numbers = np.asarray(labels, dtype=np.int64)

    def read(i: int) -> Image.Image:
        return decoded(io.BytesIO(raw(i)), f"{i} of {where}")

    return Images(where, len(numbers), read, numbers, classes, raw)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Names of classes, each once, sorted; numbers by their value."""
    found = sorted(set(names))
    return tuple(sorted(found, key=int) if all(name.isdecimal() for name in found) else found)


def _files(path: Path) -> list[Path]:
    found = (f for f in path.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
    parts = {file: file.relative_to(path).parts for file in found}
    return sorted(f for f in parts if not any(part.startswith(".") for part in parts[f]))


def _of_files(
    path: Path,
    files: Sequence[Path],
    labels: np.ndarray | None = None,
    classes: tuple[str, ...] = (),
) -> Images:
    return Images(
        str(path),
        len(files),
        lambda i: decoded(files[i], str(files[i])),
        labels,
        classes,
        lambda i: files[i].read_bytes(),
    )


def decoded(file: Path | BinaryIO, label: str) -> Image.Image:
    """A picture of an image file. Raises MergelibError, naming it, for what is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata that no pixel depends on
            with Image.open(file) as held:
                return held.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split()).replace(label, "the file")
        raise MergelibError(
            f"image {label} cannot be read ({reason}): write it again, or take it out"
        ) from None


def _listed(path: Path, files: Sequence[Path], labels: Path) -> Images:
    """Images that a CSV names, relative to the folder; others are left out, which is said."""
    table = read_table(labels)
    for name in ("file", "label"):
        if name not in table:
            found = ", ".join(map(str, table.columns))
            raise MergelibError(f"{labels}: no column {name!r}, it has {found}: name it so")
    if table["file"].duplicated().any() or table[["file", "label"]].isna().any(axis=None):
        raise MergelibError(f"{labels}: a file comes twice, or a field is empty: mend the table")
    named = [path / str(name) for name in table["file"]]
    absent = [file for file in named if not file.is_file()]
    if absent or not named:
        which = f"lists {absent[0]}, which is missing" if absent else "lists no file"
        raise MergelibError(f"{labels} {which}: give paths as seen from {path}")
    left = len({*files} - {*named})
    if left:
        tell([f"{path}: {left} images are not in {labels.name} and are left out"])
    texts = [str(each).strip() for each in table["label"]]
    if all(text.isdigit() for text in texts):
        return _of_files(path, named, np.array(texts, dtype=np.int64))
    classes = tuple(sorted(set(texts)))
    return _of_files(path, named, np.array([classes.index(text) for text in texts]), classes)


def _arrays(path: Path) -> Images:
    held = arrays_of(path) if path.suffix == ".npz" else _of_safetensors(path)
    prefix = "" if "images" in held else SPLIT
    if f"{prefix}images" not in held:
        raise MergelibError(f"{path} holds {', '.join(held)}, no `images`: name the array so")
    images, labels = held[f"{prefix}images"], held.get(f"{prefix}labels")
    if images.dtype != np.uint8 or images.ndim != 4 or 3 not in (images.shape[1], images.shape[3]):
        raise MergelibError(
            f"{path}: images are {images.dtype} of shape {images.shape}: write uint8, (N, 3, H, W) "
            "or (N, H, W, 3)"
        )
    if not len(images):
        raise MergelibError(f"{path} holds no image: write some")
    if images.shape[3] != 3:
        images = images.transpose(0, 2, 3, 1)
    if labels is not None and (labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]):
        raise MergelibError(
            f"{path}: labels are {labels.dtype} of shape {labels.shape} for {len(images)} images: "
            "write one whole number an image"
        )
    if labels is not None and labels.min() < 0:
        raise MergelibError(f"{path}: a label is {labels.min()}: count classes from 0")
    numbers = None if labels is None else labels.astype(np.int64)
    return Images(
        str(path), len(images), lambda i: Image.fromarray(np.ascontiguousarray(images[i])), numbers
    )


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz. Raises MergelibError, naming it, where it cannot be read."""
    if not path.is_file():
        raise MergelibError(f"{path} is missing: check the path")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, BadZipFile) as error:
        raise MergelibError(f"{path} cannot be read ({error}): write it again") from None


def _of_safetensors(path: Path) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in load_tensors(path).items()}


def draw(images: Images, n: int, seed: int = 0) -> np.ndarray:
    """Numbers (n,) of n different images, by the seed.

    With labels classes come in turn, in random order, until each is used up. Raises MergelibError
    for fewer images than n.
    """
    if n < 1 or n > images.count:
        least = "give --n 1 or more" if n < 1 else f"give more, or --n {images.count}"
        raise MergelibError(
            f"{images.label} holds {images.count} images, asked for are {n}: {least}"
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(images.count)
    if images.labels is None:
        return order[:n]
    of = images.labels[order]
    rounds = np.empty(len(of), dtype=np.int64)
    ranks = np.empty(len(of), dtype=np.int64)
    for rank, which in enumerate(rng.permutation(np.unique(of))):
        here = np.flatnonzero(of == which)
        rounds[here], ranks[here] = np.arange(len(here)), rank
    return order[np.lexsort((ranks, rounds))][:n]


def fitted(picture: Image.Image, size: int) -> np.ndarray:
    """A picture as uint8 (3, size, size): short side resized to it, bicubic, then a centre crop.

    Source: Radford et al. 2021 (CLIP), its released code's `_transform`.
    """
    width, height = picture.size
    short = min(width, height)
    wide, high = size * width // short, size * height // short
    if (wide, high) != (width, height):
        picture = picture.resize((wide, high), Image.Resampling.BICUBIC)
    left, top = round((wide - size) / 2), round((high - size) / 2)
    cut = picture.crop((left, top, left + size, top + size))
    return np.asarray(cut).transpose(2, 0, 1)


def pixels(images: Images, chosen: Sequence[int] | np.ndarray, transform: Transform) -> Tensor:
    """The chosen images as an encoder wants them: float32 (n, 3, H, W)."""
    return torch.stack([transform(images.read(int(i))) for i in chosen])
