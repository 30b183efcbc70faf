"""Checkpoints in the formats people have, read tensor by tensor under open_clip's names.

Formats: safetensors files; `.pt`, `.pth` and `.bin` state dicts, bare or under "state_dict"
(tensors only, memory-mapped); Hugging Face CLIP directories (config.json beside model.safetensors,
pytorch_model.bin, or shards with their index).

Names: those of open_clip's image tower (`conv1.weight`, `transformer.resblocks.0.ln_1.bias`, …).
Of a whole CLIP only the image tower is read: what is under `visual.`, or `vision_model.` and
`visual_projection` of the Hugging Face layout; text tensors beside it are left out. A checkpoint
with neither is read as it stands. So models in different formats and layouts can be compared.
"""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from pathlib import Path
from pickle import UnpicklingError
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mergelib.errors import MergelibError
from mergelib.store import read_json
from mergelib.vectors import Weights

PICKLED = (".pt", ".pth", ".bin")
IN_DIRECTORY = ("model.safetensors", "pytorch_model.bin")
TEXT_MATRICES = ("token_embedding.weight", "positional_embedding", "text_projection")

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


@contextmanager
def opened(path: Path | str) -> Iterator[Weights]:
    """Open a checkpoint of any known format; its image tower, tensor by tensor.

    Raises MergelibError, naming the file, if it is missing, truncated, of another format or layout,
    or holds pickled objects other than tensors.
    """
    with ExitStack() as stack:
        yield image_tower(_raw(Path(path), stack))


def image_tower(weights: Weights) -> Weights:
    """The image tower of a CLIP under open_clip's names; other weights as they stand."""
    if _is_hugging_face(weights):
        return _derived(weights, _hugging_face_vision(weights))
    prefix = "visual."
    inside = [name for name in weights.shapes if name.startswith(prefix)]
    return _derived(weights, {n.removeprefix(prefix): (n,) for n in inside}) if inside else weights


def whole_clip(path: Path | str) -> dict[str, Tensor]:
    """All tensors of a Hugging Face CLIP (both towers) as an open_clip state dict.

    Raises MergelibError as `opened` does, or if the text tower is absent.
    """
    with ExitStack() as stack:
        weights = _raw(Path(path), stack)
        if not _is_hugging_face(weights):
            raise MergelibError(f"{path} is no Hugging Face CLIP: it has no vision_model.* tensors")
        vision = {f"visual.{n}": parts for n, parts in _hugging_face_vision(weights).items()}
        text = _tower(weights, "text_model.", TEXT)
        text |= {"text_projection": ("text_projection.weight",), "logit_scale": ("logit_scale",)}
        both = _derived(weights, vision | text)
        return {name: both.read(name) for name in both.shapes}


def text_matrices(path: Path | str) -> int:
    """How many matrices of the text side, short of its transformer, lie beside the image tower.

    The published checkpoints keep three such, which fine-tuning of the image tower leaves as they
    were; the paper edition of the subspace metrics counts them.
    """
    with ExitStack() as stack:
        names = set(_raw(Path(path), stack).shapes)
    if any(name.startswith("visual.") for name in names):
        return len(names.intersection(TEXT_MATRICES))
    theirs = {f"text_model.{TEXT[name]}" for name in TEXT_MATRICES if name in TEXT}
    return len(names & (theirs | {"text_projection.weight"}))


# --- formats ----------------------------------------------------------------------------------


def _raw(path: Path, stack: ExitStack) -> Weights:
    """A checkpoint under its own names."""
    if path.is_dir():
        return _directory(path, stack)
    if not path.is_file():
        raise MergelibError(
            f"{path} is missing: give the path of a safetensors, .pt, .pth or .bin file, or of a "
            "Hugging Face CLIP directory"
        )
    return _pickled(path) if path.suffix in PICKLED else _safetensors(path, stack)


def _safetensors(path: Path, stack: ExitStack) -> Weights:
    try:
        file = stack.enter_context(safe_open(path, framework="pt"))
    except (SafetensorError, OSError, ValueError) as error:
        raise MergelibError(
            f"{path} is truncated or no safetensors file ({error}): write or copy it again"
        ) from None
    stat = path.stat()
    shapes, floating = _header(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)
    return Weights(str(path), shapes, floating, file.get_tensor)


@lru_cache(maxsize=256)  # sweeps open a file again and again, to let go of what was mapped
def _header(path: Path, *stamp: int) -> tuple[dict[str, tuple[int, ...]], frozenset[str]]:
    """Shapes by name, and the names of floating-point tensors."""
    with safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    return shapes, frozenset(name for name, part in slices.items() if "F" in part.get_dtype())


def _pickled(path: Path) -> Weights:
    held = _load(path)
    if isinstance(held, Mapping) and isinstance(held.get("state_dict"), Mapping):
        held = held["state_dict"]
    mend = "save the state dict alone, torch.save(model.state_dict(), path)"
    if not isinstance(held, Mapping):
        raise MergelibError(f"{path} holds a {type(held).__name__}, no state dict: {mend}")
    for name, value in held.items():
        if not isinstance(value, Tensor):
            raise MergelibError(f"{path}: {name!r} is a {type(value).__name__}, no tensor: {mend}")
    prefix = "module."  # of a model that was trained on several devices
    if held and all(name.startswith(prefix) for name in held):
        held = {name.removeprefix(prefix): value for name, value in held.items()}
    return of_mapping(held, str(path))


def of_mapping(state: Mapping[str, Tensor], label: str) -> Weights:
    """A state dict in memory."""
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    floating = frozenset(name for name in shapes if state[name].is_floating_point())
    return Weights(label, shapes, floating, state.__getitem__)


def _load(path: Path) -> object:
    load = partial(torch.load, path, map_location="cpu", weights_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong is said once, below
            try:
                return load(mmap=True)
            except RuntimeError as error:
                if "mmap can only be used" not in str(error):
                    raise
                return load()  # the format before PyTorch 1.6 cannot be mapped
    except (RuntimeError, EOFError, OSError, LookupError, ValueError, UnpicklingError) as error:
        text = str(error)
        refused = isinstance(error, UnpicklingError) and ("GLOBAL" in text or is_zipfile(path))
        if refused or "TorchScript" in text:
            raise MergelibError(
                f"{path} holds pickled objects besides tensors, which could run code and are not "
                "loaded: save the state dict alone, torch.save(model.state_dict(), path), or as "
                "safetensors"
            ) from None
        reason = text.splitlines()[0].split(". ")[0] if text else type(error).__name__
        raise MergelibError(
            f"{path} is truncated or no PyTorch file ({reason}): write or copy it again"
        ) from None


def _directory(path: Path, stack: ExitStack) -> Weights:
    if not (path / "config.json").is_file():
        raise MergelibError(
            f"{path} has no config.json: give a Hugging Face CLIP directory, or a checkpoint file"
        )
    kind = read_json(path / "config.json").get("model_type")
    if kind not in ("clip", "clip_vision_model"):
        raise MergelibError(
            f"{path} holds a model of type {kind!r}: only CLIP (clip, clip_vision_model) is known"
        )
    for name in IN_DIRECTORY:
        if (path / name).is_file():
            return _raw(path / name, stack)
        if (path / f"{name}.index.json").is_file():
            return _shards(path, read_json(path / f"{name}.index.json"), stack)
    raise MergelibError(f"{path} has neither {' nor '.join(IN_DIRECTORY)}: copy the weights there")


def _shards(path: Path, index: Mapping, stack: ExitStack) -> Weights:
    where: dict[str, str] = index["weight_map"]
    files = {name: _raw(path / name, stack) for name in sorted(set(where.values()))}
    for name, file in where.items():
        if name not in files[file].shapes:
            raise MergelibError(f"{path / file} lacks tensor {name!r}, which the index puts there")
    return Weights(
        str(path),
        {name: files[file].shapes[name] for name, file in where.items()},
        frozenset(name for name, file in where.items() if name in files[file].floating),
        lambda name: files[where[name]].get(name),
    )


# --- layouts ----------------------------------------------------------------------------------


def _is_hugging_face(weights: Weights) -> bool:
    return any(name.startswith("vision_model.") for name in weights.shapes)


def _hugging_face_vision(weights: Weights) -> dict[str, tuple[str, ...]]:
    """Names of the image tower, each with those of the tensors that it is stacked from."""
    found = _tower(weights, "vision_model.", VISION)
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


def _tower(weights: Weights, prefix: str, ends: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
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


def _derived(weights: Weights, parts: Mapping[str, tuple[str, ...]]) -> Weights:
    """Weights whose tensors are stacks of others along the first axis, or transposed others.

    The projections are a Linear's weight in the Hugging Face layout, its transpose in open_clip's.
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

    return Weights(
        weights.label,
        {name: shape(names) for name, names in parts.items()},
        frozenset(n for n, names in parts.items() if weights.floating.issuperset(names)),
        get,
    )
