"""A fine-tuned model as a LoRA adapter of its base: truncated SVDs, under PEFT's names."""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mergelib.checkpoints.adapters.files import PREFIX
from mergelib.checkpoints.selection import matches
from mergelib.checkpoints.task_vectors import difference
from mergelib.checkpoints.weights import Weights, check_same
from mergelib.core.errors import MergelibError
from mergelib.linalg.polar import triplets

# An embedding's matrix looks as a layer's does, and PEFT names its factors otherwise.
EMBEDDINGS = ("*embed_tokens", "*_embedding", "*_embeddings", "*wte", "*wpe", "*shared")
MEND = "take them out with --exclude, or all that is no matrix with --matrices-only"


@dataclass(frozen=True)
class Wanted:
    """What to extract, and how: tensors and modules are named by patterns such as `*.mlp.*`.

    `alpha` is by default the rank, so that the scale is 1. `embeddings` are modules whose matrices
    are embeddings; `transposed` says that the other matrices are stored (n, m), as GPT-2's.
    """

    rank: int
    alpha: float | None = None
    only: Sequence[str] = ("*",)
    exclude: Sequence[str] = ()
    matrices_only: bool = False
    embeddings: Sequence[str] = EMBEDDINGS
    transposed: bool = False
    dtype: torch.dtype = torch.float32

    def takes(self, name: str) -> bool:
        """Whether a tensor is asked for."""
        return matches(self.only, [name]) and not matches(self.exclude, [name])


@dataclass
class Extracted:
    """An adapter's tensors and configuration; ‖τ‖² by tensor, and how much of it is kept."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    squares: dict[str, float] = field(default_factory=dict)
    kept: dict[str, float] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    saved: list[str] = field(default_factory=list)
    embeddings: list[str] = field(default_factory=list)

    def share(self, names: Iterable[str]) -> float:
        """The share of ‖τ‖² that these tensors hold."""
        return sum(self.squares[name] for name in names) / sum(self.squares.values())

    @property
    def kept_share(self) -> float:
        """The share of ‖τ‖² that the adapter keeps."""
        return sum(self.kept.values()) / sum(self.squares.values())


def extract(base: Weights, model: Weights, wanted: Wanted) -> Extracted:
    """The adapter whose s·B·A are the best of rank r to τ = θ − θ0, matrix by matrix.

    With τ ≈ U diag(σ) Vᵀ, B = U √(σ/s) and A = √(σ/s) Vᵀ; smaller ranks are filled with zeros.
    Weights of convolutions count as (m, c·k·k). Tensors that are no matrices are saved whole where
    PEFT can: biases of the layers, and modules without others inside.
    Raises MergelibError for other names or shapes, NaN, a wrong option, where no matrix has moved,
    and where a tensor has that PEFT cannot hold.
    Source: Eckart and Young 1936; Hu et al. 2022, section 4.1.
    """
    _check(wanted, base)
    check_same(base, model)
    found = Extracted()
    moved, taken = _moved(base, model, wanted, found)
    layers = [name for name in taken if _is_layer(name, base)]
    others = [name for name in taken if name not in layers]
    found.left_out = [name for name in moved if name not in taken]
    if wanted.matrices_only:
        found.left_out += others
        others = []
    if not layers:
        raise MergelibError(
            f"no matrix of {model.label} that is asked for differs from {base.label}: nothing to "
            "extract; check the paths and patterns"
        )
    modules = {name.removesuffix(".weight") for name in layers}
    _check_orientation(base, layers, wanted)
    biases = [n for n in others if n.endswith(".bias") and n.removesuffix(".bias") in modules]
    whole = _saved_modules(base, [n for n in others if n not in biases], modules, found)
    _add_factors(base, model, layers, wanted, found)
    for name in biases:
        module, end = _parts(name)
        found.tensors[f"{PREFIX}{module}.base_layer.{end}"] = model.read(name)
    for module in whole:
        for name in _inside(module, base.shapes):
            source = model if wanted.takes(name) else base
            found.tensors[PREFIX + name] = source.read(name)
    found.saved = [*biases, *(name for name in others if name not in biases)]
    found.kept |= {name: found.squares[name] for name in found.saved}
    found.config |= {
        "peft_type": "LORA",
        "base_model_name_or_path": base.label,
        "target_modules": _targets(modules, base.shapes),
        "modules_to_save": whole or None,
        "bias": "lora_only" if biases else "none",
        "fan_in_fan_out": wanted.transposed,
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "inference_mode": True,
        "task_type": None,
    }
    return found


def _check(wanted: Wanted, base: Weights) -> None:
    if wanted.rank < 1:
        raise MergelibError(f"the rank is {wanted.rank}: give 1 or more")
    if wanted.alpha is not None and not 0 < wanted.alpha < float("inf"):
        raise MergelibError(f"alpha is {wanted.alpha}: give a positive number, or none")
    modules = {_parts(name)[0] for name in base.shapes}
    asked = () if wanted.embeddings is EMBEDDINGS else wanted.embeddings
    for what, patterns, names in (
        ("tensor", (*wanted.only, *wanted.exclude), set(base.shapes)),
        ("module", asked, modules),
    ):
        for pattern in patterns:
            if not matches([pattern], names):
                raise MergelibError(
                    f"the pattern {pattern!r} fits no {what} of {base.label}, such as "
                    f"{min(names, default=None)!r}: mend it"
                )


def _moved(
    base: Weights, model: Weights, wanted: Wanted, found: Extracted
) -> tuple[list[str], list[str]]:
    """The tensors that differ, and those of them that are asked for; their ‖τ‖² are noted."""
    for name in sorted(base.shapes):
        if square := float(difference(model.read(name), base.read(name)).square().sum()):
            found.squares[name] = square
    moved = list(found.squares)
    return moved, [name for name in moved if wanted.takes(name)]


def _parts(name: str) -> tuple[str, str]:
    """A tensor's module and its name there."""
    module, _, end = name.rpartition(".")
    return module, end


def _inside(module: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(f"{module}.")]


def _in_attention(name: str, base: Weights) -> bool:
    """Whether it is the inner projection of torch's attention, of which no layer is called."""
    return f"{_parts(_parts(name)[0])[0]}.in_proj_weight" in base.shapes


def _is_layer(name: str, base: Weights) -> bool:
    """Whether PEFT can add to it: a matrix or convolution, but not one channel by channel."""
    shape = base.shapes[name]
    by_channel = len(shape) > 2 and shape[1] == 1
    fits = name.endswith(".weight") and len(shape) > 1 and name in base.floating
    return fits and not by_channel and not _in_attention(name, base)


def _saved_modules(
    base: Weights, others: Sequence[str], layers: Collection[str], found: Extracted
) -> list[str]:
    """Modules that PEFT saves whole for these tensors.

    PEFT saves every module whose name ends as the given one does. Raises MergelibError, naming
    them, for tensors that lie in no such module.
    """
    known = _all_modules(base.shapes)
    leaves = known - {_parts(module)[0] for module in known}
    leaves -= {module for module in leaves if _in_attention(f"{module}.weight", base)}
    bare = [name for name in others if _parts(name)[0] not in leaves - set(layers)]
    if bare:
        raise MergelibError(
            f"{', '.join(bare)} moved ({found.share(bare):.2%} of ‖τ‖²), and PEFT cannot hold bare "
            f"parameters, nor those of torch's attention: {MEND}"
        )
    saved = sorted({_parts(name)[0] for name in others})
    for module in saved:
        also = [each for each in known if each.endswith(module) and each not in saved]
        if clash := [each for each in also if each in layers or each not in leaves]:
            raise MergelibError(
                f"PEFT would save {clash[0]!r} together with {module!r}, whose name ends likewise: "
                f"{MEND}"
            )
        saved += also
    return sorted(set(saved))


def _all_modules(names: Iterable[str]) -> set[str]:
    parts = (name.split(".")[:-1] for name in names)
    return {".".join(each[: i + 1]) for each in parts for i in range(len(each))}


def _targets(modules: Collection[str], names: Iterable[str]) -> list[str] | str:
    """The modules as PEFT's target_modules; a pattern where others' names end likewise."""
    others = (other.split(".") for other in _all_modules(names) - set(modules))
    ends = {".".join(parts[i:]) for parts in others for i in range(1, len(parts))}
    if not ends.isdisjoint(modules):
        return "|".join(re.escape(module) for module in sorted(modules))
    return sorted(modules)


def _is_embedding(name: str, base: Weights, wanted: Wanted) -> bool:
    module = _parts(name)[0]  # an embedding has no bias
    fits = matches(wanted.embeddings, [module]) and f"{module}.bias" not in base.shapes
    return len(base.shapes[name]) == 2 and fits


def _check_orientation(base: Weights, layers: Sequence[str], wanted: Wanted) -> None:
    """A bias is as long as a layer's outputs, which tells how a matrix is stored."""
    for name in layers:
        shape, bias = base.shapes[name], base.shapes.get(f"{_parts(name)[0]}.bias")
        plain = len(shape) == 2 and not _is_embedding(name, base, wanted)
        if not plain or bias is None or shape[0] == shape[1]:
            continue
        if bias != (shape[1 if wanted.transposed else 0],):
            raise MergelibError(
                f"{name!r} has shape {shape} and its bias {bias}: such matrices are "
                + (
                    "not transposed; leave out --fan-in-fan-out"
                    if wanted.transposed
                    else "stored transposed, as GPT-2's; give --fan-in-fan-out"
                )
            )


def _add_factors(
    base: Weights, model: Weights, layers: Sequence[str], wanted: Wanted, found: Extracted
) -> None:
    """Put the layers' factors among the tensors, and r and alpha into the configuration."""

    def task_vector(name: str) -> Tensor:
        return difference(model.read(name), base.read(name)).flatten(1)

    pairs = {}
    for name in layers:
        u, s, v = triplets(task_vector(name), wanted.rank)
        pairs[name] = (u * s.sqrt(), v * s.sqrt())
    rank = max(left.shape[1] for left, _ in pairs.values())
    alpha = rank if wanted.alpha is None else wanted.alpha
    found.config |= {"r": rank, "lora_alpha": alpha}
    for name, pair in pairs.items():
        left, right = (_filled(p * (rank / alpha) ** 0.5, rank).to(wanted.dtype) for p in pair)
        product = (alpha / rank) * left.double() @ right.double().T
        found.kept[name] = found.squares[name] - float((task_vector(name) - product).square().sum())
        embedding = _is_embedding(name, base, wanted)
        if embedding:
            found.embeddings.append(name)
        found.tensors |= _named(name, base.shapes[name], left, right, embedding, wanted.transposed)


def _filled(columns: Tensor, count: int) -> Tensor:
    """Columns (m, k) and zeros beside them: (m, count)."""
    return torch.nn.functional.pad(columns, (0, count - columns.shape[1]))


def _named(
    name: str,
    shape: tuple[int, ...],
    left: Tensor,
    right: Tensor,
    embedding: bool,
    transposed: bool,
) -> dict[str, Tensor]:
    """A and B of τ = left·rightᵀ, (m, r) and (n, r), under PEFT's names and with its shapes."""
    module = PREFIX + _parts(name)[0]
    if embedding:
        return {f"{module}.lora_embedding_A": left.T, f"{module}.lora_embedding_B": right}
    if len(shape) == 2 and transposed:
        left, right = right, left
    ones = (1,) * (len(shape) - 2)
    a = right.T.reshape(-1, *shape[1:]) if ones else right.T
    return {
        f"{module}.lora_A.weight": a,
        f"{module}.lora_B.weight": left.reshape(*left.shape, *ones),
    }
