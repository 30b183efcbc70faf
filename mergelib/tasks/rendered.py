"""Tasks of rendered glyphs: alphabets, signs, icons, and the typeface or colour of a letter."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

import numpy as np

from mergelib.tasks import SPLITS, TASKS, Source
from mergelib.tasks.glyphs import TYPEFACES, Glyph, characters, icons, words
from mergelib.tasks.render import COLOR_NAMES, Style, draw

# Every task has a look of its own, as data sets have, on top of what it asks.
GRAINY = Style(rotation=20, scale=(0.6, 1.1), noise=(0.1, 0.28), contrast=(0.5, 1.0))
TILTED = Style(rotation=50, scale=(0.6, 1.1), noise=(0.02, 0.15), contrast=(0.5, 1.0), clutter=0.1)
SOFT = Style(rotation=20, scale=(0.55, 1.0), blur=(0.6, 1.6), noise=(0.0, 0.08), clutter=0.1)
FAINT = Style(rotation=20, scale=(0.6, 1.1), noise=(0.02, 0.08), contrast=(0.12, 0.5), clutter=0.05)
BUSY = Style(rotation=20, scale=(0.6, 1.1), shift=0.15, noise=(0.02, 0.12), clutter=0.3)
SMALL = Style(rotation=15, scale=(0.4, 0.7), shift=0.2, noise=(0.02, 0.1), contrast=(0.4, 1.0))


@cache
def _fonts_of() -> Mapping[int, tuple[Glyph, ...]]:
    table = defaultdict(list)
    for glyph in characters():
        table[glyph.code].append(glyph)
    return {code: tuple(glyphs) for code, glyphs in table.items()}


@cache
def _icons_of(word: str) -> tuple[Glyph, ...]:
    return tuple(icon for icon in icons() if icon.name.split()[0] == word)


def _balanced(rng: np.random.Generator, n_classes: int, n: int) -> np.ndarray:
    """n class indices, as even as can be, in random order."""
    return rng.permutation(np.arange(n) % n_classes)


def _pick(rng: np.random.Generator, pools: Sequence[Sequence[Glyph]], labels: Iterable[int]):
    return [pools[c][rng.integers(len(pools[c]))] for c in labels]


def _register(name, family, class_names, templates, style, pools) -> None:
    """A task whose classes are pools of glyphs; `pools()` is called when the task is built."""

    def make(rng, sizes):
        groups = pools()
        made = {}
        for split in SPLITS:
            labels = _balanced(rng, len(groups), sizes[split])
            made[split] = (draw(_pick(rng, groups, labels), rng, style).images, labels)
        return made

    TASKS.add(Source(name, family, "rendered glyphs", tuple(class_names), templates, make))


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
_script("braille", "signs", range(0x2801, 0x2840), BUSY)
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
    "cat dog horse fish bird cow rabbit spider bug snake butterfly pig shark unicorn bee",
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
    """Basic Latin, Greek and Cyrillic letters of one typeface."""
    basic = (*range(0x41, 0x5B), *range(0x61, 0x7B), *range(0x3B1, 0x3CA), *range(0x410, 0x450))
    return tuple(g for code in basic for g in _fonts_of()[code] if g.typeface == typeface)


_FACES = tuple(name for name in TYPEFACES.values() if "bold italic" not in name)
_register(
    "typeface",
    "attribute",
    _FACES,
    ("letter in {}", "latin letter in {}", "latin small letter in {}", "greek letter in {}"),
    SOFT,
    lambda: [_letters(face) for face in _FACES],
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


TASKS.add(
    Source(
        "color",
        "attribute",
        "rendered glyphs",
        COLOR_NAMES,
        ("{} letter", "a {} letter", "{} latin small letter", "{} greek letter", "{} character"),
        _colored,
    )
)
