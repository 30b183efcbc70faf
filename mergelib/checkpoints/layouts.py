"""One model under one set of names, whichever library wrote it.

A CLIP with a vision transformer is read under open_clip's names: its image tower's bare
(`conv1.weight`, `transformer.resblocks.0.ln_1.bias`, …), its text tower's after `text.`. Known
layouts: open_clip's own (whole, or the image tower with or without `visual.`), Hugging Face's
(CLIPModel; CLIPVisionModel as transformers 4 and 5 write it; the text models likewise) and timm's.
They keep the projections of attention apart or stacked, and other matrices transposed; a method
that looks at whole matrices would give another merge for each. Other models keep their names.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from os.path import commonprefix
from typing import NamedTuple

import torch
from torch import Tensor

from mergelib.checkpoints.weights import Weights
from mergelib.core.errors import MergelibError

# open_clip's name -> Hugging Face's, within a tower; a name without suffix is a layer.
VISION = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",  # their spelling
    "ln_pre.bias": "pre_layrnorm.bias",
    "ln_post.weight": "post_layernorm.weight",
    "ln_post.bias": "post_layernorm.bias",
}
TEXT = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
BLOCK = {
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
TIMM = {
    "class_embedding": "cls_token",
    "positional_embedding": "pos_embed",
    "conv1.weight": "patch_embed.proj.weight",
    "ln_pre.weight": "norm_pre.weight",
    "ln_pre.bias": "norm_pre.bias",
    "ln_post.weight": "norm.weight",
    "ln_post.bias": "norm.bias",
}
TIMM_BLOCK = {
    "ln_1": "norm1",
    "attn.out_proj": "attn.proj",
    "ln_2": "norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
# Beside `visual.` in open_clip's CLIP: one of these tells it from other models with a `visual.`.
MARKS = ("token_embedding.weight", "text.token_embedding.weight", "logit_scale", "text_projection")
OF_TEXT = re.compile(r"token_embedding\.|positional_embedding$|ln_final\.|text_projection|transfor")
BESIDE = ("logit_scale", "logit_bias")  # of a CLIP, in neither tower


class Parts(NamedTuple):
    """The tensors that one is stacked from, along the first axis.

    `flips`: it is their transpose. `lead`: so many leading axes of length one are left out. `rows`:
    only the first ones count.
    """

    names: tuple[str, ...]
    flips: bool = False
    lead: int = 0
    rows: int | None = None


Layout = Mapping[str, Parts]


def layout_of(names: Collection[str]) -> dict[str, Parts] | None:
    """open_clip's names of a CLIP, each with its parts.

    A prefix that all names have is looked through. None for names that are kept as they stand,
    those of open_clip's image tower among them.
    """
    for find in (_open_clip, _hugging_face, _timm):
        if found := find(names):
            return found | {name: Parts((name,)) for name in BESIDE if name in names}
    prefix = commonprefix(list(names)).rpartition(".")[0] + "."
    inside = layout_of([n.removeprefix(prefix) for n in names]) if len(prefix) > 1 else None
    if inside is None:
        return None
    return {
        name: parts._replace(names=tuple(prefix + part for part in parts.names))
        for name, parts in inside.items()
    }


def _open_clip(names: Collection[str]) -> dict[str, Parts]:
    inside = {name.removeprefix("visual."): name for name in names if name.startswith("visual.")}
    whole = any(mark in names for mark in MARKS)
    if not whole and len(inside) < len(names):
        return {}
    found = {ours: Parts((theirs,)) for ours, theirs in inside.items()}
    alone = "token_embedding.weight" in names and "ln_final.weight" in names  # a text tower
    if whole and (inside or alone):
        for name in names:
            if OF_TEXT.match(name):
                found[f"text.{name}"] = Parts((name,))
    return found


def _hugging_face(names: Collection[str]) -> dict[str, Parts]:
    found: dict[str, Parts] = {}
    for prefix in ("vision_model.", ""):  # transformers 5 writes a CLIPVisionModel without
        if all(prefix + VISION[n] in names for n in ("class_embedding", "ln_pre.weight")):
            found |= tower(names, prefix, VISION)
            if "visual_projection.weight" in names:  # a CLIPVisionModel has none
                found["proj"] = Parts(("visual_projection.weight",), flips=True)
            break
    for prefix in ("text_model.", ""):
        if all(prefix + TEXT[n] in names for n in ("token_embedding.weight", "ln_final.weight")):
            found |= {f"text.{n}": parts for n, parts in tower(names, prefix, TEXT).items()}
            if "text_projection.weight" in names:
                found["text.text_projection"] = Parts(("text_projection.weight",), flips=True)
            break
    return found


def tower(names: Collection[str], prefix: str, ends: Mapping[str, str]) -> dict[str, Parts]:
    """open_clip's names of one tower of Hugging Face's CLIP; `ends` lie around its blocks."""
    found = {ours: Parts((prefix + theirs,)) for ours, theirs in ends.items()}
    for i in range(_depth(names, f"{prefix}encoder.layers.")):
        ours, theirs = f"transformer.resblocks.{i}.", f"{prefix}encoder.layers.{i}."
        for kind in ("weight", "bias"):
            apart = tuple(f"{theirs}self_attn.{part}_proj.{kind}" for part in "qkv")
            found[f"{ours}attn.in_proj_{kind}"] = Parts(apart)
            for a, b in BLOCK.items():
                found[f"{ours}{a}.{kind}"] = Parts((f"{theirs}{b}.{kind}",))
    return found


def _timm(names: Collection[str]) -> dict[str, Parts]:
    wanted = ("cls_token", "pos_embed", "norm_pre.weight", "blocks.0.attn.qkv.weight")
    if not all(name in names for name in wanted) or "patch_embed.proj.bias" in names:
        return {}
    found = {ours: Parts((theirs,)) for ours, theirs in TIMM.items()}
    found["class_embedding"] = Parts(("cls_token",), lead=2)
    found["positional_embedding"] = Parts(("pos_embed",), lead=1)
    for i in range(_depth(names, "blocks.")):
        ours, theirs = f"transformer.resblocks.{i}.", f"blocks.{i}."
        for kind in ("weight", "bias"):
            found[f"{ours}attn.in_proj_{kind}"] = Parts((f"{theirs}attn.qkv.{kind}",))
            for a, b in TIMM_BLOCK.items():
                found[f"{ours}{a}.{kind}"] = Parts((f"{theirs}{b}.{kind}",))
    if "head.weight" in names and "head.bias" not in names:  # with a bias it is a classifier
        found["proj"] = Parts(("head.weight",), flips=True)
    return found


def _depth(names: Collection[str], prefix: str) -> int:
    """How many blocks there are, counted by the numbers after a prefix."""
    block = re.compile(re.escape(prefix) + r"(\d+)\.")
    return 1 + max((int(m[1]) for name in names if (m := block.match(name))), default=-1)


@dataclass(frozen=True)
class Arranged(Weights):
    """Weights under the names of a layout, and those that they are made of, as in the file."""

    own: Weights = field(kw_only=True)
    layout: Layout = field(kw_only=True)

    def under_own_names(self, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """What a tensor of this name is in the file: (name, tensor) of each of its parts."""
        parts = self.layout[name]
        if parts.flips:
            tensor = tensor.T
        shapes = [self.own.shapes[part] for part in parts.names]
        split = tensor.split([shape[0] for shape in shapes]) if len(shapes) > 1 else [tensor]
        for part, shape, piece in zip(parts.names, shapes, split, strict=True):
            yield part, piece.reshape(shape)


def named(names: Mapping[str, str], whole: bool = True) -> Layout:
    """The layout of a checkpoint: open_clip's names, or its plain ones, by parts of the file.

    `names`: plain names with those in the file (`wrappers.plain`). Not `whole`: of a CLIP the image
    tower, which metrics are of, unless it has none; other models are taken whole.
    """
    layout = layout_of(names)
    if layout is None:
        return {name: Parts((own,)) for name, own in names.items()}
    inside = {name: parts for name, parts in layout.items() if not beside_images(name)}
    if whole or not inside:  # then what is no part of a CLIP as well, say a head
        used = {part for parts in layout.values() for part in parts.names}
        inside = layout | {name: Parts((name,)) for name in names if name not in used}
    return {
        name: parts._replace(names=tuple(names.get(part, part) for part in parts.names))
        for name, parts in inside.items()
    }


def beside_images(name: str) -> bool:
    """Whether a tensor of a CLIP is no part of its image tower."""
    return name.startswith("text.") or name in BESIDE


def rearranged(weights: Weights, layout: Layout) -> Arranged:
    """Weights whose tensors are made of others, by a layout.

    Raises MergelibError, naming the tensor, if one is absent or does not stack.
    """
    for parts in layout.values():
        for name in parts.names:
            if name not in weights.shapes:
                raise MergelibError(
                    f"{weights.label} lacks tensor {name!r} of the CLIP layout: copy or save it "
                    "again, whole"
                )
        if len({weights.shapes[name][1:] for name in parts.names}) > 1:
            shapes = ", ".join(f"{name} {weights.shapes[name]}" for name in parts.names)
            raise MergelibError(f"{weights.label}: {shapes} do not stack; give a CLIP model")

    def shape(parts: Parts) -> tuple[int, ...]:
        first = weights.shapes[parts.names[0]]
        if len(parts.names) > 1:
            return (sum(weights.shapes[name][0] for name in parts.names), *first[1:])
        if parts.rows is not None:
            return (parts.rows, *first[1:])
        return first[::-1] if parts.flips else first[min(parts.lead, _ones(first)) :]

    def get(name: str) -> Tensor:
        parts = layout[name]
        if len(parts.names) > 1:
            return torch.cat([weights.get(part) for part in parts.names])
        tensor = weights.get(parts.names[0])
        if parts.rows is not None:
            tensor = tensor[: parts.rows]
        return tensor.T if parts.flips else tensor.reshape(shape(parts))

    def cut(name: str, rows: slice) -> Tensor:
        parts = layout[name]
        stands = len(parts.names) == 1 and not parts.flips and not parts.lead
        return weights.part(parts.names[0], rows) if stands else get(name)[rows]

    return Arranged(
        weights.label,
        {name: shape(parts) for name, parts in layout.items()},
        {name: weights.dtypes[parts.names[0]] for name, parts in layout.items()},
        get,
        weights.notes,
        cut,
        None if weights.low_rank is None else partial(_low_rank, weights, layout),
        own=weights,
        layout=layout,
    )


def _ones(shape: tuple[int, ...]) -> int:
    """How many leading axes have length one."""
    return next((k for k, size in enumerate(shape) if size != 1), len(shape))


def _low_rank(weights: Weights, layout: Layout, name: str) -> tuple[Tensor, Tensor] | None:
    """The factors of a tensor made of others: of a stack, their left ones lie block by block."""
    assert weights.low_rank is not None
    parts = layout[name]
    found = [weights.low_rank(part) for part in parts.names]
    known = [each for each in found if each is not None]
    if len(known) < len(found) or parts.rows is not None:
        return None
    left, right = torch.block_diag(*(one for one, _ in known)), torch.cat([two for _, two in known])
    return (right.T, left.T) if parts.flips else (left, right)
