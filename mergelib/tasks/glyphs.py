"""The glyphs that installed packages ship: DejaVu characters (matplotlib) and icons (qtawesome)."""

import importlib.util
import json
import logging
import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import matplotlib
import numpy as np
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont

from mergelib.core.errors import MergelibError
from mergelib.core.store import digest, file_digest

# The icon fonts carry a few spare bytes that fontTools would print a warning about.
logging.getLogger("fontTools").setLevel(logging.ERROR)

CANVAS = 64  # pixels a side of a glyph's mask before it is placed in an image
EM = 54  # font size on the canvas: letters nearly fill it
TYPEFACES = {
    "DejaVuSans": "sans",
    "DejaVuSans-Bold": "bold sans",
    "DejaVuSans-Oblique": "italic sans",
    "DejaVuSans-BoldOblique": "bold italic sans",
    "DejaVuSerif": "serif",
    "DejaVuSerif-Bold": "bold serif",
    "DejaVuSerif-Italic": "italic serif",
    "DejaVuSerif-BoldItalic": "bold italic serif",
    "DejaVuSansMono": "mono",
    "DejaVuSansMono-Bold": "bold mono",
    "DejaVuSansMono-Oblique": "italic mono",
    "DejaVuSansMono-BoldOblique": "bold italic mono",
}
# Words of an icon's name that say how it is drawn, not what it shows.
ICON_STYLES = frozenset(
    ("outline", "fill", "line", "bold", "thin", "light", "duotone", "variant", "alt")
)


@dataclass(frozen=True)
class Glyph:
    """One drawable shape: a font file, a code point, the words for what it shows."""

    font: str
    code: int
    name: str
    typeface: str

    @property
    def is_icon(self) -> bool:
        """Whether it comes from an icon font."""
        return self.typeface == "icon"


@cache
def _font_files() -> dict[str, Path]:
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    found = {stem: fonts / f"{stem}.ttf" for stem in TYPEFACES}
    found |= {path.stem: path for path in _icon_folder().glob("*.ttf")}
    missing = [str(path) for path in found.values() if not path.is_file()]
    if missing:
        raise MergelibError(f"font files missing: {missing}; reinstall matplotlib and qtawesome")
    return found


@cache
def _icon_folder() -> Path:
    # The package is located, not imported: importing it would ask for Qt.
    spec = importlib.util.find_spec("qtawesome")
    if spec is None or not spec.submodule_search_locations:
        raise MergelibError("the package qtawesome (icon fonts) is missing: pip install qtawesome")
    return Path(spec.submodule_search_locations[0]) / "fonts"


@cache
def fonts_digest() -> str:
    """Digest of every font file and name map that the pixels depend on."""
    files = sorted(_font_files().values()) + sorted(_icon_folder().glob("*.json"))
    return digest([[path.name, file_digest(path)] for path in files])


def words(name: str) -> str:
    """A Unicode or icon name as lower-case words; the dots of a braille pattern one by one."""
    name = re.sub(r"dots-(\d+)", lambda m: "dots " + " ".join(m[1]), name.lower())
    return " ".join(re.findall(r"[a-z]+|\d+", name))


@cache
def characters() -> tuple[Glyph, ...]:
    """Every named, visible character of the twelve DejaVu fonts."""
    glyphs = []
    for stem, typeface in TYPEFACES.items():
        for code in sorted(TTFont(_font_files()[stem]).getBestCmap()):
            kind = unicodedata.category(chr(code))
            name = unicodedata.name(chr(code), "")
            if name and kind[0] not in "CMZ":
                glyphs.append(Glyph(stem, code, words(name), typeface))
    return tuple(glyphs)


@cache
def icons() -> tuple[Glyph, ...]:
    """Every named icon of the icon fonts, its style words dropped from its name."""
    glyphs = []
    for path in sorted(_icon_folder().glob("*.json")):
        stem = path.stem.replace("-charmap", "")
        covered = TTFont(_font_files()[stem]).getBestCmap()
        for name, code in sorted(json.loads(path.read_text(encoding="utf-8")).items()):
            kept = [w for w in words(name).split() if w not in ICON_STYLES]
            if kept and int(code, 16) in covered:
                glyphs.append(Glyph(stem, int(code, 16), " ".join(kept), "icon"))
    return tuple(glyphs)


@cache
def _font(stem: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(_font_files()[stem]), size, layout_engine=ImageFont.Layout.BASIC)


@cache
def mask(font: str, code: int) -> np.ndarray:
    """The glyph's coverage, centred in a square of CANVAS pixels, uint8; icons fill it the same.

    All zero for a glyph that draws nothing.
    """
    face = _font(font, EM)
    left, top, right, bottom = face.getbbox(chr(code))
    width, height = right - left, bottom - top
    image = Image.new("L", (CANVAS, CANVAS))
    if width <= 0 or height <= 0:
        return np.asarray(image)
    if max(width, height) > CANVAS - 4:
        face = _font(font, max(8, int(EM * (CANVAS - 4) / max(width, height))))
        left, top, right, bottom = face.getbbox(chr(code))
        width, height = right - left, bottom - top
    origin = ((CANVAS - width) / 2 - left, (CANVAS - height) / 2 - top)
    ImageDraw.Draw(image).text(origin, chr(code), fill=255, font=face)
    return np.asarray(image)


def pixels_digest() -> str:
    """Digest of what the pixels depend on beyond this package: fonts, libraries, shipped images."""
    packages = ("pillow", "numpy", "scikit-learn", "scikit-image", "mlxtend")
    return digest(fonts_digest(), {package: version(package) for package in packages})
