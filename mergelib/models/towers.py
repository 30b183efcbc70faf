"""Towers of a CLIP: the image tower, built from its tensors' shapes and what these do not tell."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import open_clip
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from torch import Tensor, nn

from mergelib.core.errors import MergelibError
from mergelib.models.backbones import GLYPH_VIT, Backbone, load
from mergelib.models.states import load_state

Shapes = Mapping[str, tuple[int, ...]]
# Keys of open_clip's configurations that shapes, or nothing of the tower's answers, depend on.
PLAIN = {"image_size", "layers", "width", "head_width", "patch_size", "mlp_ratio", "patch_dropout"}

# The least that open_clip builds in place of a tower that is not asked for.
NO_TEXT = CLIPTextCfg(context_length=1, vocab_size=1, width=8, heads=1, layers=1)
NO_IMAGES = CLIPVisionCfg(layers=1, width=8, head_width=8, patch_size=8, image_size=8)


@dataclass(frozen=True)
class Kind:
    """What the shapes of a tower's tensors do not tell: its heads, and its activation."""

    heads: int
    quick_gelu: bool


def build(shapes: Shapes, kind: Kind) -> nn.Module:
    """open_clip's vision transformer with tensors of these names and shapes, in eval mode.

    Raises MergelibError where the width does not divide by the heads.
    """
    width, _, patch, _ = shapes["conv1.weight"]
    if width % kind.heads:
        raise MergelibError(
            f"an image tower of width {width} has no {kind.heads} heads: give --backbone"
        )
    vision = CLIPVisionCfg(
        layers=_depth(shapes),
        width=width,
        head_width=width // kind.heads,
        mlp_ratio=shapes["transformer.resblocks.0.mlp.c_fc.weight"][0] / width,
        patch_size=patch,
        image_size=image_size(shapes),
    )
    embed = shapes["proj"][1] if "proj" in shapes else width
    visual = CLIP(embed, vision, NO_TEXT, quick_gelu=kind.quick_gelu).visual
    if "proj" not in shapes:  # a tower that ends before it
        visual.proj = None
    return visual.eval()


def image_size(shapes: Shapes) -> int:
    """Pixels a side of the images that a tower takes: one token a patch, and one of the class."""
    return round((shapes["positional_embedding"][0] - 1) ** 0.5) * shapes["conv1.weight"][2]


def is_tower(shapes: Shapes) -> bool:
    """Whether tensors of these names are the image tower of a CLIP with a vision transformer."""
    wanted = ("class_embedding", "positional_embedding", "conv1.weight", "ln_pre.weight")
    return all(name in shapes for name in wanted) and _depth(shapes) > 0


def kinds(shapes: Shapes) -> dict[str, Kind]:
    """The backbones with towers of these shapes, by name: `glyph-vit` and open_clip's."""
    glyph = load(GLYPH_VIT).model.visual
    if {name: tuple(t.shape) for name, t in glyph.state_dict().items()} == dict(shapes):
        return {GLYPH_VIT: kind_of(GLYPH_VIT)}
    found = {}
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name) or {}
        vision = config.get("vision_cfg", {})
        if _is_plain(vision) and _numbers(config) == _measured(shapes, config):
            found[name] = kind_of(name)
    return found


def kind_of(name: str) -> Kind:
    """Heads and activation of a backbone of `mergelib.models.backbones`.

    Raises MergelibError for an unknown name, and for one whose image tower is none of CLIP's
    vision transformers.
    """
    if name == GLYPH_VIT:
        attention = load(GLYPH_VIT).model.visual.transformer.resblocks[0].attn
        return Kind(attention.num_heads, False)
    config = open_clip.get_model_config(name)
    if config is None:
        raise MergelibError(
            f"unknown backbone {name!r}: give {GLYPH_VIT!r} or a name from open_clip.list_models()"
        )
    vision = config["vision_cfg"]
    if not _is_plain(vision):
        raise MergelibError(
            f"backbone {name!r} has no plain vision transformer, which a forecast runs: give its "
            "Hugging Face folder, or forecast from weights alone (without images)"
        )
    head_width = vision.get("head_width", CLIPVisionCfg.head_width)
    return Kind(vision["width"] // head_width, bool(config.get("quick_gelu", False)))


def text_tower(name: str, state: Mapping[str, Tensor] | None, label: str) -> Backbone:
    """A backbone without its image tower, with the weights of `state` (open_clip's names).

    None: those that come with the package, of `glyph-vit` alone. Raises MergelibError for a
    backbone whose text tower is another library's, and for weights that do not fit.
    """
    if name == GLYPH_VIT:
        backbone = load(GLYPH_VIT)
        del backbone.model.visual
    else:
        config = open_clip.get_model_config(name) or {}
        text = config.get("text_cfg", {})
        if state is None or not text or "hf_model_name" in text:
            raise MergelibError(
                f"{label}: no text tower of {name!r} to make heads of: give --heads"
            )
        quick = bool(config.get("quick_gelu", False))
        model = CLIP(config["embed_dim"], NO_IMAGES, CLIPTextCfg(**text), quick_gelu=quick)
        del model.visual
        ones = (1.0, 1.0, 1.0)  # of images, which it takes none of
        tokenize = open_clip.get_tokenizer(name)
        backbone = Backbone(name, model.eval(), tokenize, ones, ones, 0)
    if state is not None:
        load_state(backbone.model, dict(state), label)
    return backbone


def _is_plain(vision: Mapping[str, Any]) -> bool:
    return set(vision) <= PLAIN and isinstance(vision.get("layers"), int)


def _numbers(config: Mapping[str, Any]) -> tuple:
    vision = config["vision_cfg"]
    patch, size = vision.get("patch_size", CLIPVisionCfg.patch_size), vision["image_size"]
    tokens = 1 + (size // patch) ** 2 if isinstance(size, int) else 0
    inner = int(vision["width"] * vision.get("mlp_ratio", CLIPVisionCfg.mlp_ratio))
    return vision["width"], vision["layers"], patch, tokens, inner, config["embed_dim"]


def _measured(shapes: Shapes, config: Mapping[str, Any]) -> tuple:
    width, _, patch, _ = shapes["conv1.weight"]
    embed = shapes["proj"][1] if "proj" in shapes else config["embed_dim"]
    inner = shapes["transformer.resblocks.0.mlp.c_fc.weight"][0]
    return width, _depth(shapes), patch, shapes["positional_embedding"][0], inner, embed


def _depth(shapes: Shapes) -> int:
    block = re.compile(r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.weight")
    return sum(1 for name in shapes if block.fullmatch(name))
