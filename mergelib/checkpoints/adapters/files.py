"""Files of LoRA adapters, PEFT's or kohya's, read; what is no plain LoRA is refused by name."""

import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from mergelib.checkpoints.adapters.applying import Adapter, Factors
from mergelib.checkpoints.adapters.config import INNER, Settings, read_settings
from mergelib.checkpoints.formats import open_weights
from mergelib.checkpoints.weights import Weights
from mergelib.core.errors import MergelibError

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")  # PEFT reads the first that is there
PREFIX = "base_model.model."  # PEFT's, before the model's own names

# A module's factors: PEFT's, those of its embeddings, and kohya's.
FACTORS = (
    re.compile(
        r"(?P<module>.+)\.lora_(?P<slot>[AB])(\.(?P<adapter>[^.]+))?\.(?P<kind>weight|bias)"
    ),
    re.compile(r"(?P<module>.+)\.lora_(?P<slot>embedding_[AB])(\.(?P<adapter>[^.]+))?"),
    re.compile(r"(?P<module>.+?)(\.lora_|\.lora\.|_lora\.)(?P<slot>down|up)\.(?P<kind>weight)"),
)
SIDES = {"down": "A", "up": "B"}
FLAT = re.compile(r"lora_(unet|te\d?|transformer|prior)_")  # before kohya's names
# Parts of names that only adapters of other kinds have.
OTHERS = {
    r"lora_magnitude_vector|dora_scale": "DoRA",
    r"hada_[wt]\d.*": "LoHa",
    r"lokr_[wt]\d.*": "LoKr",
    r"ia3_l": "IA3",
    r"lora_E|ranknum": "AdaLoRA",
    r"lora_mid": "a Tucker decomposition",
    r"lora_diag": "KaSA",
    r"oft_[rR]|oft_blocks|boft_[RrSs]": "OFT",
    r"vera_lambda_[bd]": "VeRA",
    r"trainable_tokens_delta": "trained tokens",
    r"prompt_embeddings": "prompt tuning",
}


def is_adapter(names: Iterable[str]) -> bool:
    """Whether tensors of these names are an adapter's (of any kind), no model's."""
    return any(_factor(name) or _other_kind(name) for name in names)


def is_adapter_folder(path: Path) -> bool:
    """Whether a folder holds an adapter of PEFT's: its configuration or its weights."""
    return any((path / name).is_file() for name in (CONFIG, *WEIGHTS))


def read_adapter(path: Path | str) -> Adapter:
    """The adapter in a folder of PEFT's, or in a file (the configuration is looked for beside it).

    Raises MergelibError, naming the file, if one is missing or cannot be read, for an adapter other
    than plain LoRA, and where alpha, and with it the scale, is unknown.
    """
    path = Path(path)
    if path.is_dir():
        config, file = (
            path / CONFIG,
            next((path / n for n in WEIGHTS if (path / n).is_file()), None),
        )
        if file is None:
            raise MergelibError(
                f"{path} has neither {' nor '.join(WEIGHTS)}: copy the weights there"
            )
        if not config.is_file():
            raise MergelibError(f"{path} has no {CONFIG}, which holds alpha: copy it there")
    else:
        file, config = path, path.parent / CONFIG
    known = path.is_dir() or (path.name in WEIGHTS and config.is_file())
    settings = read_settings(config) if known else None
    with ExitStack() as stack:
        return _adapter(open_weights(file, stack), settings, str(path))


def _factor(name: str) -> re.Match[str] | None:
    return next((match for each in FACTORS if (match := each.fullmatch(name))), None)


@lru_cache(maxsize=1 << 14)  # files are opened again and again
def _other_kind(name: str) -> str | None:
    for part in name.split("."):
        for pattern, kind in OTHERS.items():
            if re.fullmatch(pattern, part):
                return kind
    return None


@dataclass(frozen=True)
class _Names:
    """The tensors of a file: modules with those of their parts (A, B, …), and whole ones."""

    modules: Mapping[str, Mapping[str, str]]
    whole: Mapping[str, tuple[str, ...]]
    left_out: Collection[str]


def _names(weights: Weights) -> _Names:
    """The names of a file sorted. Raises MergelibError for several adapters, or another kind."""
    modules: dict[str, dict[str, str]] = {}
    adapters, rest = set(), {}
    for raw in weights.shapes:
        name = raw.removeprefix(PREFIX)
        if kind := _other_kind(name):
            raise MergelibError(
                f"{weights.label}: {raw!r} belongs to {kind}, which is no plain LoRA and not read: "
                "merge it into its base with the tool that trained it, and give the model"
            )
        if (match := _factor(name)) is None:
            rest[name] = raw
            continue
        parts = match.groupdict()
        adapters.add(parts.get("adapter"))
        slot = SIDES.get(parts["slot"], parts["slot"])
        slot += "_bias" if parts.get("kind") == "bias" else ""
        modules.setdefault(parts["module"], {})[slot] = raw
    if len(adapters) > 1:
        raise MergelibError(
            f"{weights.label} holds several adapters, {', '.join(sorted(map(str, adapters)))}: "
            "save the one that is meant"
        )
    for name in list(rest):
        if name.endswith(".alpha") and (module := name.removesuffix(".alpha")) in modules:
            modules[module]["alpha"] = rest.pop(name)
    whole: dict[str, tuple[str, ...]] = {}
    left_out = [name for name in rest if ".original_module." in name]
    for name, raw in rest.items():
        if name not in left_out:
            own = re.sub(r"\.modules_to_save\.[^.]+\.", ".", _own(name))
            whole[own] = (*whole.get(own, ()), raw)
    return _Names(modules, whole, left_out)


def _own(name: str) -> str:
    """The model's own name of what PEFT has wrapped."""
    return name.replace(INNER, ".")


def _adapter(weights: Weights, settings: Settings | None, label: str) -> Adapter:
    names = _names(weights)
    if not names.modules and not names.whole:
        raise MergelibError(f"{label} holds no tensors: save the adapter again")
    if settings is None and names.whole:
        raise MergelibError(
            f"{label}: {min(names.whole)!r} is no factor of a LoRA: give a plain LoRA file, or the "
            f"folder that PEFT wrote, with {CONFIG}"
        )
    factors: dict[str, Factors] = {}
    added: dict[str, Tensor] = {}
    flat = bool(names.modules) and all(FLAT.match(module) for module in names.modules)
    for module, parts in names.modules.items():
        found = _factors(weights, module, parts, settings)
        own = FLAT.sub("", f"{module}_weight", count=1) if flat else _own(f"{module}.weight")
        if own in factors:
            raise MergelibError(
                f"{label}: {module!r} has two pairs of factors (of bare parameters?), which is not "
                "LoRA of a layer: merge the adapter with PEFT and give the model"
            )
        factors[own] = found
        if "B_bias" in parts:
            bias = found.scale * weights.read(parts["B_bias"]).double()
            added[_own(f"{module}.bias")] = bias
    notes = []
    if names.left_out:
        notes.append(
            f"{label}: {len(names.left_out)} original tensors of saved modules are left out"
        )
    if any(INNER in module for module in names.modules):
        notes.append(f"{label}: out_proj of attention counts twice, as PEFT trains it (peft#3774)")
    return Adapter(
        label,
        factors,
        {name: _one(weights, name, raws) for name, raws in names.whole.items()},
        added,
        settings is not None and settings.transposed,
        flat,
        tuple(notes),
    )


def _one(weights: Weights, name: str, raws: tuple[str, ...]) -> Tensor:
    """A whole tensor, which PEFT may have written under two names."""
    first, *others = (weights.read(raw) for raw in raws)
    if not all(torch.equal(first, other) for other in others):
        raise MergelibError(
            f"{weights.label}: {' and '.join(map(repr, raws))} differ, and both are {name!r}: save "
            "the adapter again"
        )
    return first


def _factors(
    weights: Weights, module: str, parts: Mapping[str, str], settings: Settings | None
) -> Factors:
    """One module's factors and scale. Raises MergelibError, naming it, where they are no pair."""
    embedding = "embedding_A" in parts or "embedding_B" in parts
    sides = ("embedding_A", "embedding_B") if embedding else ("A", "B")
    for side, other in (sides, sides[::-1]):
        if side not in parts:
            raise MergelibError(
                f"{weights.label}: {parts.get(other, module)!r} lacks its partner, lora_{side}: "
                "save the adapter again, whole"
            )
    if set(parts) - {*sides, "alpha", "B_bias"}:
        raise MergelibError(f"{weights.label}: {module!r} has factors of two kinds: save it again")
    a, b = (weights.read(parts[side]) for side in sides)
    rank = a.shape[0] if a.ndim else 0
    _check_pair(weights.label, module, a, b)
    given = float(weights.read(parts["alpha"])) if "alpha" in parts else None
    if settings is not None:
        scale = settings.scale(module, rank, given)
    elif given is not None:
        scale = given / rank
    else:
        raise MergelibError(
            f"{weights.label} does not say alpha, and without it the size of the update of "
            f"{module!r} is unknown: give the folder that PEFT wrote, with {CONFIG}"
        )
    if embedding:
        return Factors(b.T, a.T, scale, oriented=True)
    kohya = settings is None  # which knows no transposed layers
    return Factors(a, b.reshape(len(b), rank), scale, oriented=kohya or a.ndim > 2)


def _check_pair(label: str, module: str, a: Tensor, b: Tensor) -> None:
    shapes = f"{label}: the factors of {module!r} have shapes {tuple(a.shape)}, {tuple(b.shape)}"
    if min(a.ndim, b.ndim) < 2 or not a.numel() or not b.numel():
        raise MergelibError(
            f"{shapes}, no matrices: parts of a sharded training run? Gather and save them again"
        )
    if b.shape[1] != a.shape[0] or b[0, 0].numel() != 1:
        raise MergelibError(
            f"{shapes}, which do not multiply (a convolution in groups?): merge the adapter with "
            "the tool that trained it, and give the model"
        )
