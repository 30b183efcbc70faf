"""Where the images of a task may come from: one function a form, opened and not yet decoded."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mergelib.core.errors import MergelibError
from mergelib.core.registry import Registry
from mergelib.tasks.images import Images, find_images
from mergelib.tasks.packed import is_packed, read_packed

SPLIT_NAMES = {"train", "test", "val", "valid", "validation"}
Opened = tuple[Images, Images | None]


@dataclass(frozen=True)
class Place:
    """Where images lie: a source's form, and what that form is told.

    `train` and `test` are the source's own names of its parts: sub-folders, files, or splits.
    """

    form: str
    at: str
    train: str = ""
    test: str = ""
    labels: str = ""
    image: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    download: bool = False

    def __hash__(self) -> int:
        return hash(repr(self))


@dataclass(frozen=True)
class Form:
    """One form; `read(place)` opens it, `under(place, folder)` sees its paths from a folder."""

    name: str
    about: str
    read: Callable[[Place], Opened]
    under: Callable[[Place, Path], Place]


def from_folder(place: Place, folder: Path) -> Place:
    """A place that is a path."""
    return replace(place, at=str(folder / place.at))


FORMS: Registry[Form] = Registry("source of images", group="mergelib.sources")


def form(
    name: str, about: str, under: Callable[[Place, Path], Place] = from_folder
) -> Callable[[Callable[[Place], Opened]], Callable[[Place], Opened]]:
    """Register a function read(place) -> (training images, test images or None) as a source.

    Raises MergelibError if another module has registered the name.
    """

    def register(read: Callable[[Place], Opened]) -> Callable[[Place], Opened]:
        FORMS.add(Form(name, about, read, under))
        return read

    return register


@form("folder", "a folder a class, or `labels`, a CSV of file and label; `train` and `test` of it")
def folder(place: Place) -> Opened:
    """Images of class folders. Raises MergelibError for a folder that is not there."""
    top = Path(place.at)
    labels = top / place.labels if place.labels else None
    if not top.is_dir():
        raise MergelibError(f"the folder {top} is missing: put the images there, a folder a class")
    if place.test:
        return find_images(top / place.train, None), find_images(top / place.test, None)
    found = find_images(top / place.train, labels)
    if len(found.classes) > 1 and {name.lower() for name in found.classes} <= SPLIT_NAMES:
        names = ", ".join(found.classes)
        raise MergelibError(
            f"{top} holds the folders {names}, which are splits and no classes: name them by "
            "`train: …` and `test: …`"
        )
    return found, None


@form("npz", "uint8 `images` and `labels`, or encoded `data`, `offsets`, `label`, `classes`")
def npz(place: Place) -> Opened:
    """Images of an .npz, which is held in memory; `test` is another file beside it."""
    path = Path(place.at)
    if path.is_file() and is_packed(path):
        return read_packed(path)
    if not path.is_file():
        raise MergelibError(f"{path} is missing: check the path, or get the data set")
    return find_images(path), find_images(path.parent / place.test) if place.test else None
