"""Glyphs drawn as small colour pictures: placed, tinted, degraded; one seeded generator a batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from mergelib.tasks.glyphs import CANVAS, Glyph, mask

SIZE = 32
COLORS = {
    "red": (214, 39, 40),
    "orange": (255, 140, 20),
    "yellow": (250, 225, 40),
    "green": (44, 160, 44),
    "cyan": (40, 200, 215),
    "blue": (31, 80, 200),
    "purple": (130, 60, 180),
    "pink": (245, 130, 190),
    "brown": (125, 75, 45),
    "white": (245, 245, 245),
    "gray": (128, 128, 128),
    "black": (18, 18, 18),
}
COLOR_NAMES = tuple(COLORS)
_RGB = np.array(list(COLORS.values()), dtype=np.float32) / 255
DEGRADATIONS = ("sharp", "blurred", "noisy", "pixelated", "faded")


@dataclass(frozen=True)
class Style:
    """What may happen to a glyph: ranges from which each picture draws uniformly.

    rotation in degrees (either way), scale as the share of the picture's side that the glyph's
    canvas takes, shift as a share of the side, blur as a Gaussian's standard deviation in pixels,
    noise and tint as standard deviations and contrast as a factor, with colours in [0, 1].
    """

    rotation: float = 12.0
    scale: tuple[float, float] = (0.85, 1.25)
    shift: float = 0.08
    blur: tuple[float, float] = (0.0, 0.5)
    noise: tuple[float, float] = (0.0, 0.06)
    contrast: tuple[float, float] = (0.7, 1.0)
    tint: float = 0.06
    clutter: float = 0.0
    pixelate: float = 0.0


@dataclass(frozen=True)
class Drawn:
    """Pictures (N, 3, SIZE, SIZE) uint8 and what each one shows: indices into COLOR_NAMES."""

    images: np.ndarray
    foreground: np.ndarray
    background: np.ndarray
    blur: np.ndarray
    noise: np.ndarray
    contrast: np.ndarray
    pixelated: np.ndarray


def _contrasting(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of colours far enough apart to be read."""
    distance = np.linalg.norm(_RGB[:, None] - _RGB[None], axis=-1)
    pairs = np.argwhere(distance > 0.55)
    chosen = pairs[rng.integers(len(pairs), size=n)]
    return chosen[:, 0], chosen[:, 1]


def _place(glyph: Glyph, angle: float, scale: float, dx: float, dy: float, blur: float):
    """The glyph's mask turned, scaled, moved and blurred into a SIZE x SIZE picture."""
    image = Image.fromarray(mask(glyph.font, glyph.code))
    step = CANVAS / SIZE / scale  # canvas pixels for one pixel of the picture
    c, s = np.cos(angle) * step, np.sin(angle) * step
    centre = SIZE / 2
    ox = CANVAS / 2 - c * (centre + dx) - s * (centre + dy)
    oy = CANVAS / 2 + s * (centre + dx) - c * (centre + dy)
    # Bilinear sampling skips pixels when it shrinks; a light blur before keeps thin strokes.
    image = image.filter(ImageFilter.BoxBlur(max(0.0, (float(step) - 1) / 2)))
    image = image.transform(
        (SIZE, SIZE), Image.Transform.AFFINE, (c, s, ox, -s, c, oy), Image.Resampling.BILINEAR
    )
    if blur > 0.05:
        image = image.filter(ImageFilter.GaussianBlur(float(blur)))
    return np.asarray(image, dtype=np.float32) / 255


def draw(
    glyphs: Sequence[Glyph],
    rng: np.random.Generator,
    style: Style,
    foreground: np.ndarray | None = None,
) -> Drawn:
    """Draw each glyph once; `foreground` (indices into COLOR_NAMES) fixes the glyphs' colours.

    Pixel = background (1 - m) + foreground m, contrast about the mean, plus Gaussian noise, with
    m the placed mask.
    """
    n = len(glyphs)
    fg, bg = _contrasting(rng, n)
    if foreground is not None:
        far = np.linalg.norm(_RGB[:, None] - _RGB[None], axis=-1) > 0.55
        bg = np.array([rng.choice(np.flatnonzero(far[f])) for f in foreground])
        fg = np.asarray(foreground)
    angle = np.deg2rad(rng.uniform(-style.rotation, style.rotation, n))
    scale = rng.uniform(*style.scale, n)
    shift = rng.uniform(-style.shift, style.shift, (n, 2)) * SIZE
    blur = rng.uniform(*style.blur, n)
    noise = rng.uniform(*style.noise, n)
    contrast = rng.uniform(*style.contrast, n)
    pixelated = rng.random(n) < style.pixelate
    ink = np.stack(
        [
            _place(g, a, s, dx, dy, b)
            for g, a, s, (dx, dy), b in zip(glyphs, angle, scale, shift, blur, strict=True)
        ]
    )[:, None]
    colour_f = _RGB[fg] + rng.normal(0, style.tint, (n, 3)).astype(np.float32)
    colour_b = _RGB[bg] + rng.normal(0, style.tint, (n, 3)).astype(np.float32)
    paper = np.broadcast_to(colour_b[:, :, None, None], (n, 3, SIZE, SIZE))
    if style.clutter > 0:  # a random smooth shade over the background
        coarse = rng.normal(0, style.clutter, (n, 1, 5, 5)).astype(np.float32)
        paper = paper + _enlarge(coarse)
    picture = paper * (1 - ink) + colour_f[:, :, None, None] * ink
    mean = picture.mean(axis=(1, 2, 3), keepdims=True)
    picture = mean + (picture - mean) * contrast[:, None, None, None].astype(np.float32)
    if pixelated.any():
        small = picture[pixelated].reshape(-1, 3, SIZE // 4, 4, SIZE // 4, 4).mean(axis=(3, 5))
        picture[pixelated] = small.repeat(4, axis=2).repeat(4, axis=3)
    grain = rng.standard_normal(picture.shape, dtype=np.float32)
    picture = picture + grain * noise[:, None, None, None].astype(np.float32)
    images = (picture.clip(0, 1) * 255).round().astype(np.uint8)
    return Drawn(images, fg, bg, blur, noise, contrast, pixelated)


def _enlarge(coarse: np.ndarray) -> np.ndarray:
    """Bilinear enlargement of (N, C, h, w) to SIZE x SIZE, through two small matrices."""
    h = coarse.shape[-1]
    at = np.linspace(0, h - 1, SIZE)
    weights = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(h)[None])).astype(np.float32)
    return np.einsum("yh,nchw,xw->ncyx", weights, coarse, weights)
