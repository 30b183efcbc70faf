"""Tasks of rendered glyphs: alphabets, signs, icons, and the typeface or colour of a letter."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

import numpy as np

from mergelib.tasks.glyphs import TYPEFACES, Glyph, characters, icons, words
from mergelib.tasks.registry import SPLITS, task
from mergelib.tasks.render import COLOR_NAMES, Style, draw

# Every task has a look of its own, as data sets have, on top of what it asks.
# Placement varies little: a small transformer with large patches learns it slowly.
GRAINY = Style(rotation=4, scale=(0.98, 1.1), shift=0.02, noise=(0.04, 0.12), contrast=(0.6, 1.0))
TILTED = Style(rotation=15, scale=(0.98, 1.1), shift=0.02, noise=(0.0, 0.05))
SOFT = Style(rotation=4, scale=(0.98, 1.1), shift=0.02, blur=(0.3, 0.8), noise=(0.0, 0.05))
FAINT = Style(rotation=4, scale=(0.98, 1.1), shift=0.02, noise=(0.0, 0.03), contrast=(0.3, 0.6))
BUSY = Style(rotation=4, scale=(0.98, 1.1), shift=0.02, noise=(0.0, 0.04), clutter=0.12)
SMALL = Style(rotation=4, scale=(0.75, 0.85), shift=0.03, noise=(0.0, 0.04))
PLAIN_FACES = ("sans", "bold sans", "serif", "bold serif")


@cache
def _fonts_of() -> Mapping[int, tuple[Glyph, ...]]:
    """The upright proportional glyphs of every code point."""
    table = defaultdict(list)
    for glyph in characters():
        if glyph.typeface in PLAIN_FACES:
            table[glyph.code].append(glyph)
    return {code: tuple(glyphs) for code, glyphs in table.items()}


@cache
def _icons_of(word: str) -> tuple[Glyph, ...]:
    """The icons whose whole name is the word, in all fonts and drawing styles."""
    return tuple(icon for icon in icons() if icon.name == word)


def _balanced(rng: np.random.Generator, n_classes: int, n: int) -> np.ndarray:
    """n class indices, as even as can be, in random order."""
    return rng.permutation(np.arange(n) % n_classes)


def _pick(rng: np.random.Generator, pools: Sequence[Sequence[Glyph]], labels: Iterable[int]):
    return [pools[c][int(rng.integers(len(pools[c])))] for c in labels]


def _register(name, family, class_names, templates, style, pools) -> None:
    """A task whose classes are pools of glyphs; `pools()` is called when the task is built."""

    def make(rng, sizes):
        groups = pools()
        made = {}
        for split in SPLITS:
            labels = _balanced(rng, len(groups), sizes[split])
            made[split] = (draw(_pick(rng, groups, labels), rng, style).images, labels)
        return made

    task(name, class_names, templates, family, "rendered glyphs")(make)


def _script(name: str, family: str, codes: Iterable[int], style: Style) -> None:
    codes = tuple(codes)
    _register(
        name,
        family,
        [words(unicodedata.name(chr(code))) for code in codes],
        ("{}", "a {}", "a noisy {}", "{} in sans", "{} in serif", "{} on black", "{} on white"),
        style,
        lambda: [_fonts_of()[code] for code in codes],
    )


def _icon_task(name: str, names: str, style: Style) -> None:
    _register(
        name,
        "icons",
        names.split(),
        ("{} icon", "a {} icon", "an icon of {}", "a noisy {} icon", "{} icon on white"),
        style,
        lambda: [_icons_of(word) for word in names.split()],
    )


_script("latin_upper", "alphabet", range(0x41, 0x5B), GRAINY)
_script("latin_lower", "alphabet", range(0x61, 0x7B), TILTED)
_script("greek", "alphabet", [c for c in range(0x3B1, 0x3CA) if c != 0x3C2], FAINT)
_script("cyrillic", "alphabet", range(0x410, 0x430), GRAINY)
_script("armenian", "alphabet", range(0x531, 0x557), SOFT)
_script("georgian", "alphabet", range(0x10D0, 0x10F1), BUSY)
_script("hebrew", "alphabet", range(0x5D0, 0x5EB), FAINT)
_script("braille", "signs", range(0x2801, 0x2821), BUSY)
_script("arrows", "signs", range(0x2190, 0x21B0), SMALL)
_script("operators", "signs", range(0x2200, 0x2228), SOFT)
_script(
    "games",
    "signs",
    [*range(0x2680, 0x2686), *range(0x2654, 0x2660), *range(0x2660, 0x2668)],
    SMALL,
)
_icon_task(
    "animals",
    "cat dog horse fish bird rabbit spider bug butterfly pig",
    TILTED,
)
_icon_task(
    "weather",
    "sun cloud moon snowflake umbrella lightning wind rainbow thermometer tornado fire tree waves",
    GRAINY,
)
_icon_task(
    "vehicles",
    "car truck bus train airplane bicycle motorbike rocket ship tractor taxi subway helicopter "
    "boat",
    BUSY,
)


@cache
def _letters(typeface: str) -> tuple[Glyph, ...]:
    """Basic Latin letters of one typeface."""
    basic = {*range(0x41, 0x5B), *range(0x61, 0x7B)}
    return tuple(g for g in characters() if g.code in basic and g.typeface == typeface)


_FACES = ("sans", "bold sans", "italic sans", "serif", "bold serif")
_register(
    "typeface",
    "attribute",
    _FACES,
    ("letter in {}", "latin letter in {}", "latin small letter in {}"),
    BUSY,
    lambda: [_letters(face) for face in _FACES],
)


@task(
    "color",
    COLOR_NAMES,
    ("{} letter", "a {} letter", "{} latin small letter", "{} character"),
    "attribute",
    "rendered glyphs",
)
def _colored(rng, sizes):
    pools = tuple(g for face in TYPEFACES.values() for g in _letters(face))
    style = Style(
        rotation=20,
        scale=(0.5, 1.0),
        noise=(0.1, 0.25),
        contrast=(0.3, 0.8),
        tint=0.12,
        clutter=0.2,
    )
    made = {}
    for split in SPLITS:
        labels = _balanced(rng, len(COLOR_NAMES), sizes[split])
        glyphs = [pools[i] for i in rng.integers(len(pools), size=len(labels))]
        made[split] = (draw(glyphs, rng, style, foreground=labels).images, labels)
    return made
