"""The parts of a transformer that can be rewritten without changing what it computes.

Attention: per head the products W_Qᵀ W_K and W_O W_V are all that counts, and heads have no order.
A multilayer perceptron: its hidden units have no order. Either is held here as matrices with a row
for each hidden dimension (of a head, or a unit): the symmetries act on rows, on all matrices of a
part alike, and leave columns, the residual stream's dimensions, alone.
Source: spec of MergeLock (arXiv 2509.01548) and PaRaMS (2503.07661), read as exact symmetries.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mergelib.checkpoints.layouts import Arranged
from mergelib.checkpoints.weights import Weights

# Names of a block's tensors after its prefix: three projections, or one that stacks them, and out.
ATTENTION = (
    (("attn.in_proj_",), "attn.out_proj."),  # open_clip, and whatever CLIP is read as it
    (("attention.in_proj_",), "attention.out_proj."),  # SigLIP's pooling
    (("attn.qkv.",), "attn.proj."),  # timm
    (("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."), "self_attn.out_proj."),
    (("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."), "self_attn.o_proj."),
    (("attention.q_proj.", "attention.k_proj.", "attention.v_proj."), "attention.o_proj."),
    (
        ("attention.attention.query.", "attention.attention.key.", "attention.attention.value."),
        "attention.output.dense.",
    ),
    (
        ("attention.self.query.", "attention.self.key.", "attention.self.value."),
        "attention.output.dense.",
    ),
)
# What feeds the hidden units, and what reads them.
PERCEPTRON = (
    (("mlp.c_fc.",), "mlp.c_proj."),
    (("mlp.fc1.",), "mlp.fc2."),
    (("intermediate.dense.",), "output.dense."),
    (("mlp.gate_proj.", "mlp.up_proj."), "mlp.down_proj."),
)


@dataclass(frozen=True)
class Rows:
    """A matrix (r, d) with a row for each hidden dimension, in a checkpoint.

    `bias`, where there is one, is its last column. `flips`: the tensor is (d, r). `third`: it is
    the first, second or last third of the tensor's rows.
    """

    weight: str
    bias: str | None = None
    flips: bool = False
    third: int | None = None


@dataclass(frozen=True)
class Part:
    """Attention (rows of Q, K, V and Oᵀ) or a perceptron (rows of W1, gated ones two, and W2ᵀ)."""

    name: str
    attention: bool
    rows: tuple[Rows, ...]

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of its tensors, each once."""
        names = [name for each in self.rows for name in (each.weight, each.bias) if name]
        return tuple(dict.fromkeys(names))

    def size(self, shapes: Mapping[str, Sequence[int]]) -> tuple[int, int]:
        """How many rows its matrices have, and how many columns but for biases."""
        width, rows = shapes[self.rows[-1].weight]
        return rows, width


def parts(shapes: Mapping[str, Sequence[int]]) -> list[Part]:
    """The parts that are found by the names and shapes of a model's tensors, in its own order.

    Attention whose K and V have fewer rows than Q (grouped heads) is none of them.
    """
    found: dict[str, Part] = {}
    for name in shapes:
        for patterns, attention in ((ATTENTION, True), (PERCEPTRON, False)):
            for inside, out in patterns:
                start = f"{inside[0]}weight"
                if name == start or name.endswith(f".{start}"):
                    prefix = name.removesuffix(start)
                    names = [prefix + each for each in inside]
                    part = _part(shapes, prefix, attention, names, prefix + out)
                    if part is not None:
                        found.setdefault(part.name, part)
    return list(found.values())


def _part(
    shapes: Mapping[str, Sequence[int]],
    prefix: str,
    attention: bool,
    inside: Sequence[str],
    out: str,
) -> Part | None:
    """A part of these names, if all of it is there and of matching shapes."""
    fused = attention and len(inside) == 1
    last = shapes.get(f"{out}weight", ())
    if len(last) != 2:
        return None
    width, size = last
    rows = []
    for start in inside:
        weight, bias = f"{start}weight", f"{start}bias"
        if tuple(shapes.get(weight, ())) != (3 * size if fused else size, width):
            return None
        held = bias if bias in shapes else None
        if held and tuple(shapes[bias]) != (3 * size if fused else size,):
            return None
        rows += [Rows(weight, held, third=k if fused else None) for k in range(3 if fused else 1)]
    name = f"{prefix}{inside[0].removeprefix(prefix).split('.')[0]}"
    return Part(name, attention, (*rows, Rows(f"{out}weight", flips=True)))


def read(
    weights: Weights, part: Part, columns: int | None = None, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """The matrices of a part, on the CPU: (r, d), with a column more where there is a bias.

    `columns`: only so many of the d. Entries that are not finite are not refused here.
    """
    found = []
    for each in part.rows:
        tensor = weights.get(each.weight).detach()
        tensor = _third(tensor.T if each.flips else tensor, each)
        matrix = tensor[:, :columns].to("cpu", dtype)
        if each.bias is not None:
            bias = _third(weights.get(each.bias).detach(), each).to("cpu", dtype)
            matrix = torch.cat([matrix, bias[:, None]], dim=1)
        found.append(matrix)
    return found


def _third(tensor: Tensor, rows: Rows) -> Tensor:
    return tensor if rows.third is None else tensor.chunk(3)[rows.third]


def rewritten(weights: Arranged, new: Iterable[tuple[Part, Sequence[Tensor]]]) -> dict[str, Tensor]:
    """A checkpoint's state dict, under its own names, with the matrices of some parts replaced."""
    state = {name: weights.own.get(name) for name in weights.own.shapes}
    for part, matrices in new:
        for name, tensor in _tensors(part, matrices):
            for own, piece in weights.under_own_names(name, tensor):
                state[own] = piece.to(state[own]).contiguous()
    return state


def _tensors(part: Part, matrices: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors (name, tensor) that a part's matrices are."""
    pieces: dict[str, list[Tensor]] = {}
    for each, matrix in zip(part.rows, matrices, strict=True):
        if each.bias is not None:
            pieces.setdefault(each.bias, []).append(matrix[:, -1])
            matrix = matrix[:, :-1]
        pieces.setdefault(each.weight, []).append(matrix.T if each.flips else matrix)
    for name, stack in pieces.items():
        yield name, torch.cat(stack)
