"""Images in tar files with a label beside each: the layout of WebDataset, read at random."""

import tarfile
from collections.abc import Sequence
from pathlib import Path

from mergelib.core.errors import MergelibError
from mergelib.tasks.images import SUFFIXES, Images, encoded, in_order
from mergelib.tasks.sources import Opened, Place, form

LABELS = (".cls", ".txt")  # a number, or the name of a class


@form("webdataset", "tar files, `KEY.jpg` beside `KEY.cls`; `train` and `test` are their folders")
def webdataset(place: Place) -> Opened:
    """Images of a tar file, of a folder of them, or of those that a pattern (`a-*.tar`) fits.

    Raises MergelibError, naming the file, where there is none, and for an image without a label.
    """
    train = read_shards(_shards(Path(place.at) / place.train))
    return train, read_shards(_shards(Path(place.at) / place.test)) if place.test else None


def _shards(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    pattern = ("*.tar", path) if path.is_dir() else (path.name, path.parent)
    found = sorted(file for file in pattern[1].glob(pattern[0]) if file.suffix == ".tar")
    if not found:
        raise MergelibError(f"{path} is no tar file and holds none: check the path")
    return found


def read_shards(files: Sequence[Path]) -> Images:
    """The images of tar files in the order of their names, found by an index and read one by one.

    Raises MergelibError, naming the file, for what is no tar file and an image without a label.
    """
    held = [entry for file in files for entry in _index(file)]
    texts = [label for *_, label in held]
    if not held:
        raise MergelibError(f"{files[0]} holds no image with a label: write KEY.jpg and KEY.cls")
    where = str(files[0].parent if len(files) > 1 else files[0])
    numbered = all(text.isdecimal() for text in texts)
    classes = () if numbered else in_order(texts)
    labels = [int(text) if numbered else classes.index(text) for text in texts]

    def raw(i: int) -> bytes:
        file, offset, size, _ = held[i]
        with file.open("rb") as handle:
            handle.seek(offset)
            return handle.read(size)

    return encoded(where, raw, labels, classes)


def _index(file: Path) -> list[tuple[Path, int, int, str]]:
    """Of every image of a tar file: file, offset, size, label."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, str] = {}
    try:
        with tarfile.open(file, "r:") as held:
            for member in held:
                stem, dot, suffix = member.name.rpartition(".")
                if member.isfile() and f".{suffix.lower()}" in SUFFIXES:
                    images[stem] = (member.offset_data, member.size)
                elif member.isfile() and dot + suffix in LABELS:
                    text = held.extractfile(member)
                    labels[stem] = text.read().decode().strip() if text else ""
    except (tarfile.TarError, OSError, UnicodeDecodeError) as error:
        raise MergelibError(f"{file} is no readable tar file ({error}): write it again") from None
    absent = [stem for stem in images if not labels.get(stem)]
    if absent:
        raise MergelibError(f"{file}: image {absent[0]} has no label: write {absent[0]}.cls")
    return [(file, *place, labels[stem]) for stem, place in images.items()]
