"""Images that data set libraries hold: datasets of Hugging Face, torchvision's own."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mergelib.core.documents import one_line
from mergelib.core.errors import MergelibError
from mergelib.tasks.images import Images, encoded, in_order
from mergelib.tasks.sources import Opened, Place, form

SAVED = ("dataset_dict.json", "dataset_info.json")  # in a folder that save_to_disk wrote


@contextmanager
def _asked(place: Place, library: str) -> Iterator[None]:
    """Turn what a library raises into one line that says how to get the data."""
    try:
        yield
    except MergelibError:
        raise
    except ImportError as error:
        raise MergelibError(
            f"{place.form} {place.at} wants a package that is missing ({one_line(error)}): "
            f"pip install {library}"
        ) from None
    except Exception as error:  # a library raises many kinds; the user needs one line
        mend = "check what it is told" if place.download else "give `download: true` to fetch it"
        raise MergelibError(
            f"{place.form} {place.at} cannot be opened ({one_line(error)}): {mend}"
        ) from None


# ---- datasets of Hugging Face --------------------------------------------------------------------


@contextmanager
def _without_network() -> Iterator[None]:
    """What the libraries hold is found at once; a hub asked in vain takes half a minute a set."""
    import datasets
    import huggingface_hub

    places: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = True
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def _if_there(place: Place, folder: Path) -> Place:
    return replace(place, at=str(folder / place.at)) if (folder / place.at).exists() else place


@form("hf", "a `datasets` name, or a folder of save_to_disk or of Parquet files", _if_there)
def hugging_face(place: Place) -> Opened:
    """Images of a data set of Hugging Face; `train` and `test` are its splits.

    `image` and `labels` are its columns, else the first of images and of classes. Raises
    MergelibError, with the mend, where it is not there.
    """
    with _asked(place, "datasets"):
        import datasets

        if any((Path(place.at) / name).is_file() for name in SAVED):
            held = datasets.load_from_disk(place.at)
        else:
            with nullcontext() if place.download else _without_network():
                held = datasets.load_dataset(place.at, **place.arguments)
        if isinstance(held, datasets.Dataset):
            return _of_split(held, place, ""), None
        train, test = place.train or "train", place.test or "test"
        for name in (train, place.test):
            if name and name not in held:
                raise MergelibError(
                    f"hf {place.at} has the splits {', '.join(held)}, no {name}: give `train` "
                    "and `test` of these"
                )
        found = _of_split(held[train], place, train)
        return found, _of_split(held[test], place, test) if test in held else None


def _of_split(held: Any, place: Place, split: str) -> Images:
    import datasets

    columns = held.features
    image = place.image or _first(columns, datasets.Image)
    label = place.labels or _first(columns, datasets.ClassLabel) or "label"
    for name in (image, label):
        if name not in columns:
            raise MergelibError(
                f"hf {place.at} has the columns {', '.join(columns)}: give `image` and `labels`, "
                "the names of those of images and classes"
            )
    held = held.cast_column(image, datasets.Image(decode=False))
    values = held.with_format("numpy", columns=[label])[label][:]
    names = tuple(getattr(columns[label], "names", ()))
    if not names and np.asarray(values).dtype.kind not in "iu":
        names = in_order(map(str, values))
        values = [names.index(str(value)) for value in values]

    def raw(i: int) -> bytes:
        cell = held[i][image]
        return cell["bytes"] or Path(cell["path"]).read_bytes()

    return encoded(f"{place.at} {split}".strip(), raw, values, names)


def _first(columns: Any, kind: type) -> str:
    return next((name for name, each in columns.items() if isinstance(each, kind)), "")


# ---- torchvision ---------------------------------------------------------------------------------


def _root(place: Place, folder: Path) -> Place:
    root = folder / str(place.arguments.get("root", "data"))
    return replace(place, arguments={**place.arguments, "root": str(root)})


@form("torchvision", "a class of torchvision.datasets, with `arguments` and `download`", _root)
def of_torchvision(place: Place) -> Opened:
    """Images of a data set of torchvision, by the class's own argument `split` or `train`.

    `train` and `test` are values of `split`; a class that has neither argument is all training.
    Raises MergelibError, with the mend, where it is not there.
    """
    with _asked(place, "torchvision"):
        from torchvision import datasets

        kind = getattr(datasets, place.at, None)
        if kind is None:
            raise MergelibError(f"torchvision has no data set {place.at!r}: check the name")
        takes = inspect.signature(kind).parameters
        told = dict(place.arguments)
        if "download" in takes:
            told["download"] = place.download
        sides: list[dict[str, Any]] = [{}]
        if "split" in takes:
            sides = [{"split": place.train or "train"}, {"split": place.test or "test"}]
        elif "train" in takes:
            sides = [{"train": True}, {"train": False}]
        parts = [_of_set(kind(**told, **side), place) for side in sides]
    return parts[0], parts[1] if len(parts) > 1 else None


def _of_set(held: Any, place: Place) -> Images:
    samples = getattr(held, "_samples", getattr(held, "samples", None))
    labels = next(
        (getattr(held, n) for n in ("targets", "_labels", "labels") if hasattr(held, n)), None
    )
    if labels is None:
        pairs = samples or (held[i] for i in range(len(held)))
        labels = [each[1] for each in pairs]
    files = [each[0] for each in samples] if samples else getattr(held, "_image_files", None)
    names = tuple(map(str, getattr(held, "classes", ())))
    numbers = np.asarray(labels, dtype=np.int64)

    def read(i: int) -> Image.Image:
        return held[i][0].convert("RGB")

    raw = None if not files else lambda i: Path(files[i]).read_bytes()
    if numbers.max(initial=0) >= len(names):
        names = ()  # EMNIST counts its letters from 1
    return Images(f"torchvision {place.at}", len(held), read, numbers, names, raw)
