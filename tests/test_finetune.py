"""Fine-tuning: one step by hand, the order of the batches, the control of a study."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from mergelib.core.errors import MergelibError
from mergelib.models.backbones import load
from mergelib.models.finetune import Recipe, _batches, finetune
from mergelib.models.heads import logits, zero_shot_head
from mergelib.models.recipe import learning_rate
from mergelib.tasks import build

pytestmark = pytest.mark.numeric

RECIPE = Recipe(steps=3, batch=8, learning_rate=1e-3, weight_decay=0.1)


@pytest.fixture(scope="module")
def problem():
    backbone = load()
    task = build("digits", {"train": 24, "calibration": 2, "test": 2})
    head = zero_shot_head(backbone, task.class_names, task.templates)
    return (
        backbone.model.visual,
        backbone.normalize(task.train.images),
        task.train.labels,
        head,
    )


def test_no_steps_give_the_base(problem):
    tuned = finetune(*problem, replace(RECIPE, steps=0))
    for name, value in problem[0].state_dict().items():
        assert torch.equal(tuned[name], value)


def test_one_step_is_adamw_by_hand(problem):
    visual, images, labels, head = problem
    recipe = replace(RECIPE, steps=1, batch=24)
    tuned = finetune(*problem, recipe)
    loss = cross_entropy(logits(visual(images), head), labels)
    names = [name for name, _ in visual.named_parameters()]
    gradients = torch.autograd.grad(loss, list(visual.parameters()))
    norm = np.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients))
    clip = min(1.0, recipe.clip / (norm + 1e-6))
    for name, start, gradient in zip(names, visual.parameters(), gradients, strict=True):
        g = gradient.double().numpy() * clip
        # First step of Adam: both bias-corrected moments are g and g squared.
        step = g / (np.sqrt(g**2) + 1e-8)
        theta = start.detach().double().numpy()
        lr = recipe.learning_rate
        wanted = theta * (1 - lr * recipe.weight_decay) - lr * step
        sure = np.abs(g) > 1e-5  # below, the sign of a rounding error decides
        assert np.allclose(tuned[name].numpy()[sure], wanted[sure], atol=2e-6)


def test_it_learns_and_leaves_the_base_alone(problem):
    visual, images, labels, head = problem
    before = {name: value.clone() for name, value in visual.state_dict().items()}
    tuned = finetune(*problem, replace(RECIPE, steps=25, batch=24))
    loss = {}
    for name, state in (("base", before), ("tuned", tuned)):
        features = torch.func.functional_call(visual, state, (images,))
        loss[name] = cross_entropy(logits(features, head), labels).item()
    assert loss["tuned"] < 0.9 * loss["base"]
    for name, value in visual.state_dict().items():
        assert torch.equal(before[name], value)


def test_the_seed_alone_fixes_the_order():
    recipe = replace(RECIPE, steps=6)
    first, again = list(_batches(24, recipe)), list(_batches(24, recipe))
    other = list(_batches(24, replace(recipe, seed=1)))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    for epoch in (first[:3], first[3:]):  # each epoch holds each image once
        assert sorted(torch.cat(epoch).tolist()) == list(range(24))


def test_the_schedule_warms_up_and_decays():
    recipe = replace(RECIPE, steps=10, warmup=4)
    rates = [learning_rate(step, recipe) / recipe.learning_rate for step in range(10)]
    assert np.allclose(rates[:4], [0.25, 0.5, 0.75, 1.0])
    cosine = 0.5 * (1 + np.cos(np.pi * np.arange(6) / 6))
    assert np.allclose(rates[4:], cosine)


def test_the_same_call_gives_the_same_bits(problem):
    first, again = finetune(*problem, RECIPE), finetune(*problem, RECIPE)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_study_of_strength_zero_is_plain_fine_tuning(problem):
    plain = finetune(*problem, RECIPE)
    control = finetune(*problem, replace(RECIPE, rule="gradient_norm", strength=0.0))
    pushed = finetune(*problem, replace(RECIPE, rule="gradient_norm", strength=1.0))

    def apart(state):
        return sum(float(((state[n] - plain[n]) ** 2).sum()) for n in plain) ** 0.5

    assert apart(control) < 0.1 * apart(pushed)  # the attention kernel differs, no more
    assert apart(pushed) > 1e-3


def test_divergence_is_said(problem):
    with pytest.raises(MergelibError, match="lower the learning rate"):
        finetune(*problem, replace(RECIPE, steps=8, learning_rate=1e30))


def test_bfloat16_is_close(problem):
    visual, images, labels, head = problem
    exact = finetune(*problem, RECIPE)
    rough = finetune(*problem, RECIPE, bfloat16=True)
    moved = sum(float(((exact[n] - p.detach()) ** 2).sum()) for n, p in visual.named_parameters())
    apart = sum(float(((exact[n] - rough[n]) ** 2).sum()) for n in exact)
    assert 0 < apart < moved
