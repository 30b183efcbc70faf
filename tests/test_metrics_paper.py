"""What the published edition of the data-driven metrics does otherwise, against literal code."""

import itertools
import json
import random

import numpy as np
import pandas as pd
import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from published_pairs import published_gradients

from mergelib.core.errors import MergelibError
from mergelib.metrics.encoder import mean_activation, pool_gradients
from mergelib.metrics.published_gradients import calibration, gradients, head_pair, random_head

pytestmark = pytest.mark.numeric

COLUMNS = [
    f"{of}_gradient_{kind}"
    for of in ("encoder", "input")
    for kind in ("cosine_similarity", "l2_distance", "dot_product")
]


def make_visual(seed):
    """A vision tower: 2 blocks, width 16, embedding 8, images of 16 × 16."""
    torch.manual_seed(seed)
    vision = CLIPVisionCfg(layers=2, width=16, head_width=8, patch_size=8, image_size=16)
    text = CLIPTextCfg(context_length=4, vocab_size=9, width=8, heads=2, layers=1)
    return CLIP(8, vision, text).visual.double()


@pytest.fixture(scope="module")
def visual():
    return make_visual(0)


def draw(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 16, 16, generator=generator).double()


# --- Activations: batches, not images, have equal weight ----------------------------------------


def literal_last_block(visual, batch):
    """Last block's output in the published layout: (tokens, batch, width)."""
    seen = []
    hook = visual.transformer.resblocks[-1].register_forward_hook(
        lambda module, inputs, output: seen.append(output.detach().numpy())
    )
    with torch.no_grad():
        visual(batch)
    hook.remove()
    return seen[0].transpose(1, 0, 2)


def literal_paper_activation(visual, images):
    rows = []
    for start in range(0, len(images), 32):
        block = literal_last_block(visual, images[start : start + 32])
        rows.extend(block.mean(axis=1))  # the second axis holds images, taken for tokens
    return np.mean(rows, axis=0)


def test_paper_activation_averages_batches(visual):
    images = draw(40)  # 32 + 8
    found = mean_activation(visual, images, edition="paper")
    np.testing.assert_allclose(found, literal_paper_activation(visual, images), rtol=1e-9)
    # In other words, each of the last 8 images weighs four times as much as one of the first 32.
    single = np.stack([mean_activation(visual, image[None]) for image in images])
    weights = np.array([1.0] * 32 + [4.0] * 8)
    np.testing.assert_allclose(found, np.average(single, axis=0, weights=weights), rtol=1e-9)
    assert not np.allclose(found, mean_activation(visual, images), rtol=1e-3)


def test_editions_of_the_activation_agree_on_full_batches(visual):
    images = draw(64)
    np.testing.assert_allclose(
        mean_activation(visual, images, edition="paper"), mean_activation(visual, images), rtol=1e-9
    )
    with pytest.raises(MergelibError, match="unknown edition 'papre'"):
        mean_activation(visual, images, edition="papre")


# --- Calibration images ---------------------------------------------------------------------------


def test_calibration_is_the_global_stream_of_python(monkeypatch):
    sizes = [8041, 1880, 2700, 10, 26032]
    state = random.getstate()
    random.seed(42)
    expected = [sorted(random.sample(range(size), 10)) for size in sizes]
    random.setstate(state)
    assert calibration(sizes) == expected
    assert calibration(sizes) == expected  # nothing global is consumed


def test_a_pairs_images_depend_on_its_order():
    first = calibration([500, 800])
    assert first[0] == calibration([500, 300])[0]  # the first task's depend on its size alone
    assert first[1] != calibration([800])[0]
    assert first[1] != calibration([600, 800])[1]  # the second's on the first one's size as well
    assert calibration([500, 800, 300])[:2] == first
    with pytest.raises(MergelibError, match="9 images, fewer than 10"):
        calibration([500, 9])


# --- Gradients of one model -----------------------------------------------------------------------


def literal_batches(visual, images, labels, head):
    """Gradients of the mean cross-entropy of each batch of 8, by plain backward passes."""
    found = []
    for start in range(0, len(images), 8):
        x = images[start : start + 8].clone().requires_grad_()
        truth = labels[start : start + 8]
        visual.zero_grad()
        features = visual(x)
        features = features / features.norm(dim=1, keepdim=True)
        scores = features @ head.double().T  # no bias, no temperature
        chosen = scores[torch.arange(len(truth)), truth]
        loss = (torch.logsumexp(scores, dim=1) - chosen).mean()
        loss.backward()
        parameters = [p.grad.clone() for p in visual.parameters()]
        visual.zero_grad(set_to_none=True)
        found.append((parameters, x.grad))
    return found


def test_gradients_are_normalized_twice(visual):
    images, labels = draw(10), torch.arange(10) % 4
    head = random_head(4, 8, torch.Generator().manual_seed(0))
    (first, x1), (second, x2) = literal_batches(visual, images, labels, head)
    encoder = gradients(visual, images, labels, head, "encoder")
    for found, a, b in zip(encoder, first, second, strict=True):
        np.testing.assert_allclose(found, (a + b) / 10, rtol=1e-9, atol=1e-15)
    (pixels,) = gradients(visual, images, labels, head, "input")
    np.testing.assert_allclose(pixels, torch.cat([x1, x2]), rtol=1e-9, atol=1e-15)


def test_gradients_against_the_corrected_edition(visual):
    # With 8 images there is one batch: the corrected mean, divided by the 8 images once more; and
    # of 10 images the pixels of the last two weigh 1/2 where those of the first eight weigh 1/8.
    images, labels = draw(10), torch.arange(10) % 4
    head = random_head(4, 8, torch.Generator().manual_seed(0)).double()
    pool = [head], torch.zeros(10, dtype=torch.long)
    mean, pixels = pool_gradients(visual, images, labels, *pool)
    eight, _ = pool_gradients(visual, images[:8], labels[:8], pool[0], pool[1][:8])
    published = gradients(visual, images[:8], labels[:8], head, "encoder")
    for (name, corrected), found in zip(eight.items(), published, strict=True):
        np.testing.assert_allclose(found, corrected / 8, rtol=1e-8, atol=1e-15, err_msg=name)
    (weighted,) = gradients(visual, images, labels, head, "input")
    np.testing.assert_allclose(weighted[:8], pixels[:8] / 8, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(weighted[8:], pixels[8:] / 2, rtol=1e-9, atol=1e-15)


# --- Heads ----------------------------------------------------------------------------------------


def test_heads_are_those_of_a_new_linear_layer():
    head = random_head(2000, 512, torch.Generator().manual_seed(0))
    bound = 1 / np.sqrt(512)
    assert head.shape == (2000, 512) and head.abs().max() <= bound
    fresh = torch.nn.Linear(512, 2000, bias=False).weight.detach()
    for q in (0.01, 0.25, 0.5, 0.9):
        expected = -bound + 2 * bound * q
        assert np.quantile(head, q) == pytest.approx(expected, abs=2e-4)
        assert np.quantile(fresh, q) == pytest.approx(expected, abs=2e-4)


def test_heads_are_drawn_anew_for_every_pair_and_metric():
    drawn = {
        (seed, pair, metric): head_pair(seed, pair, metric, (3, 4), 8)
        for seed in (0, 1)
        for pair in ((0, 1), (0, 2), (1, 2))
        for metric in range(6)
    }
    assert all(a.shape == (3, 8) and b.shape == (4, 8) for a, b in drawn.values())
    flat = [tuple(head[0].tolist()) for pair in drawn.values() for head in pair]
    assert len(set(flat)) == len(flat)
    again = head_pair(1, (0, 2), 3, (3, 4), 8)
    assert all(torch.equal(a, b) for a, b in zip(drawn[1, (0, 2), 3], again, strict=True))
    state = torch.get_rng_state()
    head_pair(0, (0, 1), 0, (3, 4), 8)
    assert torch.equal(torch.get_rng_state(), state)


# --- The table ------------------------------------------------------------------------------------

TASKS, SIZES, CLASSES = ["ant", "bee", "cow"], (23, 17, 31), (4, 3, 5)


@pytest.fixture(scope="module")
def world():
    visuals = [make_visual(seed) for seed in range(3)]
    images = [draw(size, seed) for seed, size in enumerate(SIZES)]
    labels = [torch.arange(size) % count for size, count in zip(SIZES, CLASSES, strict=True)]
    return visuals, images, labels, CLASSES, TASKS


def literal_table(visuals, images, labels, classes, tasks, seed):
    """The published loop: for every pair and metric all is built again."""
    rows = []
    for i, j in itertools.combinations(range(len(tasks)), 2):
        row = []
        for metric in range(6):
            stream = random.Random(42)
            heads = head_pair(seed, (i, j), metric, (classes[i], classes[j]), 8)
            flat = []
            for t, head in zip((i, j), heads, strict=True):
                chosen = sorted(stream.sample(range(len(labels[t])), 10))
                batches = literal_batches(visuals[t], images[t][chosen], labels[t][chosen], head)
                if metric < 3:
                    parts = [sum(p) / 10 for p in zip(*(b[0] for b in batches), strict=True)]
                else:
                    parts = [b[1] for b in batches]
                flat.append(np.concatenate([part.numpy().ravel() for part in parts]))
            a, b = flat
            row.append(
                [
                    a @ b / np.linalg.norm(a) / np.linalg.norm(b),
                    np.linalg.norm(a - b),
                    a @ b,
                ][metric % 3]
            )
        rows.append(row)
    return np.array(rows)


def test_the_table_is_the_published_loop(world):
    found = published_gradients(*world, seed=7)
    assert list(found.columns) == ["task_a", "task_b", *COLUMNS]
    assert list(zip(found.task_a, found.task_b, strict=True)) == list(
        itertools.combinations(TASKS, 2)
    )
    expected = literal_table(*world, seed=7)
    np.testing.assert_allclose(found[COLUMNS], expected, rtol=1e-7, atol=1e-14)
    assert found.equals(published_gradients(*world, seed=7))
    assert not np.allclose(found[COLUMNS], published_gradients(*world, seed=8)[COLUMNS], rtol=1e-3)


def disagreement(table, of):
    """Share of pairs whose cosine and dot product have different signs."""
    kinds = ("cosine_similarity", "dot_product")
    both = pd.DataFrame({kind: table[f"{of}_gradient_{kind}"] for kind in kinds}).dropna()
    return np.mean(np.sign(both[kinds[0]]) != np.sign(both[kinds[1]]))


def test_cosine_and_dot_product_disagree_in_sign_about_half_the_time(world):
    # They are of different heads; of the same gradients they never would.
    found = pd.concat(published_gradients(*world, seed=seed) for seed in range(9))
    for of in ("encoder", "input"):
        assert 0.25 < disagreement(found, of) < 0.75


@pytest.mark.parametrize("setting", ["ViT-B-16_AdamW", "ViT-B-32_AdamW", "ViT-B-16_SGD"])
def test_so_they_do_in_the_released_tables(shared, setting):
    file = shared / "published/results/mergeability" / setting / "pairwise_metrics_N20.json"
    metrics = json.loads(file.read_text())["metrics"]
    table = {name: pd.Series(metrics[name]["pairs"], dtype=float) for name in COLUMNS}
    for of in ("encoder", "input"):
        assert 0.4 < disagreement(table, of) < 0.6


def test_a_split_that_is_too_small_is_named(world):
    with pytest.raises(MergelibError, match="17 images, fewer than 20"):
        published_gradients(*world, seed=0, n=20)
