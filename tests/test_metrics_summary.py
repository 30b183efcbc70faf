"""Mean activation and pool gradients on a tiny vision tower, one image at a time."""

import numpy as np
import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

from mergelib.core.errors import MergelibError
from mergelib.metrics.encoder import mean_activation, pool_gradients

pytestmark = pytest.mark.numeric

CLASSES = (5, 3, 4)


@pytest.fixture(scope="module")
def visual():
    """A float64 vision tower: 2 blocks, width 16, embedding 8, images of 16 × 16."""
    torch.manual_seed(0)
    vision = CLIPVisionCfg(layers=2, width=16, head_width=8, patch_size=8, image_size=16)
    text = CLIPTextCfg(context_length=4, vocab_size=9, width=8, heads=2, layers=1)
    return CLIP(8, vision, text).visual.double()


@pytest.fixture(scope="module")
def pool():
    """Seven images of three tasks, not in task order, and three heads of different sizes."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(7, 3, 16, 16, generator=generator).double()
    task_index = torch.tensor([0, 1, 2, 1, 0, 2, 0])
    labels = torch.tensor([4, 2, 3, 0, 1, 0, 2])
    heads = [torch.randn(c, 8, generator=generator).double() for c in CLASSES]
    heads = [20 * head / head.norm(dim=1, keepdim=True) for head in heads]
    return images, labels, heads, task_index


def literal_loss(visual, image, label, head):
    """−log softmax of one image's logits, written out."""
    features = visual(image[None])[0]
    logits = head @ (features / features.norm())
    return torch.log(torch.exp(logits - logits.max()).sum()) + logits.max() - logits[label]


def test_gradients_are_those_of_single_images(visual, pool):
    images, labels, heads, task_index = pool
    encoder, pixels = pool_gradients(visual, images, labels, heads, task_index, batch_size=3)
    names, parameters = zip(*visual.named_parameters(), strict=True)
    total = [np.zeros(p.shape) for p in parameters]
    for n in range(7):
        image = images[n].clone().requires_grad_()
        loss = literal_loss(visual, image, labels[n], heads[task_index[n]])
        *found, of_image = torch.autograd.grad(loss, [*parameters, image])
        np.testing.assert_allclose(pixels[n], of_image, rtol=1e-9, atol=1e-12)
        total = [t + g.numpy() / 7 for t, g in zip(total, found, strict=True)]
    assert list(encoder) == list(names)
    for name, expected in zip(names, total, strict=True):
        np.testing.assert_allclose(encoder[name], expected, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("proj", (3, 2)),
        ("conv1.weight", (5, 1, 2, 7)),
        ("transformer.resblocks.0.attn.in_proj_weight", (20, 4)),
        ("ln_pre.bias", (6,)),
    ],
)
def test_encoder_gradient_is_a_finite_difference(visual, pool, name, entry):
    images, labels, heads, task_index = pool
    encoder, _ = pool_gradients(visual, *pool)
    weight = dict(visual.named_parameters())[name].data
    start, step, sides = weight[entry].item(), 1e-5, []
    try:
        for sign in (1, -1):
            weight[entry] = start + sign * step
            with torch.no_grad():
                losses = [
                    literal_loss(visual, images[n], labels[n], heads[task_index[n]])
                    for n in range(7)
                ]
            sides.append(torch.stack(losses).mean().item())
    finally:
        weight[entry] = start
    slope = (sides[0] - sides[1]) / (2 * step)
    np.testing.assert_allclose(encoder[name][entry].item(), slope, rtol=1e-5, atol=1e-8)


def test_input_gradient_is_a_finite_difference(visual, pool):
    images, labels, heads, task_index = pool
    _, pixels = pool_gradients(visual, *pool)
    sides = []
    for sign in (1, -1):
        image = images[5].clone()
        image[2, 9, 4] += sign * 1e-5
        with torch.no_grad():
            sides.append(literal_loss(visual, image, labels[5], heads[2]).item())
    np.testing.assert_allclose(pixels[5, 2, 9, 4], (sides[0] - sides[1]) / 2e-5, rtol=1e-5)


def test_batches_and_order_do_not_matter(visual, pool):
    images, labels, heads, task_index = pool
    encoder, pixels = pool_gradients(visual, *pool, batch_size=7)
    order = torch.tensor([6, 2, 0, 5, 1, 3, 4])
    encoder2, pixels2 = pool_gradients(
        visual, images[order], labels[order], heads, task_index[order], batch_size=2
    )
    np.testing.assert_allclose(pixels2, pixels[order], rtol=1e-9, atol=1e-12)
    for name, gradient in encoder.items():
        np.testing.assert_allclose(encoder2[name], gradient, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        mean_activation(visual, images, 2), mean_activation(visual, images[order], 7), rtol=1e-12
    )


def test_float32_follows_float64(visual, pool):
    images, labels, heads, task_index = pool
    encoder, pixels = pool_gradients(visual, *pool)
    try:
        visual.float()
        low, low_pixels = pool_gradients(
            visual, images.float(), labels, [head.float() for head in heads], task_index
        )
    finally:
        visual.double()
    assert low_pixels.dtype == torch.float32 and low["proj"].dtype == torch.float32
    np.testing.assert_allclose(low_pixels, pixels, rtol=1e-3, atol=1e-4)
    for name, gradient in encoder.items():
        np.testing.assert_allclose(low[name], gradient, rtol=1e-3, atol=1e-4, err_msg=name)


def test_activation_is_the_mean_of_the_last_block(visual, pool):
    images = pool[0]
    rows = []
    with torch.no_grad():
        for image in images:
            patches = visual.conv1(image[None])[0].flatten(1).T  # (4, 16)
            x = torch.cat([visual.class_embedding[None], patches]) + visual.positional_embedding
            x = visual.ln_pre(x)[None]
            for block in visual.transformer.resblocks:
                x = block(x)
            rows.append(np.mean([token.numpy() for token in x[0]], axis=0))
    found = mean_activation(visual, images, batch_size=3)  # 3 + 3 + 1: images, not batches, count
    assert found.shape == (16,) and found.dtype == torch.float64
    np.testing.assert_allclose(found, np.mean(rows, axis=0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(visual, pool, training):
    visual.train(training)
    for parameter in visual.parameters():
        parameter.requires_grad_(False)  # frozen weights are measured all the same
    try:
        before = {name: p.clone() for name, p in visual.state_dict().items()}
        encoder, _ = pool_gradients(visual, *pool)
        mean_activation(visual, pool[0])
        assert any(gradient.any() for gradient in encoder.values())
        assert visual.training is training
        assert not any(p.requires_grad or p.grad is not None for p in visual.parameters())
        assert not visual.transformer.resblocks[-1]._forward_hooks
        assert all(torch.equal(p, before[name]) for name, p in visual.state_dict().items())
    finally:
        for parameter in visual.parameters():
            parameter.requires_grad_(True)


def test_unusable_images_are_refused(visual, pool):
    raw = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    with pytest.raises(MergelibError, match="uint8.*normalize"):
        mean_activation(visual, raw)
    with pytest.raises(MergelibError, match=r"shape \(3, 16, 16\)"):
        mean_activation(visual, pool[0][0])
    with pytest.raises(MergelibError, match=r"\(0, 3, 16, 16\)"):
        pool_gradients(visual, pool[0][:0], *pool[1:])
    with pytest.raises(MergelibError, match="Linear has no transformer.resblocks"):
        mean_activation(torch.nn.Linear(2, 2), pool[0])


def test_a_pool_that_does_not_fit_is_refused(visual, pool):
    images, labels, heads, task_index = pool
    with pytest.raises(MergelibError, match="7 images, 6 labels"):
        pool_gradients(visual, images, labels[:6], heads, task_index)
    with pytest.raises(MergelibError, match="0 to 2 but there are 2 heads"):
        pool_gradients(visual, images, labels, heads[:2], task_index)
    with pytest.raises(MergelibError, match=r"labels of task 1 .* shape \(3, 8\)"):
        pool_gradients(visual, images, labels + (task_index == 1), heads, task_index)
    narrow = [head[:, :5] for head in heads]
    with pytest.raises(MergelibError, match=r"head 0 has shape \(5, 5\).*8"):
        pool_gradients(visual, images, labels, narrow, task_index)
