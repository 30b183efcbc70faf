"""Penalties added to the fine-tuning loss: L + strength · R(θ).

Each is a pure function `f(loss, parameters, base) -> scalar tensor` with a real gradient with
respect to the parameters; a row of `PENALTIES` each. In a training step:

    with double_backward():              # around the forward pass, where the row asks for it
        loss = cross_entropy(...)
    row = PENALTIES["gradient_norm"]
    (loss + strength * row.function(loss, parameters, base)).backward()

`parameters` are the named trainable tensors that the loss was computed from, `base` the pretrained
values of the same names.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mergelib.core.errors import MergelibError
from mergelib.core.registry import Registry

Function = Callable[[Tensor, Mapping[str, Tensor], Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Penalty:
    """One penalty; `double_backward` says that its forward pass needs that context."""

    name: str
    defaults: Mapping[str, float]
    double_backward: bool
    reference: str
    function: Function


PENALTIES: Registry[Penalty] = Registry("regularizer", group="mergelib.penalties")


def penalty(
    name: str, *, strength: float = 1.0, reference: str = "", double_backward: bool = False
) -> Callable[[Function], Function]:
    """Register a function f(loss, parameters, base) -> scalar with its default strength.

    `double_backward` says that it differentiates a gradient. Raises MergelibError if another module
    has registered the name.
    """

    def register(function: Function) -> Function:
        row = Penalty(name, {"strength": strength}, double_backward, reference, function)
        PENALTIES.add(row)
        return function

    return register


@contextmanager
def double_backward() -> Iterator[None]:
    """Run attention by its plain formula, whose backward pass can be differentiated again.

    The fused kernels (on the CPU too) have no second derivative: without this around the forward
    pass, a penalty on the gradient fails with "derivative for …_backward is not implemented".
    """
    with sdpa_kernel(SDPBackend.MATH):
        yield


@penalty(
    "gradient_norm",
    strength=0.1,
    double_backward=True,
    reference="Barrett & Dherin 2021, Implicit gradient regularization, arXiv 2009.11162 "
    "(explicit form)",
)
def gradient_norm(
    loss: Tensor, parameters: Mapping[str, Tensor], base: Mapping[str, Tensor]
) -> Tensor:
    """R = ‖∇θ L‖², the squared norm over all trainable parameters of the batch loss.

    Its gradient is 2 H ∇θ L with H the Hessian, found by a second backward pass (two to three
    times the cost of a step). Parameters that the loss does not use count as zero. `base` is not
    used. Raises MergelibError if the loss depends on none of the parameters.
    """
    trained = [p for p in parameters.values() if p.requires_grad]
    gradients: list[Tensor] = []
    if loss.requires_grad and trained:
        found = torch.autograd.grad(loss, trained, create_graph=True, allow_unused=True)
        gradients = [g for g in found if g is not None]
    if not gradients:
        raise MergelibError(
            "gradient_norm: the loss does not depend on any of the parameters: compute it from "
            "them with gradients on"
        )
    return torch.stack([g.square().sum() for g in gradients]).sum()


@penalty(
    "l2_to_base",
    strength=0.01,
    reference="Li et al. 2018, Explicit inductive bias for transfer learning (L2-SP, twice its "
    "penalty), arXiv 1802.01483",
)
def l2_to_base(
    loss: Tensor, parameters: Mapping[str, Tensor], base: Mapping[str, Tensor]
) -> Tensor:
    """R = ‖θ − θ0‖², the squared length of the task vector; `loss` is not used.

    Raises MergelibError, naming the tensor, if `base` lacks a parameter or has it in another shape.
    """
    if not parameters:
        raise MergelibError("l2_to_base: there are no parameters: give the trainable tensors")
    terms = []
    for name, parameter in parameters.items():
        if name not in base:
            raise MergelibError(f"l2_to_base: base has no tensor {name!r}: give the start's")
        if base[name].shape != parameter.shape:
            raise MergelibError(
                f"l2_to_base: tensor {name!r} has shape {tuple(parameter.shape)} but "
                f"{tuple(base[name].shape)} in base: give the weights that training started from"
            )
        terms.append((parameter - base[name].detach().to(parameter)).square().sum())
    return torch.stack(terms).sum()
