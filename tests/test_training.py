"""A whole training: optimizers by hand, parts of a batch, crops, blocks twice, kills, early end."""

import multiprocessing
import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from torchvision.transforms.functional import InterpolationMode, resized_crop

from mergelib.core.errors import MergelibError
from mergelib.models import progress
from mergelib.models.backbones import load
from mergelib.models.crops import cropped
from mergelib.models.finetune import Recipe, finetune, train
from mergelib.models.heads import logits, zero_shot_head
from mergelib.models.recipe import learning_rate
from mergelib.tasks import build

pytestmark = pytest.mark.numeric

RECIPE = Recipe(steps=6, batch=8, learning_rate=1e-3)
EVERYTHING = replace(RECIPE, augment="crop", warmup=2, accumulate=3, save_every=1)


@pytest.fixture(scope="module")
def problem():
    backbone = load()
    task = build("digits", {"train": 24, "calibration": 10, "test": 2})
    head = zero_shot_head(backbone, task.class_names, task.templates)
    parts = [
        (backbone.normalize(part.images), part.labels) for part in (task.train, task.calibration)
    ]
    return backbone.model.visual, parts[0], head, parts[1]


def trained(problem, recipe, kept=None):
    visual, examples, head, validation = problem
    return train(visual, examples, head, recipe, False, validation, kept)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def apart(one, other):
    return max(float((one[n] - other[n]).abs().max()) for n in one)


def test_two_steps_of_sgd_by_hand(problem):
    visual, (images, labels), head, _ = problem
    recipe = replace(RECIPE, optimizer="sgd", steps=2, batch=24, learning_rate=0.01, clip=1e9)
    found = trained(problem, recipe)[0]
    weights = {n: p.detach().clone() for n, p in visual.named_parameters()}
    velocity = {n: torch.zeros_like(w) for n, w in weights.items()}
    order = torch.Generator().manual_seed(recipe.seed)
    for step in range(2):
        pick = torch.randperm(24, generator=order)
        held = {n: w.clone().requires_grad_() for n, w in weights.items()}
        features = torch.func.functional_call(visual, held, (images[pick],))
        loss = cross_entropy(logits(features, head), labels[pick])
        gradients = torch.autograd.grad(loss, list(held.values()))
        for (name, w), g in zip(list(weights.items()), gradients, strict=True):
            velocity[name] = recipe.momentum * velocity[name] + g + recipe.weight_decay * w
            weights[name] = w - learning_rate(step, recipe) * velocity[name]
    for name, value in weights.items():
        moved = float((value - visual.get_parameter(name)).detach().abs().max())
        assert float((found[name] - value).abs().max()) <= 1e-6 + 1e-3 * moved


def test_a_constant_rate():
    recipe = replace(RECIPE, schedule="constant", warmup=2)
    rates = [learning_rate(step, recipe) for step in range(4)]
    assert np.allclose(rates, [0.5e-3, 1e-3, 1e-3, 1e-3])


def test_a_batch_in_parts_has_the_batch_s_gradient(problem):
    # plain descent: AdamW's first steps follow the signs of rounding errors
    recipe = replace(RECIPE, optimizer="sgd", momentum=0.0, learning_rate=0.01, steps=2)
    whole, parts = (trained(problem, replace(recipe, accumulate=n)) for n in (1, 3))
    start = problem[0].state_dict()
    assert apart(whole[0], parts[0]) < 1e-3 * apart(whole[0], start)
    assert np.allclose([r[2] for r in whole[1]], [r[2] for r in parts[1]], rtol=1e-4)
    more = trained(problem, replace(recipe, batch=100, accumulate=50))  # than there are images
    assert np.isfinite(more[1][-1][2])


@pytest.mark.parametrize("rule", ["", "lora", "coefficient_sampling", "interference"])
def test_blocks_computed_twice_change_no_bit(problem, rule):
    recipe = replace(RECIPE, steps=3, rule=rule)
    once = trained(problem, recipe)[0]
    twice = trained(problem, replace(recipe, checkpointing=True))[0]
    assert same(once, twice)
    assert not same(once, dict(problem[0].state_dict()))


def test_crops_are_torchvision_s_and_follow_the_seed(problem):
    images = problem[1][0][:4]
    made, again, other = cropped(images, 7), cropped(images, 7), cropped(images, 8)
    assert made.shape == images.shape and torch.equal(made, again)
    assert not torch.equal(made, other) and not torch.equal(made, images)
    before = torch.random.get_rng_state()
    cropped(images, 9)
    assert torch.equal(torch.random.get_rng_state(), before)
    height, width = images.shape[-2:]
    boxes = [  # all crops that a side of at least 0.8 allows: one of them is the first image's
        resized_crop(images[0], t, le, h, w, [height, width], InterpolationMode.BICUBIC)
        for h in range(26, height + 1)
        for w in range(26, width + 1)
        for t in range(height - h + 1)
        for le in range(width - w + 1)
    ]
    assert min(float((box - made[0]).abs().max()) for box in boxes) < 1e-5


def test_the_log_tells_rates_and_validation(problem):
    visual, (images, labels), head, validation = problem
    state, log = trained(problem, replace(RECIPE, validate_every=2))
    assert [row[0] for row in log] == [1, 2, 3, 4, 5, 6] and len(log[0]) == len(progress.LOG)
    assert [row[1] for row in log] == [learning_rate(step, RECIPE) for step in range(6)]
    assert [bool(np.isnan(row[3])) for row in log] == [True, False] * 3
    with torch.no_grad():
        features = torch.func.functional_call(visual, state, (validation[0],))
    scores = logits(features, head)
    assert log[-1][3] == pytest.approx(float(cross_entropy(scores, validation[1])), rel=1e-4)
    assert log[-1][4] == pytest.approx(float((scores.argmax(1) == validation[1]).float().mean()))
    assert same(state, finetune(visual, images, labels, head, RECIPE))  # looking changes nothing


def test_training_ends_early_where_validation_gets_no_better(problem):
    worse = replace(RECIPE, steps=40, validate_every=1, patience=2)
    images, labels = problem[3]
    wrong = (images, (labels + 1) % 10)  # the better the model, the higher their loss
    log = trained((*problem[:3], wrong), worse)[1]
    losses = [row[3] for row in log]
    assert 3 <= len(log) < 40 and min(losses) == losses[-3] and min(losses[-2:]) >= losses[-3]
    with pytest.raises(MergelibError, match=r"leave out finetune\.patience"):
        trained(problem, replace(worse, rule="trajectory_average"))


def test_what_checkpointing_does_not_go_with(problem):
    with pytest.raises(MergelibError, match=r"differentiates twice.*leave out"):
        trained(problem, replace(RECIPE, rule="gradient_norm", checkpointing=True))
    visual = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 128))
    with pytest.raises(MergelibError, match="Sequential has no blocks"):
        trained((visual, *problem[1:]), replace(RECIPE, checkpointing=True))


def test_a_state_of_another_training_is_refused(problem, tmp_path):
    kept = tmp_path / "kept.safetensors"
    trained(problem, replace(RECIPE, steps=1, save_every=1), kept)
    with pytest.raises(MergelibError, match=r"kept\.safetensors is of another training"):
        trained(problem, replace(RECIPE, rule="lora"), kept)


KILLED = {
    "adamw": EVERYTHING,
    "sgd": replace(EVERYTHING, optimizer="sgd", learning_rate=0.01),
    "a rule that draws": replace(EVERYTHING, rule="interference", accumulate=1),
    "an average": replace(EVERYTHING, rule="trajectory_average", strength=0.8),
    "lora, validated": replace(EVERYTHING, rule="lora", validate_every=2, patience=9),
}


@pytest.mark.parametrize("name", KILLED)
def test_killed_and_continued_it_gives_the_same_bits(problem, tmp_path, name):
    recipe, kept = KILLED[name], tmp_path / "kept.safetensors"
    expected, log = trained(problem, recipe)
    seen = set()
    for _ in range(2):
        child = multiprocessing.get_context("fork").Process(
            target=trained, args=(problem, recipe, kept)
        )
        child.start()
        while child.is_alive() and (not kept.is_file() or kept.stat().st_ino in seen):
            time.sleep(0.001)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        seen.add(kept.stat().st_ino)
    assert len(seen) == 2  # killed after two different steps
    found, again = trained(problem, recipe, kept)
    assert same(found, expected)
    assert np.array_equal(np.array(log), np.array(again), equal_nan=True)
