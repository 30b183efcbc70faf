"""From checkpoints to features: one module, whose weights every merge replaces."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mergelib.checkpoints.folders import config_of
from mergelib.checkpoints.layouts import rearranged
from mergelib.checkpoints.reading import View, opened
from mergelib.checkpoints.weights import of_mapping
from mergelib.core.documents import read_mapping
from mergelib.core.errors import MergelibError
from mergelib.forecasting import transformers_models
from mergelib.forecasting.preprocessing import OPEN_CLIP, of_backbone, of_folders
from mergelib.models.states import load_state
from mergelib.models.towers import Kind, build, image_size, is_tower, kind_of, kinds
from mergelib.tasks.images import Transform


@dataclass(frozen=True)
class Encoder:
    """An image encoder of the base's architecture.

    `write(state)` replaces its weights by tensors under the names in the base's file; `embed` makes
    features (n, d) of images (n, 3, H, W) as `transform` makes them of pictures. `backbone` is a
    backbone with such a tower, empty where none is known.
    """

    name: str
    write: Callable[[Mapping[str, Tensor]], None]
    embed: Callable[[Tensor], Tensor]
    transform: Transform
    backbone: str = ""


def find_encoder(
    base: View, folders: Sequence[Path], backbone: str = "", classifiers: bool = False
) -> Encoder:
    """The encoder that the base's tensors belong to.

    `folders`: those of base and models that are model folders, whose files say what shapes do not.
    With `classifiers`, features are what the models' own classifiers take. Raises MergelibError,
    with the mend, where it cannot be told.
    """
    with opened(base) as weights:
        shapes = dict(weights.shapes)
    if is_tower(shapes) and not classifiers:
        return _clip(base, shapes, folders, backbone)
    if backbone:
        raise MergelibError(f"{base.label} is no image tower of a CLIP: leave out --backbone")
    for folder in folders:
        name = transformers_models.architecture(config_of(folder), classifiers)
        if name:
            write, embed = transformers_models.encoder(folder, name)
            transform = of_folders(folders)
            if transform is None:
                raise MergelibError(
                    f"{folder} lacks preprocessor_config.json, which says how pictures are scaled: "
                    "copy it there"
                )
            return Encoder(name, write, embed, transform)
    kinds_known = ", ".join(transformers_models.ENCODERS)
    raise MergelibError(
        f"{base.label} cannot be run on images: it is no CLIP with a vision transformer, and no "
        f"config.json beside base or models says another encoder that is known ({kinds_known}, "
        "classifiers of Hugging Face); give model folders, or forecast without --images"
    )


def _clip(
    base: View, shapes: Mapping[str, tuple[int, ...]], folders: Sequence[Path], backbone: str
) -> Encoder:
    known = kinds(shapes)
    kind = _kind(base.label, known, folders, backbone)
    name = backbone or _plainest(known).get(kind, "")
    visual = build(shapes, kind)

    def write(state: Mapping[str, Tensor]) -> None:
        weights = rearranged(of_mapping(state, base.label), base.layout)
        load_state(visual, {n: weights.get(n) for n in weights.shapes}, base.label)

    transform = of_folders(folders) or of_backbone(name, image_size(shapes))
    return Encoder(name or "CLIP", write, visual, transform, name)


def _kind(label: str, known: Mapping[str, Kind], folders: Sequence[Path], backbone: str) -> Kind:
    """Heads and activation: as asked for, as a configuration says, or as only one backbone has."""
    if backbone:
        asked = kind_of(backbone)
        if backbone not in known:
            fits = ", ".join(known) or "none that is known"
            raise MergelibError(f"{label} is no {backbone}; backbones of its shapes: {fits}")
        return asked
    said = {kind for folder in folders if (kind := _said(folder)) is not None}
    found = said or set(known.values())
    if len(found) == 1:
        return found.pop()
    if said:
        raise MergelibError(f"{label}: the folders' configurations differ in heads or activation")
    which = " or ".join(_plainest(known).values()) or "an image tower of no backbone that is known"
    raise MergelibError(
        f"{label} is {which}, of which its tensors do not tell the activation or heads: give "
        "--backbone"
    )


def _plainest(known: Mapping[str, Kind]) -> dict[Kind, str]:
    """A name of each kind: names differ in the text tower as well, plain ones have CLIP's own."""
    names = sorted(known, key=lambda name: (not name.startswith("ViT"), len(name), name))
    return {
        kind: next(n for n in names if known[n] == kind) for kind in map(known.get, names) if kind
    }


def _said(folder: Path) -> Kind | None:
    """Heads and activation as a folder's configuration has them, with its library's defaults."""
    config: Mapping[str, Any] = config_of(folder)
    if config.get("model_type") in ("clip", "clip_vision_model"):
        held = config.get("vision_config") or config
        quick = held.get("hidden_act", "quick_gelu") == "quick_gelu"
        return Kind(held.get("num_attention_heads", 12), quick)
    if (folder / OPEN_CLIP).is_file():
        config = read_mapping(folder / OPEN_CLIP).get("model_cfg") or {}
        vision = config.get("vision_cfg") or {}
        if isinstance(vision.get("width"), int):
            heads = vision["width"] // vision.get("head_width", 64)
            return Kind(heads, bool(config.get("quick_gelu", False)))
    return None
