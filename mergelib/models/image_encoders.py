"""Backbones without a text tower: image encoders of timm, whose heads are made of images."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mergelib.checkpoints.reading import raw
from mergelib.checkpoints.wrappers import plain
from mergelib.core.errors import MergelibError
from mergelib.models.states import load_state

TIMM = "timm/"  # before the name of a backbone of timm's


class ImageEncoder(nn.Module):
    """A model with an image tower alone: features (N, d) of images (N, 3, H, W)."""

    def __init__(self, visual: Any, width: int) -> None:
        super().__init__()
        self.visual = visual
        visual.output_dim = width  # as open_clip's towers have it


def no_text(texts: Sequence[str]) -> Tensor:
    """What stands for the tokenizer of an image encoder. Raises MergelibError."""
    raise MergelibError(
        "the backbone has no text tower to make a zero-shot head by: give `head: prototypes` or "
        "`head: probe`"
    )


def timm_settings(name: str) -> dict[str, Any]:
    """What timm says of a model: `input_size`, `mean`, `std`, `classifier`.

    Raises MergelibError for a name that it does not know, and where timm is missing.
    """
    library, model = _timm(), name.removeprefix(TIMM)
    if not library.is_model(model):
        raise MergelibError(f"unknown backbone {name!r}: give a name from timm.list_models()")
    return library.get_pretrained_cfg(model).to_dict()


def load_timm(name: str, weights: str, size: int = 0) -> ImageEncoder:
    """An image encoder of timm without its classifier, of `size` pixels (0: its own), float32.

    `weights` is a file of timm's names or a model folder, else a tag of timm's, which it downloads;
    none are random ones.
    The grid of a vision transformer's position embeddings is resized, bicubic, as timm does it.
    Raises MergelibError, naming the file, for weights that do not fit.
    """
    settings, library = timm_settings(name), _timm()
    model, local = name.removeprefix(TIMM), bool(weights) and Path(weights).exists()
    known = {} if size in (0, settings["input_size"][-1]) else {"img_size": size}
    fetched = bool(weights) and not local
    called = f"{model}.{weights}" if fetched else model
    try:
        try:
            visual = library.create_model(called, pretrained=fetched, num_classes=0, **known)
        except TypeError:  # a convolutional net takes images of any size
            visual = library.create_model(called, pretrained=fetched, num_classes=0)
    except Exception as error:  # timm raises many kinds; the user needs one line
        reason = " ".join(str(error).split())
        raise MergelibError(f"backbone {name!r} with weights {weights!r}: {reason}") from None
    if local:
        _fill(visual, Path(weights), settings["classifier"])
    return ImageEncoder(visual.eval(), visual.num_features)


def _fill(visual: Any, path: Path, classifier: str | Sequence[str]) -> None:
    """Load a file's weights, without its classifier, its positions resized to the model's grid."""
    ends = tuple(f"{n}." for n in ([classifier] if isinstance(classifier, str) else classifier))
    with ExitStack() as stack:
        file = raw(path, str(path), stack)
        state = {n: file.read(own).clone() for n, own in plain(file).items()}
    state = {n: tensor for n, tensor in state.items() if not n.startswith(ends)}
    own, held = visual.state_dict().get("pos_embed"), state.get("pos_embed")
    if own is not None and held is not None and own.shape != held.shape:
        from timm.layers import resample_abs_pos_embed

        state["pos_embed"] = resample_abs_pos_embed(
            held.float(),
            visual.patch_embed.grid_size,
            num_prefix_tokens=visual.num_prefix_tokens,
        )
    load_state(visual, state, path)


@cache
def _timm() -> Any:
    try:
        import timm
    except ImportError:
        raise MergelibError(
            "this backbone is run by timm, which is missing: pip install 'mergelib[clip]'"
        ) from None
    return timm
