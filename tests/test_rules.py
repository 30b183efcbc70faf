"""Rules of fine-tuning against finite differences, closed forms, literal steps, and bad input."""

from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from bounds import bound
from torch.nn import functional

from mergelib.core.errors import MergelibError
from mergelib.models import finetune as training
from mergelib.models.finetune import Recipe, finetune
from mergelib.models.rules import (
    RULES,
    Step,
    coefficient_and_partner,
    coefficient_sampling,
    double_backward,
    gradient_norm,
    interference,
    l2_to_base,
    linearized,
    lora,
    partner,
    rule,
    sharpness_aware,
    trajectory_average,
)

pytestmark = pytest.mark.numeric

NAMES = [
    "gradient_norm",
    "l2_to_base",
    "sharpness_aware",
    "coefficient_sampling",
    "interference",
    "coefficient_and_partner",
    "linearized",
    "lora",
    "trajectory_average",
]


def tiny(layers):
    """The visual tower of a tiny CLIP, with weights of torch's seed."""
    torch.manual_seed(0)
    return open_clip.CLIP(
        embed_dim=16,
        vision_cfg={
            "image_size": 16, "patch_size": 8, "width": 32, "layers": layers, "head_width": 16
        },
        text_cfg={"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1},
    ).visual  # fmt: skip


@pytest.fixture(scope="module")
def tower():
    """A tiny CLIP visual tower in float64, a frozen head, and the base it has moved away from."""
    visual = tiny(2).double()
    base = {k: p.detach() + 0.02 * torch.randn_like(p) for k, p in visual.named_parameters()}
    images = torch.randn(6, 3, 16, 16, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    head = 10 * functional.normalize(torch.randn(4, 16, dtype=torch.float64), dim=1)
    return visual, base, images, labels, head


def features_of(tower, weights):
    with double_backward():
        return torch.func.functional_call(tower[0], dict(weights), (tower[2],))


def loss_of(tower, features):
    return functional.cross_entropy(functional.normalize(features, dim=1) @ tower[4].T, tower[3])


def step_of(tower, strength=1.0, weights=None, seed=0):
    weights = dict(tower[0].named_parameters()) if weights is None else weights
    weights = {k: w.detach().clone().requires_grad_() for k, w in weights.items()}
    return Step(
        lambda at: features_of(tower, at),
        lambda features: loss_of(tower, features),
        weights,
        tower[1],
        strength,
        torch.Generator().manual_seed(seed),
    )


def plain(tower, weights):
    """The loss at any weights, without a gradient."""
    with torch.no_grad():
        return loss_of(tower, features_of(tower, weights)).item()


def gradient_of(tower, weights):
    weights = {k: w.detach().clone().requires_grad_() for k, w in weights.items()}
    loss = loss_of(tower, features_of(tower, weights))
    found = torch.autograd.grad(loss, list(weights.values()))
    return dict(zip(weights, found, strict=True))


def moved(weights, direction, by):
    return {k: w.detach() + by * direction[k] for k, w in weights.items()}


def tau_of(tower, weights):
    return {k: w.detach() - tower[1][k] for k, w in weights.items()}


def held_alpha(strength, seed=0):
    """The coefficient that a step of this seed draws first."""
    return 1 - strength * float(torch.rand((), generator=torch.Generator().manual_seed(seed)))


def drawn_partner(tau, seed=0, skipped=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(skipped):
        torch.rand((), generator=generator)
    return partner(tau, generator)


def literal(name, tower, weights, strength, about):
    """A rule's value at weights, by the plain loss; what it holds constant is that `about`."""
    if name == "gradient_norm":
        squares = [(g**2).sum().item() for g in gradient_of(tower, weights).values()]
        return plain(tower, weights) + strength * sum(squares)
    tau = tau_of(tower, weights)
    if name == "l2_to_base":
        return plain(tower, weights) + strength * sum((t**2).sum().item() for t in tau.values())
    if name == "sharpness_aware":
        uphill = gradient_of(tower, about)
        norm = sum((g**2).sum().item() for g in uphill.values()) ** 0.5
        return plain(tower, moved(weights, uphill, strength / norm))
    if name == "coefficient_sampling":
        return plain(tower, moved(tower[1], tau, held_alpha(strength)))
    if name == "interference":
        beside = plain(tower, moved(weights, drawn_partner(tau_of(tower, about)), 1))
        alone = plain(tower, weights)
        return alone + strength * (beside - alone)
    if name == "coefficient_and_partner":
        delta = drawn_partner(tau_of(tower, about), skipped=1)
        alpha = held_alpha(strength)
        return plain(tower, moved(tower[1], {k: t + delta[k] for k, t in tau.items()}, alpha))
    raise AssertionError(name)


@pytest.mark.parametrize("name", NAMES[:6])
def test_value_and_gradient_against_finite_differences(tower, name):
    strength = 0.1 if name == "sharpness_aware" else 0.4
    step = step_of(tower, strength)
    value = RULES[name].function(step)
    assert value.shape == ()
    expected = literal(name, tower, step.weights, strength, step.weights)
    assert value.item() == pytest.approx(expected, rel=1e-10)
    found = torch.autograd.grad(value, list(step.weights.values()), allow_unused=True)
    found = dict(zip(step.weights, found, strict=True))
    generator = torch.Generator().manual_seed(1)
    for key in [*step.weights, None]:  # along a random direction in each tensor, then in all
        direction = {
            k: torch.randn(w.shape, generator=generator, dtype=torch.float64) * (key in (k, None))
            for k, w in step.weights.items()
        }
        by = 1e-5
        ahead, back = (
            literal(name, tower, moved(step.weights, direction, s), strength, step.weights)
            for s in (by, -by)
        )
        slope = sum((found[k] * direction[k]).sum().item() for k in found if found[k] is not None)
        assert slope == pytest.approx((ahead - back) / (2 * by), rel=1e-5, abs=1e-6), key


def test_linearized_features_are_the_first_order_of_the_network(tower):
    step = step_of(tower)
    by = 1e-5
    ahead, back = (
        features_of(tower, moved(tower[1], tau_of(tower, step.weights), s)).detach()
        for s in (by, -by)
    )
    expected = features_of(tower, tower[1]) + (ahead - back) / (2 * by)
    seen = []
    kept = replace(step, loss_of=lambda features: seen.append(features) or step.loss_of(features))
    value = linearized(kept)
    torch.testing.assert_close(seen[0].detach(), expected, rtol=1e-6, atol=1e-6)
    # In the tangent space the features are linear in τ: half the vector, half the change.
    half = {k: tower[1][k] + t / 2 for k, t in tau_of(tower, step.weights).items()}
    seen.clear()
    linearized(replace(kept, weights=half))
    start = features_of(tower, tower[1])
    torch.testing.assert_close(
        (seen[0] - start) * 2,
        kept.features(tower[1]) * 0 + (expected - start),
        rtol=1e-6,
        atol=1e-6,
    )
    found = torch.autograd.grad(value, list(step.weights.values()), allow_unused=True)
    assert sum(float(g.square().sum()) for g in found if g is not None) > 0


def test_a_partner_has_the_norm_and_the_singular_values(tower):
    tau = tau_of(tower, dict(tower[0].named_parameters()))
    delta = drawn_partner(tau)
    assert list(delta) == list(tau)
    cosine = []
    for name, tensor in tau.items():
        one, other = (t.reshape(len(t), -1) for t in (tensor, delta[name]))
        sizes = [torch.linalg.svdvals(t) for t in (one, other)]
        size = float(sizes[0].max()) * bound(sizes[0].dtype, max(one.shape))
        np.testing.assert_allclose(*sizes, rtol=0, atol=size)
        # the very same entries, up to their signs
        assert torch.equal(one.abs().flatten().sort()[0], other.abs().flatten().sort()[0])
        if one.numel() > 500:
            cosine.append(float((one * other).sum() / one.square().sum()))
    assert len(cosine) > 3 and np.abs(cosine).max() < 0.3  # a random direction
    again = drawn_partner(tau, seed=1)
    assert any(not torch.equal(again[name], delta[name]) for name in tau)


def test_a_partner_of_odd_shapes():
    generator = torch.Generator().manual_seed(0)
    held = {"scalar": torch.tensor(2.0), "empty": torch.zeros(0, 3), "row": torch.ones(1, 4)}
    made = partner(held, generator)
    assert {name: t.shape for name, t in made.items()} == {n: t.shape for n, t in held.items()}
    assert made["scalar"].abs() == 2 and (made["row"].abs() == 1).all()


def test_gradient_norm_of_least_squares_is_the_closed_form():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    b = torch.randn(7, generator=generator, dtype=torch.float64)
    x = torch.randn(4, generator=generator, dtype=torch.float64, requires_grad=True)
    step = Step(lambda at: a @ at["x"] - b, lambda r: 0.5 * r.square().sum(), {"x": x}, {}, 1.0,
                generator)  # fmt: skip
    value = gradient_norm(step)
    (gradient,) = torch.autograd.grad(value, x)
    with torch.no_grad():
        r = a @ x - b
        first = a.T @ r
        torch.testing.assert_close(value, 0.5 * r @ r + first @ first)
        torch.testing.assert_close(gradient, first + 2 * a.T @ a @ first)


def test_gradient_norm_adds_a_gradient_that_lowers_it(tower):
    # A penalty on stored gradients is constant in the parameters and trains nothing; this one not.
    step = step_of(tower, 0.1)
    weights = list(step.weights.values())
    alone = torch.autograd.grad(step.loss(), weights)
    both = torch.autograd.grad(gradient_norm(step), weights)
    added = {k: t - p for k, t, p in zip(step.weights, both, alone, strict=True)}
    size = sum(g.square().sum() for g in added.values()).sqrt()
    assert size > 1e-3

    def norm(at):
        return sum((g**2).sum().item() for g in gradient_of(tower, at).values())

    assert norm(moved(step.weights, added, -1e-4 / size)) < norm(step.weights)


def test_coefficients_are_uniform_from_one_down():
    seen = []
    one = torch.ones(1)
    for seed in range(400):
        step = Step(lambda at: at["x"], lambda f: f.sum(), {"x": one}, {"x": torch.zeros(1)}, 0.6,
                    torch.Generator().manual_seed(seed))  # fmt: skip
        seen.append(float(coefficient_sampling(step)))  # the loss at α τ is α here
    assert 0.4 <= min(seen) < 0.45 and 0.95 < max(seen) <= 1
    # the mean of 400 from U(0.4, 1): sd 0.6 / sqrt(12 · 400), five of them
    assert np.mean(seen) == pytest.approx(0.7, abs=5 * 0.6 / np.sqrt(12 * 400))


def test_lora_starts_at_the_base_and_moves_in_few_directions(tower):
    base = tower[1]
    trained, weights = lora(base, 3, torch.Generator().manual_seed(0))
    start = weights(trained)
    assert list(start) == list(base) and all(torch.equal(start[n], base[n]) for n in base)
    adapted = {name.removesuffix("/B") for name in trained if name.endswith("/B")}
    assert adapted == {n for n, w in base.items() if w.ndim == 2 and min(w.shape) > 3}
    assert len(adapted) > 5
    for name, factor in trained.items():
        assert factor.is_leaf and factor.requires_grad
        trained[name] = factor.detach() + 0.1
    there = weights(trained)
    for name, weight in base.items():
        change = there[name] - weight
        if name in adapted:
            literal_change = 2 * trained[f"{name}/B"] @ trained[f"{name}/A"]
            torch.testing.assert_close(change, literal_change)
            assert torch.linalg.matrix_rank(change) <= 3
        else:
            assert torch.equal(change, torch.zeros_like(weight))


# ---- In fine-tuning -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def problem():
    visual = tiny(1)
    head = 10 * functional.normalize(torch.randn(4, 16), dim=1)
    return visual, torch.randn(16, 3, 16, 16), torch.arange(16) % 4, head


RECIPE = Recipe(steps=6, batch=8, learning_rate=1e-3)


def distance(one, other):
    return sum(float((one[n] - other[n]).double().square().sum()) for n in one) ** 0.5


@pytest.mark.parametrize("name", NAMES)
def test_each_rule_trains_and_strength_zero_is_the_control(problem, name):
    control = finetune(*problem, RECIPE)
    none = finetune(*problem, replace(RECIPE, rule=name, strength=0.0))
    assert all(torch.equal(none[n], control[n]) for n in control)
    acting = finetune(*problem, replace(RECIPE, rule=name))
    default = finetune(*problem, replace(RECIPE, rule=name, strength=RULES[name].strength))
    assert list(acting) == list(control)
    assert all(torch.equal(acting[n], default[n]) for n in control)  # and the seed fixes its draws
    start = {n: v.clone() for n, v in problem[0].state_dict().items()}
    moved_by = distance(control, start)
    assert 1e-4 * moved_by < distance(acting, control)
    assert 0.1 * moved_by < distance(acting, start) < 10 * moved_by
    with torch.no_grad():
        losses = [
            training._loss(
                problem[3], problem[2], training._features(problem[0], problem[1], False, at)
            )
            for at in (start, acting)
        ]
    assert losses[1] < losses[0]


def test_the_average_is_that_of_the_last_steps(problem):
    recipe = replace(RECIPE, rule="trajectory_average", strength=0.5)
    found = finetune(*problem, recipe)
    trail = []
    clip = torch.nn.utils.clip_grad_norm_

    def seen(parameters, *rest):  # before each step, so the first is the start
        parameters = list(parameters)
        trail.append([p.detach().double().clone() for p in parameters])
        return clip(parameters, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", seen)
        last = finetune(*problem, RECIPE)
    names = [name for name, _ in problem[0].named_parameters()]
    trail.append([last[name].double() for name in names])
    for k, name in enumerate(names):
        mean = torch.stack([each[k] for each in trail[-3:]]).mean(dim=0)
        np.testing.assert_allclose(
            found[name], mean, rtol=0, atol=float(mean.abs().max()) * bound(torch.float32, 1)
        )


def test_an_average_of_no_step_is_the_last_one(problem):
    control = finetune(*problem, RECIPE)
    found = finetune(*problem, replace(RECIPE, rule="trajectory_average", strength=0.01))
    assert trajectory_average(6, 0.01) == 0
    assert all(torch.equal(found[n], control[n]) for n in control)


def test_a_low_rank_model_is_a_low_rank_step_from_the_base(problem):
    found = finetune(*problem, replace(RECIPE, rule="lora", strength=2))
    for name, start in problem[0].named_parameters():
        change = (found[name] - start.detach()).double()
        if start.ndim == 2 and min(start.shape) > 2:
            sizes = torch.linalg.svdvals(change)
            # θ0 + 2 B A is rounded to float32: each entry by half a unit of the entry's size
            noise = float(start.detach().abs().max()) * bound(torch.float32, max(start.shape))
            assert sizes[0] > 100 * noise and (sizes[2:] <= noise).all(), name
        else:
            assert torch.equal(change, torch.zeros_like(change)), name


# ---- Bad input ----------------------------------------------------------------------------------


def test_unused_and_frozen_weights_count_as_zero():
    x, frozen = torch.ones(3, requires_grad=True), torch.ones(2)
    weights = {"x": x, "unused": torch.ones(2, requires_grad=True), "frozen": frozen}
    step = Step(lambda w: w["x"] ** 2 * w["frozen"].sum(), lambda f: f.sum(), weights, weights, 1.0,
                torch.Generator())  # fmt: skip
    assert gradient_norm(step).item() == pytest.approx(3 * 2 + 3 * 4.0**2)
    # uphill by 0.5 along (1, 1, 1): the loss 2 Σ x² at 1 + 0.5 / sqrt(3)
    uphill = sharpness_aware(replace(step, strength=0.5)).item()
    assert uphill == pytest.approx(2 * 3 * (1 + 0.5 / 3**0.5) ** 2)


def test_at_the_base_there_is_nothing_to_add(tower):
    step = step_of(tower, 1.0, tower[1])
    for function in (l2_to_base, coefficient_sampling, interference, coefficient_and_partner):
        assert function(step).item() == pytest.approx(step.loss().item(), rel=1e-12)


def test_bad_input(tower):
    x = torch.ones(3, requires_grad=True)
    away = Step(lambda w: torch.ones(3), lambda f: f.sum(), {"x": x}, {"x": x}, 1.0,
                torch.Generator())  # fmt: skip
    for function in (gradient_norm, sharpness_aware):
        with pytest.raises(MergelibError, match="does not depend"):
            function(away)
    with pytest.raises(MergelibError, match="did you mean 'gradient_norm'"):
        RULES["gradientnorm"]
    with pytest.raises(MergelibError, match="kind must be one of"):
        rule("own", kind="penalty")
    assert list(RULES.table()["name"]) == NAMES
