"""The image tower of a CLIP under open_clip's names, from the layouts that libraries write."""

import re
from collections.abc import Mapping

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


def image_tower(weights: Weights) -> Weights:
    """The image tower of a CLIP under open_clip's names; other weights as they stand."""
    if is_hugging_face(weights):
        return rearranged(weights, vision_names(weights))
    prefix = "visual."
    inside = [name for name in weights.shapes if name.startswith(prefix)]
    return (
        rearranged(weights, {n.removeprefix(prefix): (n,) for n in inside}) if inside else weights
    )


def is_hugging_face(weights: Weights) -> bool:
    """Whether the names are those of Hugging Face's CLIP."""
    return any(name.startswith("vision_model.") for name in weights.shapes)


def vision_names(weights: Weights) -> dict[str, tuple[str, ...]]:
    """open_clip's names of the image tower, each with those of the tensors it is stacked from.

    Raises MergelibError, naming it, for a vision tensor that belongs to no CLIP.
    """
    found = tower_names(weights, "vision_model.", VISION)
    used = {part for parts in found.values() for part in parts}
    for name in weights.shapes:
        rest = name.startswith("vision_model.") and not name.endswith(".position_ids")
        if rest and name not in used:
            raise MergelibError(
                f"{weights.label}: tensor {name!r} is no part of a CLIP image tower; give a "
                "CLIPModel or CLIPVisionModel"
            )
    if "visual_projection.weight" in weights.shapes:  # a CLIPVisionModel has none
        found["proj"] = ("visual_projection.weight",)
    return found


def tower_names(
    weights: Weights, prefix: str, ends: Mapping[str, str]
) -> dict[str, tuple[str, ...]]:
    """open_clip's names of one tower, each with those of the tensors it is stacked from.

    `ends` are what lies before and after its blocks.
    """
    found: dict[str, tuple[str, ...]]
    found = {ours: (prefix + theirs,) for ours, theirs in ends.items()}
    layer = re.compile(re.escape(prefix) + r"encoder\.layers\.(\d+)\.")
    count = 1 + max((int(m[1]) for n in weights.shapes if (m := layer.match(n))), default=-1)
    for i in range(count):
        ours, theirs = f"transformer.resblocks.{i}.", f"{prefix}encoder.layers.{i}."
        for kind in ("weight", "bias"):
            found[f"{ours}attn.in_proj_{kind}"] = tuple(
                f"{theirs}self_attn.{part}_proj.{kind}" for part in "qkv"
            )
            found |= {f"{ours}{a}.{kind}": (f"{theirs}{b}.{kind}",) for a, b in BLOCK.items()}
    return found


def rearranged(weights: Weights, parts: Mapping[str, tuple[str, ...]]) -> Weights:
    """Weights whose tensors are stacks of others along the first axis, or transposed others.

    The projections are a Linear's weight in the Hugging Face layout, its transpose in open_clip's.
    Raises MergelibError, naming the tensor, if one is absent or does not stack.
    """
    for names in parts.values():
        for name in names:
            if name not in weights.shapes:
                raise MergelibError(
                    f"{weights.label} lacks tensor {name!r} of the CLIP layout: copy or save it "
                    "again, whole"
                )
        if len({weights.shapes[name][1:] for name in names}) > 1:
            shapes = ", ".join(f"{name} {weights.shapes[name]}" for name in names)
            raise MergelibError(f"{weights.label}: {shapes} do not stack; give a CLIP model")

    def flips(names: tuple[str, ...]) -> bool:
        return names[0] in ("visual_projection.weight", "text_projection.weight")

    def shape(names: tuple[str, ...]) -> tuple[int, ...]:
        first = weights.shapes[names[0]]
        if len(names) > 1:
            return (sum(weights.shapes[name][0] for name in names), *first[1:])
        return first[::-1] if flips(names) else first

    def get(name: str) -> Tensor:
        names = parts[name]
        if len(names) > 1:
            return torch.cat([weights.get(part) for part in names])
        tensor = weights.get(names[0])
        return tensor.T if flips(names) else tensor

    def cut(name: str, rows: slice) -> Tensor:
        names = parts[name]
        stands = len(names) == 1 and not flips(names)
        return weights.part(names[0], rows) if stands else get(name)[rows]

    return Weights(
        weights.label,
        {name: shape(names) for name, names in parts.items()},
        {name: weights.dtypes[names[0]] for name, names in parts.items()},
        get,
        cut=cut,
    )
