"""Rules of fine-tuning that may make models merge better: one function each, of three kinds.

    objective   f(step) -> the scalar that a step minimizes in place of the loss L(θ)
    weights     f(base, strength, generator) -> (tensors to train, what makes θ of them)
    average     f(steps, strength) -> how many of the last steps' weights are averaged

θ are the encoder's weights, θ0 the pretrained ones, τ = θ − θ0. A strength of 0 is plain
fine-tuning, the control of every rule.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mergelib.core.errors import MergelibError
from mergelib.core.registry import Registry

KINDS = ("objective", "weights", "average")
Tensors = Mapping[str, Tensor]
Trained = tuple[dict[str, Tensor], Callable[[Tensors], Tensors]]


@dataclass(frozen=True)
class Step:
    """One training step as an objective sees it.

    `features(weights)` of the batch under any weights; `loss_of(features)`, mean cross-entropy;
    `weights` θ, with gradients; `base` θ0, without; `generator` (CPU) of the rule's own draws.
    """

    features: Callable[[Tensors], Tensor]
    loss_of: Callable[[Tensor], Tensor]
    weights: Tensors
    base: Tensors
    strength: float
    generator: torch.Generator

    def loss(self, weights: Tensors | None = None) -> Tensor:
        """L at θ, or at other weights of the same names."""
        return self.loss_of(self.features(self.weights if weights is None else weights))

    def task_vector(self) -> dict[str, Tensor]:
        """τ = θ − θ0, with gradients."""
        return {name: value - self.base[name] for name, value in self.weights.items()}

    def gradients(self, loss: Tensor, create_graph: bool = False) -> dict[str, Tensor]:
        """∇θ of a loss by name; weights that it does not use, or that are frozen, are left out.

        Raises MergelibError if it depends on none of them.
        """
        trained = {name: value for name, value in self.weights.items() if value.requires_grad}
        if loss.requires_grad and trained:
            found = torch.autograd.grad(
                loss, list(trained.values()), create_graph=create_graph, allow_unused=True
            )
            if used := {n: g for n, g in zip(trained, found, strict=True) if g is not None}:
                return used
        raise MergelibError(
            "the loss does not depend on any of the weights: compute it from them, with gradients"
        )


@dataclass(frozen=True)
class Rule:
    """One rule; `strength` is its default, `means` says of what.

    `double_backward`: its forward pass needs that context.
    """

    name: str
    kind: str
    strength: float
    means: str
    double_backward: bool
    reference: str
    function: Callable[..., Any]


RULES: Registry[Rule] = Registry("fine-tuning rule", group="mergelib.rules")
PLAIN = Rule("", "objective", 0.0, "", False, "", Step.loss)


def rule(
    name: str,
    *,
    kind: str = "objective",
    strength: float = 1.0,
    means: str = "λ",
    reference: str = "",
    double_backward: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as a rule; its kind says what it takes and gives (see the module).

    `double_backward` says that it differentiates a gradient, or forwards. Raises MergelibError for
    another kind, and if another module has registered the name.
    """
    if kind not in KINDS:
        raise MergelibError(f"rule {name!r}: kind must be one of {KINDS}, not {kind!r}")

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        RULES.add(Rule(name, kind, strength, means, double_backward, reference, function))
        return function

    return register


@contextmanager
def double_backward() -> Iterator[None]:
    """Run attention by its plain formula, which can be differentiated twice, and forwards.

    The fused kernels (on the CPU too) cannot: without this around the forward pass a rule on the
    gradient fails with "derivative for …_backward is not implemented".
    """
    with sdpa_kernel(SDPBackend.MATH):
        yield


@rule(
    "gradient_norm",
    strength=0.001,
    double_backward=True,
    reference="Barrett & Dherin 2021, Implicit gradient regularization, arXiv 2009.11162 "
    "(explicit form)",
)
def gradient_norm(step: Step) -> Tensor:
    """L + λ ‖∇θ L‖² of the batch; about three times the cost of a step.

    The penalty's gradient is 2 H ∇θ L with H the Hessian, found by a second backward pass. Raises
    MergelibError if L depends on none of the weights.
    """
    loss = step.loss()
    squares = [g.square().sum() for g in step.gradients(loss, create_graph=True).values()]
    return loss + step.strength * torch.stack(squares).sum()


@rule(
    "l2_to_base",
    strength=0.01,
    reference="Li et al. 2018, Explicit inductive bias for transfer learning (L2-SP, twice its "
    "penalty), arXiv 1802.01483",
)
def l2_to_base(step: Step) -> Tensor:
    """L + λ ‖τ‖², the squared length of the task vector."""
    squares = [value.square().sum() for value in step.task_vector().values()]
    return step.loss() + step.strength * torch.stack(squares).sum()


@rule(
    "sharpness_aware",
    strength=0.05,
    means="radius ρ",
    reference="Foret et al. 2021, Sharpness-aware minimization, arXiv 2010.01412 (algorithm 1)",
)
def sharpness_aware(step: Step) -> Tensor:
    """L(θ + e) with e = ρ ∇θ L / ‖∇θ L‖ held constant: the loss uphill of θ; two steps' cost.

    Raises MergelibError if L depends on none of the weights.
    """
    found = step.gradients(step.loss())
    norm = torch.stack([g.square().sum() for g in found.values()]).sum().sqrt()
    scale = step.strength / norm.clamp_min(torch.finfo(norm.dtype).tiny)
    uphill = {name: step.weights[name] + scale * g for name, g in found.items()}
    return step.loss({**step.weights, **uphill})


@rule(
    "coefficient_sampling",
    strength=0.7,
    means="width of the range of α",
    reference="ours; the loss at the coefficients of Ilharco et al. 2022, Patching open-vocabulary "
    "models by interpolating weights, arXiv 2208.05592",
)
def coefficient_sampling(step: Step) -> Tensor:
    """L(θ0 + α τ) with α ~ U(1 − strength, 1) in each step: the loss where a merge puts τ."""
    alpha = 1 - step.strength * float(torch.rand((), generator=step.generator))
    return step.loss({n: step.base[n] + alpha * t for n, t in step.task_vector().items()})


def partner(vector: Tensors, generator: torch.Generator) -> dict[str, Tensor]:
    """A task vector δ of random directions with the norm and the singular values of `vector`.

    δ = P τ Q for each matrix, with P and Q permutations of random signs, which are orthogonal; a
    vector is P τ, and a tensor of more axes a matrix of its first axis by the others. No gradient.
    """
    made = {}
    for name, tensor in vector.items():
        rows = tensor.shape[0] if tensor.ndim else 1
        flat = tensor.detach().reshape(rows, tensor.numel() // max(rows, 1))
        for axis, shape in ((0, (-1, 1)), (1, (1, -1))):
            size = flat.shape[axis]
            order = torch.randperm(size, generator=generator).to(flat.device)
            signs = 2 * torch.randint(2, (size,), generator=generator) - 1
            flat = flat.index_select(axis, order) * signs.view(shape).to(flat)
        made[name] = flat.reshape(tensor.shape)
    return made


@rule(
    "interference",
    strength=0.3,
    reference="ours, of the weight interference of Ortiz-Jimenez et al. 2023, arXiv 2305.12827",
)
def interference(step: Step) -> Tensor:
    """L(θ) + λ (L(θ + δ) − L(θ)): what a random `partner` δ adds; two steps' cost."""
    alone, delta = step.loss(), partner(step.task_vector(), step.generator)
    beside = step.loss({name: value + delta[name] for name, value in step.weights.items()})
    return alone + step.strength * (beside - alone)


@rule(
    "coefficient_and_partner",
    strength=0.7,
    means="width of the range of α",
    reference="ours: coefficient_sampling with the partner of interference",
)
def coefficient_and_partner(step: Step) -> Tensor:
    """L(θ0 + α (τ + δ)), α ~ U(1 − strength, 1): a merge with a random `partner` δ."""
    alpha = 1 - step.strength * float(torch.rand((), generator=step.generator))
    own = step.task_vector()
    delta = partner(own, step.generator)
    return step.loss({n: step.base[n] + alpha * (own[n] + delta[n]) for n in own})


@rule(
    "linearized",
    means="1: on",
    double_backward=True,
    reference="Ortiz-Jimenez et al. 2023, Task arithmetic in the tangent space, arXiv 2305.12827 "
    "(equation 4)",
)
def linearized(step: Step) -> Tensor:
    """L of f(x; θ0) + ∇θ f(x; θ0) τ, features linearized at θ0; about three steps' cost."""
    found = torch.func.jvp(step.features, (dict(step.base),), (step.task_vector(),))
    return step.loss_of(found[0] + found[1])


@rule(
    "lora",
    kind="weights",
    strength=16,
    means="rank",
    reference="Hu et al. 2022, LoRA, arXiv 2106.09685 (section 4.1, α / r = 2)",
)
def lora(base: Tensors, strength: float, generator: torch.Generator) -> Trained:
    """θ = θ0 + 2 B A for every matrix of more than r rows and columns; the rest stays θ0.

    B (rows, r) starts at 0, A (r, columns) at N(0, 1 / columns).
    """
    rank, trained = int(strength), {}
    for name, weight in base.items():
        if weight.ndim == 2 and min(weight.shape) > rank:
            rows, columns = weight.shape
            start = torch.randn(rank, columns, generator=generator) / columns**0.5
            trained[f"{name}/A"] = start.to(weight).requires_grad_()
            trained[f"{name}/B"] = weight.new_zeros(rows, rank).requires_grad_()

    def weights(factors: Tensors) -> Tensors:
        added = {n: 2 * factors[f"{n}/B"] @ factors[f"{n}/A"] for n in base if f"{n}/A" in factors}
        return {name: w + added[name] if name in added else w for name, w in base.items()}

    return trained, weights


@rule(
    "trajectory_average",
    kind="average",
    strength=0.5,
    means="share of the steps, the last ones",
    reference="Izmailov et al. 2018, Averaging weights leads to wider optima, arXiv 1803.05407 "
    "(under the recipe's own decay)",
)
def trajectory_average(steps: int, strength: float) -> int:
    """θ is the mean of θ after each of the last strength · steps steps."""
    return round(strength * steps)
