"""Backbones by name: open_clip's, the embedded miniature `glyph-vit`, image encoders of timm."""

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergelib.checkpoints.reading import whole_clip
from mergelib.core.errors import MergelibError
from mergelib.core.store import load_tensors, read_json
from mergelib.models.image_encoders import TIMM, load_timm, no_text, timm_settings
from mergelib.models.states import load_state

with warnings.catch_warnings():
    # In a notebook tqdm, which they import, asks for ipywidgets; no bar of theirs is shown here.
    warnings.filterwarnings("ignore", "IProgress not found")
    import open_clip
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
    from open_clip.transformer import QuickGELU

WEIGHTS = Path(__file__).parent / "weights"
GLYPH_VIT = "glyph-vit"
CONTEXT = 16
PAD, START, END = "<pad>", "<start>", "<end>"
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"


@dataclass(frozen=True)
class Backbone:
    """A CLIP or an image encoder alone, in eval mode, and the statistics its images are scaled by.

    An image encoder has no texts to `tokenize`, which raises MergelibError.
    """

    name: str
    model: Any  # a CLIP or an ImageEncoder
    tokenize: Callable[[Sequence[str]], Tensor]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) to float32, (x / 255 - mean) / std per channel."""
        device = images.device
        mean = torch.tensor(self.mean, device=device).view(3, 1, 1)
        std = torch.tensor(self.std, device=device).view(3, 1, 1)
        return (images.float() / 255 - mean) / std

    def visual_state(self) -> dict[str, Tensor]:
        """A copy of the image encoder's parameters by name, float32 on the CPU."""
        state = self.model.visual.state_dict()
        return {name: value.detach().float().cpu().clone() for name, value in state.items()}


def vocabulary(words: Sequence[str]) -> list[str]:
    """Token list: padding, start, single characters, the given words, and last the end token.

    The end token has the highest index because open_clip pools text there (argmax).
    """
    singles = list(_ALPHABET)
    rest = sorted(set(words) - set(singles))
    return [PAD, START, *singles, *rest, END]


def tokenize(texts: Sequence[str], index: dict[str, int]) -> Tensor:
    """Word tokens (N, CONTEXT) int64; a word outside the vocabulary is spelled letter by letter."""
    tokens = torch.zeros(len(texts), CONTEXT, dtype=torch.long)
    for row, text in enumerate(texts):
        ids = [index[START]]
        for word in text.lower().split():
            known = [word] if word in index else [c for c in word if c in index]
            ids.extend(index[part] for part in known)
        ids = [*ids[: CONTEXT - 1], index[END]]
        tokens[row, : len(ids)] = torch.tensor(ids)
    return tokens


def glyph_model(n_tokens: int) -> CLIP:
    """The miniature CLIP: 32-pixel images in patches of 8, six blocks; two for the text."""
    vision = CLIPVisionCfg(layers=6, width=128, head_width=32, patch_size=8, image_size=32)
    text = CLIPTextCfg(context_length=CONTEXT, vocab_size=n_tokens, width=128, heads=4, layers=2)
    return CLIP(embed_dim=128, vision_cfg=vision, text_cfg=text)


def load(name: str = GLYPH_VIT, weights: Path | str | None = None, image_size: int = 0) -> Backbone:
    """A pretrained backbone by name, for images of its own size or of `image_size` pixels a side.

    `glyph-vit` comes with the package. Any other name is one of open_clip's (for example
    `ViT-B-32-quickgelu`), with `weights` one of its pretrained tags, a local weights file, or a
    Hugging Face CLIP directory; or `timm/NAME`, an image encoder, as `load_timm` takes it.

    Raises MergelibError for an unknown name, and for weights that do not fit, naming the file.
    """
    if name == GLYPH_VIT:
        return _glyph_vit(Path(weights) if weights else WEIGHTS / f"{GLYPH_VIT}.safetensors")
    if name.startswith(TIMM):
        encoder, said = load_timm(name, str(weights or ""), image_size), timm_settings(name)
        size = image_size or said["input_size"][-1]
        return Backbone(name, encoder, no_text, tuple(said["mean"]), tuple(said["std"]), size)
    pixels_of(name)
    directory = Path(weights) if weights and Path(weights).is_dir() else None
    try:
        model, _, transform = open_clip.create_model_and_transforms(
            name,
            pretrained=str(weights) if weights and not directory else None,
            weights_only=True,
            force_image_size=image_size or None,
        )
    except Exception as error:  # open_clip raises many kinds; the user needs one line
        raise MergelibError(f"backbone {name!r} with weights {weights!r}: {error}") from None
    if directory:
        _load_hugging_face(model, name, directory)
    mean, std = next((t.mean, t.std) for t in transform.transforms if hasattr(t, "mean"))
    size = model.visual.image_size
    size = size[0] if isinstance(size, tuple) else size
    tokenizer = open_clip.get_tokenizer(name)
    return Backbone(name, model.eval(), tokenizer, tuple(mean), tuple(std), size)


def pixels_of(name: str) -> int:
    """Pixels a side of the images that a backbone takes. Raises MergelibError as `load` does."""
    if name == GLYPH_VIT:
        return 32
    if name.startswith(TIMM):
        return timm_settings(name)["input_size"][-1]
    config = open_clip.get_model_config(name)
    if config is None:
        raise MergelibError(
            f"unknown backbone {name!r}: give {GLYPH_VIT!r} or a name from open_clip.list_models()"
        )
    return config["vision_cfg"]["image_size"]


def _load_hugging_face(model: CLIP, name: str, directory: Path) -> None:
    load_state(model, whole_clip(directory), directory)
    config = read_json(directory / "config.json").get("vision_config") or {}
    activation = config.get("hidden_act", "quick_gelu")
    quick = isinstance(model.visual.transformer.resblocks[0].mlp.gelu, QuickGELU)
    if quick != (activation == "quick_gelu"):
        raise MergelibError(
            f"{directory} was trained with {activation}, backbone {name!r} computes "
            f"{'quick_gelu' if quick else 'gelu'}: give the name "
            f"{'without' if quick else 'with'} -quickgelu"
        )


def _glyph_vit(path: Path) -> Backbone:
    card = read_json(path.with_suffix(".json"))
    index = {token: i for i, token in enumerate(card["vocabulary"])}
    model = glyph_model(len(index))
    load_state(model, load_tensors(path), path)
    half = (0.5, 0.5, 0.5)
    return Backbone(GLYPH_VIT, model.eval(), partial(tokenize, index=index), half, half, 32)


def card_text(card: dict) -> str:
    """The JSON text of a model card (one line per entry; the vocabulary on one line)."""
    lines = [f"  {json.dumps(key)}: {json.dumps(card[key])}" for key in sorted(card)]
    return "{\n" + ",\n".join(lines) + "\n}\n"
