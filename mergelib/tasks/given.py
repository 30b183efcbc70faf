"""Tasks that a parameter file gives: where their images lie, their words, how they are split."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, get_origin

import numpy as np
import xxhash

from mergelib.core.errors import MergelibError
from mergelib.core.registry import unknown
from mergelib.core.store import digest
from mergelib.core.threads import threaded
from mergelib.tasks import libraries, shards  # noqa: F401 - they register their sources
from mergelib.tasks.images import Images
from mergelib.tasks.registry import SPLITS, Asked
from mergelib.tasks.sources import FORMS, Place
from mergelib.tasks.words import TEMPLATES, Classes, checked, lines_of, read_classes

Parts = dict[str, tuple[Images, np.ndarray]]  # of each split: images, and the numbers chosen


@dataclass(frozen=True)
class Given:
    """A task of a parameter file: the source that holds its images, and what is said of them.

    `classes` are names in the order of the labels, names by label or folder, or a file of them;
    `templates` prompts or a file of them, one a line; `sizes` images per split where they differ
    from the run's; `origin` and `licence` are passed on to the table of tasks.
    """

    name: str
    place: Place
    classes: Any = field(default_factory=list)
    templates: Any = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    family: str = "own"
    origin: str = ""
    licence: str = ""
    pinned: str = ""  # digest of its images, once found

    def __hash__(self) -> int:
        return hash(repr(self))


def read_given(raw: Mapping[str, Any], where: str) -> Given:
    """A task of the mapping that stands in a parameter file.

    One of its keys names a source of images; others are those of `Given` and of `Place`. Raises
    MergelibError, with the mend, for other keys, values of another type, and no or two sources.
    """
    own = {each.name for each in fields(Given)} - {"place", "pinned"}
    of_place = {each.name for each in fields(Place)} - {"form", "at"}
    named = f"{where} {raw['name']!r}" if isinstance(raw.get("name"), str) else where
    forms = [key for key in raw if key in FORMS]
    if len(forms) != 1:
        which = " and ".join(forms) or "none"
        raise MergelibError(f"{named} has {which} of {', '.join(FORMS)}: give one of them")
    for key in raw:
        if key not in own | of_place | {*forms}:
            known = [*own, *of_place, *forms]
            raise MergelibError(f"{named}: {unknown('key of a task', key, sorted(known))}")
    place = {key: raw[key] for key in raw if key in of_place}
    given = {key: raw[key] for key in raw if key in own}
    if not isinstance(given.get("name"), str) or Path(given["name"]).name != given["name"]:
        raise MergelibError(f"{where} wants `name`, one that a file can have: add it")
    _check_types(Place(forms[0], raw[forms[0]], **place), named)
    made = Given(place=Place(forms[0], raw[forms[0]], **place), **given)
    _check_types(made, named)
    wrong = [k for k, n in made.sizes.items() if k not in SPLITS or type(n) is not int or n < 1]
    if wrong:
        raise MergelibError(f"{named}: sizes are numbers of {', '.join(SPLITS)}, not {wrong[0]!r}")
    return made


def _check_types(record: Given | Place, where: str) -> None:
    for each in fields(record):
        value, kind = getattr(record, each.name), get_origin(each.type) or each.type
        if kind in (str, dict, bool) and not isinstance(value, kind):
            raise MergelibError(f"{where}: {each.name} must be {kind.__name__}, not {value!r}")


def under(given: Given, folder: Path) -> Given:
    """The same with its relative paths seen from a folder, as those of a parameter file are."""

    def at(value: Any) -> Any:
        return str(folder / value) if isinstance(value, str) else value

    place = FORMS[given.place.form].under(given.place, folder)
    return replace(given, place=place, classes=at(given.classes), templates=at(given.templates))


@lru_cache(maxsize=64)
def opened(given: Given) -> tuple[Images, Images | None]:
    """Images to train with, and to test with where the source has a split of its own.

    Raises MergelibError, naming task and file, where they are not there or have no labels.
    """
    try:
        train, test = FORMS[given.place.form].read(given.place)
        if test is not None and train.classes:
            test = test.under(train.classes)
    except MergelibError as error:
        raise MergelibError(f"task {given.name!r}: {error}") from None
    for part in (train, test):
        if part is not None and part.labels is None:
            raise MergelibError(
                f"task {given.name!r}: {part.label} has no labels: make a folder a class, or give "
                "`labels`, a CSV of file and label"
            )
    return train, test


@lru_cache(maxsize=64)
def words(given: Given) -> Classes:
    """The names of a task's classes, in the order of its labels, and its prompts.

    Raises MergelibError where they do not fit the labels.
    """
    where = f"task {given.name!r}"
    parts = [part for part in opened(given) if part is not None]
    highest = max(int(part.labels.max()) for part in parts if part.labels is not None)
    found = parts[0].classes or tuple(map(str, range(highest + 1)))
    templates = given.templates
    if isinstance(templates, str):
        templates = lines_of(Path(templates))
    if isinstance(given.classes, str):
        held = read_classes(given.classes)
        names, templates = list(held.names), templates or list(held.templates)
    elif isinstance(given.classes, Mapping):
        absent = [name for name in found if name not in given.classes]
        if absent:
            raise MergelibError(f"{where}: classes lack a name of {absent[0]!r}: add it")
        names = [given.classes[name] for name in found]
    else:
        names = given.classes or [name.replace("_", " ") for name in found]
    if isinstance(names, list) and len(names) != max(len(found), highest + 1):
        raise MergelibError(
            f"{where}: {len(names)} names of classes for {len(found)} "
            f"({', '.join(found[:3])}, …): give one for each, in this order, or a mapping"
        )
    return checked(names, list(templates or TEMPLATES), where)


def row(given: Given) -> Asked:
    """What a task asks, as the registry has it of its own. Raises MergelibError as `words` does."""
    said = words(given)
    origin = given.origin or f"{given.place.form} {Path(given.place.at).name}"
    return Asked(given.name, given.family, origin, said.names, said.templates)


def dealt(given: Given, sizes: Mapping[str, int], seed: int) -> Parts:
    """Which images go to which split, by the seed; every split has the shares of the classes.

    The test split comes from the source's own where it has one, else it takes two fifths of the
    images at most; calibration takes a tenth at most of the rest of the images, training what is
    left. Raises MergelibError as `opened` does, and where a split would be empty.
    """
    train, test = opened(given)
    most = {**sizes, **given.sizes}
    rng = np.random.default_rng(int(digest("task", given.name, seed)[:15], 16))
    order, chosen = proportional(train, rng), np.empty(0, dtype=np.int64)
    tenth = len(order) // 10
    if test is None:
        cut = min(most["test"], len(order) * 2 // 5)
        chosen, order = order[:cut], order[cut:]
    else:
        chosen = proportional(test, rng)[: most["test"]]
    cut = min(most["calibration"], tenth)
    parts = {
        "train": (train, order[cut : cut + most["train"]]),
        "calibration": (train, order[:cut]),
        "test": (test or train, chosen),
    }
    empty = [split for split in SPLITS if not len(parts[split][1])]
    if empty:
        raise MergelibError(
            f"task {given.name!r}: {train.label} has {train.count} images, none of which is left "
            f"for {empty[0]}: give more, a dozen at least"
        )
    return parts


def proportional(images: Images, rng: np.random.Generator) -> np.ndarray:
    """An order of the images whose first n hold every class by its share, for any n.

    Image k of the n_c of a class, in random order, stands at (k + u_c) / n_c, u_c ~ U(0, 1).
    """
    order = rng.permutation(images.count)
    assert images.labels is not None
    of = images.labels[order]
    at = np.empty(len(of))
    for which in np.unique(of):
        here = np.flatnonzero(of == which)
        at[here] = (np.arange(len(here)) + rng.random()) / len(here)
    return order[np.argsort(at, kind="stable")]


def content(given: Given, sizes: Mapping[str, int], seed: int) -> str:
    """Digest of the images that a task's splits hold and of their labels, wherever they lie."""
    return given.pinned or _content(given, tuple(sizes.items()), seed)


@lru_cache(maxsize=64)
def _content(given: Given, sizes: tuple[tuple[str, int], ...], seed: int) -> str:
    found = []
    for split, (images, chosen) in dealt(given, dict(sizes), seed).items():
        hashes = list(threaded(partial(_hashed, images), chosen))
        assert images.labels is not None
        found.append((split, images.labels[chosen], hashes))
    return digest(found)


def _hashed(images: Images, i: int) -> str:
    return xxhash.xxh3_128_hexdigest(images.content(int(i)))


def look_again() -> None:
    """Forget what sources held: files may have changed since."""
    for kept in (opened, words, _content):
        kept.cache_clear()
