"""LoRA adapters: task vectors of low rank, kept as their factors, and put on a base."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mergelib.checkpoints.adapters.matching import matched
from mergelib.checkpoints.weights import Weights
from mergelib.core.errors import MergelibError


@dataclass(frozen=True)
class Factors:
    """τ = s·B·A of one tensor: `a` is A, (r, n) or (r, c, k, k), `b` is B, (m, r).

    `oriented` says that τ (m, …) lies as the model stores it; otherwise it may be the transpose.
    """

    a: Tensor
    b: Tensor
    scale: float
    oriented: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of τ."""
        return (len(self.b), *self.a.shape[1:])

    @property
    def left(self) -> Tensor:
        """s·B: (m, r), float64."""
        return self.scale * self.b.double()

    @property
    def right(self) -> Tensor:
        """A as a matrix: (r, n), float64; of a convolution n = c·k·k."""
        return self.a.double().flatten(1)

    def turned(self) -> "Factors":
        """Those of τᵀ."""
        return Factors(self.b.T, self.a.T, self.scale, oriented=True)


@dataclass(frozen=True)
class Adapter:
    """What an adapter does to the tensors of a model, by their names.

    To those of `factors` it adds s·B·A, to those of `added` (biases of lora_B) these; `whole` are
    tensors that stand in for the base's (modules_to_save, trained biases). `transposed` is PEFT's
    `fan_in_fan_out`; names that are `flat` have underscores for dots.
    Source: Hu et al. 2022, "LoRA: Low-rank adaptation of large language models", section 4.1.
    """

    label: str
    factors: Mapping[str, Factors]
    whole: Mapping[str, Tensor] = field(default_factory=dict)
    added: Mapping[str, Tensor] = field(default_factory=dict)
    transposed: bool = False
    flat: bool = False
    notes: tuple[str, ...] = ()

    def low_rank(self, name: str) -> tuple[Tensor, Tensor] | None:
        """A tensor's task vector as L (m, r) and R (r, n), float64, the scale in L: τ = L·R.

        τ of a convolution (m, c, k, k) is the matrix (m, c·k·k). None where τ is not known to be of
        low rank: a whole tensor stands in, or the adapter leaves it as it is.
        """
        if name not in self.factors or name in self.whole:
            return None
        return self.factors[name].left, self.factors[name].right


def fitted(adapter: Adapter, base: Weights) -> Adapter:
    """The adapter under the base's names, its factors as the base stores its tensors.

    Raises MergelibError, naming the tensor, if the base lacks it, has it with another shape or not
    as floating point numbers, or if it may lie either way.
    """
    wanted = {*adapter.factors, *adapter.whole, *adapter.added}
    found = matched(wanted, base.shapes, adapter.label, base.label, adapter.flat)
    ours = found.names
    for name in (*adapter.factors, *adapter.added):
        if ours[name] not in base.floating:
            raise MergelibError(
                f"{base.label}: {ours[name]!r}, which {adapter.label} changes, holds "
                f"{base.dtypes[ours[name]]}: give the base as it was before it was quantized"
            )
    for names in (adapter.factors, adapter.whole, adapter.added):
        if len({ours[name] for name in names}) < len(names):
            raise MergelibError(
                f"{adapter.label}: two of {', '.join(sorted(names))} are one tensor of "
                f"{base.label}: save the adapter with the base's own names"
            )
    for part in (adapter.whole, adapter.added):
        for name, tensor in part.items():
            if tuple(tensor.shape) != base.shapes[ours[name]]:
                raise _misfit(adapter, name, tuple(tensor.shape), base, ours[name])
    placed = _oriented(adapter, base, ours)
    return replace(
        adapter,
        factors={ours[name]: each for name, each in placed.items()},
        whole={ours[name]: tensor for name, tensor in adapter.whole.items()},
        added={ours[name]: tensor for name, tensor in adapter.added.items()},
        flat=False,
        notes=(*adapter.notes, *found.notes),
    )


def _oriented(adapter: Adapter, base: Weights, ours: Mapping[str, str]) -> dict[str, Factors]:
    """Factors whose products have the base's shapes; only a square one may lie either way."""
    found, turns, square = {}, set(), []
    for name, factors in adapter.factors.items():
        shape, there = factors.shape, base.shapes[ours[name]]
        if not factors.oriented and shape == there[::-1]:
            if shape == there:
                square.append(ours[name])
                turn = adapter.transposed
            else:
                turn = True
                turns.add(turn)
            found[name] = factors.turned() if turn else replace(factors, oriented=True)
        elif shape == there or _without_ones(shape) == _without_ones(there):
            if not factors.oriented:
                turns.add(False)
            a = factors.a.reshape(len(factors.a), *there[1:])
            found[name] = replace(factors, a=a, oriented=True)
        else:
            raise _misfit(adapter, name, shape, base, ours[name])
    if square and turns - {adapter.transposed}:
        raise MergelibError(
            f"{adapter.label}: {square[0]!r} is square, and whether its update is transposed is "
            f"unknown: the configuration says fan_in_fan_out = {adapter.transposed}, other shapes "
            "say otherwise; merge the adapter with PEFT and give the model"
        )
    return found


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without the 1 × 1 kernel, which some tools write and others do not."""
    return shape[:2] if math.prod(shape[2:]) == 1 else shape


def _misfit(
    adapter: Adapter, name: str, shape: tuple[int, ...], base: Weights, ours: str
) -> MergelibError:
    return MergelibError(
        f"{adapter.label}: {name!r} has shape {shape}, but {ours!r} of {base.label} has "
        f"{base.shapes[ours]}: give the base that the adapter was trained on"
    )


def applied(adapter: Adapter, base: Weights) -> Weights:
    """The base with the adapter's task vectors added, under the base's own names.

    Tensors that something is added to come in float64, within eps·|θ0 + τ| of θ0 + τ; others as
    they are stored. Raises MergelibError as `fitted` does.
    """
    placed = fitted(adapter, base)
    touched = placed.factors.keys() | placed.added.keys()
    dtypes = {name: tensor.dtype for name, tensor in placed.whole.items()}
    dtypes |= dict.fromkeys(touched, torch.float64)

    def get(name: str) -> Tensor:
        start = placed.whole[name] if name in placed.whole else base.get(name)
        if name not in touched:
            return start
        tensor = start.double()
        if name in placed.factors:
            factors = placed.factors[name]
            tensor = tensor + (factors.left @ factors.right).reshape(tensor.shape).to(tensor.device)
        if name in placed.added:
            tensor = tensor + placed.added[name].to(tensor.device)
        return tensor

    def low_rank(name: str) -> tuple[Tensor, Tensor] | None:
        if name in placed.whole or name in placed.added:
            return None
        if name in placed.factors:
            return placed.low_rank(name)
        if len(base.shapes[name]) < 2:
            return None
        rows, columns = base.shapes[name][0], math.prod(base.shapes[name][1:])
        return torch.zeros(rows, 0).double(), torch.zeros(0, columns).double()

    label = f"{placed.label} on {base.label}"
    return Weights(
        label,
        base.shapes,
        {**base.dtypes, **dtypes},
        get,
        (*base.notes, *placed.notes),
        low_rank=low_rank,
    )
