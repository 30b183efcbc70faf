"""Penalties against finite differences, closed forms, and bad input."""

import open_clip
import pytest
import torch
from torch.nn import functional

from mergelib.core.errors import MergelibError
from mergelib.models.regularizers import PENALTIES, double_backward, gradient_norm, l2_to_base

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def tower():
    """A tiny CLIP visual tower in float64, a frozen head, and the base it has moved away from."""
    torch.manual_seed(0)
    visual = open_clip.CLIP(
        embed_dim=16,
        vision_cfg={"image_size": 16, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
        text_cfg={"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1},
    ).visual.double()
    base = {k: p.detach() + 0.02 * torch.randn_like(p) for k, p in visual.named_parameters()}
    images = torch.randn(6, 3, 16, 16, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    head = 10 * functional.normalize(torch.randn(4, 16, dtype=torch.float64), dim=1)
    return visual, base, images, labels, head


def loss_of(tower, parameters=None):
    visual, _, images, labels, head = tower
    with double_backward():
        if parameters is None:
            features = visual(images)
        else:
            features = torch.func.functional_call(visual, parameters, (images,))
        return functional.cross_entropy(functional.normalize(features, dim=1) @ head.T, labels)


def penalty_at(name, tower, parameters):
    """The penalty's value at given parameters, without its second derivative."""
    parameters = {k: p.detach().requires_grad_() for k, p in parameters.items()}
    if name == "l2_to_base":
        return sum(((p - tower[1][k]) ** 2).sum().item() for k, p in parameters.items())
    loss_of(tower, parameters).backward()
    return sum((p.grad**2).sum().item() for p in parameters.values())


@pytest.mark.parametrize("name", list(PENALTIES))
def test_value_and_gradient_against_finite_differences(tower, name):
    parameters = dict(tower[0].named_parameters())
    penalty = PENALTIES[name].function(loss_of(tower), parameters, tower[1])
    assert penalty.shape == ()
    assert penalty.item() == pytest.approx(penalty_at(name, tower, parameters), rel=1e-10)
    gradients = torch.autograd.grad(penalty, list(parameters.values()))
    gradients = dict(zip(parameters, gradients, strict=True))
    assert all(torch.isfinite(g).all() for g in gradients.values())
    generator = torch.Generator().manual_seed(1)
    for key in [*parameters, None]:  # along a random direction in each tensor, then in all of them
        direction = {
            k: torch.randn(p.shape, generator=generator, dtype=torch.float64) * (key in (k, None))
            for k, p in parameters.items()
        }
        step = 1e-5
        ahead, back = (
            penalty_at(name, tower, {k: p + s * direction[k] for k, p in parameters.items()})
            for s in (step, -step)
        )
        slope = sum((gradients[k] * direction[k]).sum().item() for k in parameters)
        assert slope == pytest.approx((ahead - back) / (2 * step), rel=1e-5, abs=1e-6), key


def test_gradient_norm_of_least_squares_is_the_closed_form():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    b = torch.randn(7, generator=generator, dtype=torch.float64)
    x = torch.randn(4, generator=generator, dtype=torch.float64, requires_grad=True)
    penalty = gradient_norm(0.5 * (a @ x - b).square().sum(), {"x": x}, {})
    (gradient,) = torch.autograd.grad(penalty, x)
    with torch.no_grad():
        first = a.T @ (a @ x - b)
        torch.testing.assert_close(penalty, first @ first)
        torch.testing.assert_close(gradient, 2 * a.T @ a @ first)


def test_gradient_norm_adds_a_gradient_that_lowers_it(tower):
    # A penalty on stored gradients is constant in the parameters and trains nothing; this one not.
    parameters = dict(tower[0].named_parameters())
    loss = loss_of(tower)
    plain = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True)
    total = loss + 0.1 * gradient_norm(loss, parameters, {})
    both = torch.autograd.grad(total, list(parameters.values()))
    added = {k: t - p for k, t, p in zip(parameters, both, plain, strict=True)}
    size = sum(g.square().sum() for g in added.values()).sqrt()
    assert size > 1e-3
    moved = {k: p - 1e-4 * added[k] / size for k, p in parameters.items()}
    before = penalty_at("gradient_norm", tower, parameters)
    assert penalty_at("gradient_norm", tower, moved) < before


def test_training_steps_with_each_penalty(tower):
    visual, base, *_ = tower
    for row in PENALTIES.rows():
        parameters = {k: p.detach().clone().requires_grad_() for k, p in base.items()}
        optimizer = torch.optim.AdamW(parameters.values(), lr=1e-3)
        losses = []
        for _ in range(3):
            loss = loss_of(tower, parameters)
            penalty = row.function(loss, parameters, base)
            optimizer.zero_grad()
            (loss + row.defaults["strength"] * penalty).backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0], row.name


def test_unused_and_frozen_parameters_count_as_zero():
    x, frozen = torch.ones(3, requires_grad=True), torch.ones(2)
    parameters = {"x": x, "unused": torch.ones(2, requires_grad=True), "frozen": frozen}
    penalty = gradient_norm((x**2 * frozen.sum()).sum(), parameters, {})
    assert penalty.item() == pytest.approx(3 * 4.0**2)


def test_l2_to_base_is_zero_at_the_base(tower):
    _, base, *_ = tower
    assert l2_to_base(torch.tensor(0.0), base, base) == 0


def test_bad_input(tower):
    _, base, *_ = tower
    x = torch.ones(3, requires_grad=True)
    with pytest.raises(MergelibError, match="does not depend"):
        gradient_norm(torch.tensor(1.0), {"x": x}, {})
    with pytest.raises(MergelibError, match="does not depend"):
        gradient_norm((x**2).sum(), {"y": torch.ones(2, requires_grad=True)}, {})
    with pytest.raises(MergelibError, match="no tensor 'x'"):
        l2_to_base(x.sum(), {"x": x}, {})
    with pytest.raises(MergelibError, match=r"'x' has shape \(3,\) but \(4,\)"):
        l2_to_base(x.sum(), {"x": x}, {"x": torch.ones(4)})
    with pytest.raises(MergelibError, match="no parameters"):
        l2_to_base(x.sum(), {}, {})
    with pytest.raises(MergelibError, match="did you mean 'gradient_norm'"):
        PENALTIES["gradientnorm"]
    assert list(PENALTIES.table()["name"]) == ["gradient_norm", "l2_to_base"]
