"""How an encoder wants its pictures: what the files beside its weights say, or open_clip's way."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import open_clip
from PIL.Image import Resampling
from torchvision import transforms

from mergelib.core.documents import read_mapping
from mergelib.core.errors import MergelibError
from mergelib.merging.registry import NUMBER
from mergelib.models.backbones import GLYPH_VIT, load
from mergelib.tasks.images import Transform

PROCESSORS = ("preprocessor_config.json", "processor_config.json")
OPEN_CLIP = "open_clip_config.json"
STATISTICS = ("image_mean", "image_std")
MEND = "copy it again from where the model came from"


def of_folders(folders: Iterable[Path]) -> Transform | None:
    """The preprocessing of the first folder whose files say one; None where none does.

    Raises MergelibError, naming the file, for one that cannot be read or says another form.
    """
    for folder in folders:
        if (folder / OPEN_CLIP).is_file():
            held = read_mapping(folder / OPEN_CLIP).get("preprocess_cfg")
            if held:
                return of_open_clip(held, folder / OPEN_CLIP)
        for file in (folder / name for name in PROCESSORS):
            held = read_mapping(file) if file.is_file() else {}
            held = held.get("image_processor", held)
            if "image_mean" in held or "size" in held:
                return of_processor(held, file)
    return None


def of_backbone(name: str, size: int | tuple[int, int]) -> Transform:
    """open_clip's preprocessing: short side bicubic, centre crop, the backbone's statistics.

    Source: Radford et al. 2021 (CLIP), its released code's `_transform`.
    """
    if name == GLYPH_VIT:
        glyph = load(GLYPH_VIT)
        return open_clip.image_transform(size, is_train=False, mean=glyph.mean, std=glyph.std)
    return open_clip.image_transform(size, is_train=False)


def of_open_clip(config: Mapping[str, Any], file: Path) -> Transform:
    """The preprocessing that open_clip's own configuration says. Raises MergelibError as above."""
    known = ("mean", "std", "interpolation", "resize_mode", "fill_color")
    try:
        given = {name: config[name] for name in known if name in config}
        return open_clip.image_transform(config["size"], is_train=False, **given)
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise MergelibError(f"{file}: preprocess_cfg cannot be used ({error!r}): {MEND}") from None


def of_processor(config: Mapping[str, Any], file: Path) -> Transform:
    """A Hugging Face image processor's configuration as torchvision's transforms.

    Raises MergelibError, naming the file, for one that says other than resizing, cropping, scaling
    by 1/255 and normalizing.
    """
    steps: list[Any] = []
    if config.get("do_resize", True):
        filtering = config.get("resample", Resampling.BICUBIC)
        steps.append(transforms.Resize(_resized(config.get("size"), file), filtering))
    if config.get("do_center_crop", False):
        steps.append(transforms.CenterCrop(_cropped(config.get("crop_size"), file)))
    if not config.get("do_rescale", True) or abs(
        config.get("rescale_factor", 1 / 255) * 255 - 1
    ) > (1e-6):
        raise MergelibError(f"{file}: images are scaled other than by 1/255: forecast without them")
    steps.append(transforms.ToTensor())
    if config.get("do_normalize", True):
        steps.append(transforms.Normalize(*(_three(config, key, file) for key in STATISTICS)))
    return transforms.Compose(steps)


def _three(config: Mapping[str, Any], key: str, file: Path) -> list[float]:
    """A number a channel."""
    held = config.get(key)
    if not isinstance(held, list) or len(held) != 3 or not all(map(NUMBER.accepts, held)):
        raise MergelibError(f"{file}: no usable {key} ({held!r}): {MEND}")
    return held


def _resized(size: Any, file: Path) -> int | tuple[int, int]:
    """The short side, or height and width."""
    if isinstance(size, int):
        return size
    if isinstance(size, Mapping) and "shortest_edge" in size:
        return int(size["shortest_edge"])
    return _cropped(size, file)


def _cropped(size: Any, file: Path) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping) and {"height", "width"} <= set(size):
        return int(size["height"]), int(size["width"])
    raise MergelibError(f"{file}: size {size!r} is of a form that is not known here: {MEND}")
