"""Accuracy of an image encoder under a frozen head."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mergelib.models.batches import Batches
from mergelib.models.heads import logits

BATCH = {"cpu": 50, "cuda": 500}  # what stays in the cache; what keeps a GPU busy


@torch.inference_mode()
def accuracy(
    visual: nn.Module | Callable[[Tensor], Tensor],
    images: Tensor | Batches,
    labels: Tensor,
    head: Tensor,
    batch_size: int = 0,
    bfloat16: bool = False,
    normalize: Callable[[Tensor], Tensor] | None = None,
) -> float:
    """Top-1 accuracy, a fraction: mean of [argmax_c logits_c = label].

    images float32 (N, 3, H, W), normalized, or uint8 with the `normalize` that makes a batch so,
    or `Batches`; labels int64 (N,); head (C, d); all on one device. The encoder is used as it
    stands (put it in eval mode). `batch_size` 0 is one that suits the device; `bfloat16` computes
    the features under autocast.
    """
    device = images.device.type
    size = batch_size or BATCH.get(device, BATCH["cuda"])
    right = torch.zeros((), dtype=torch.long, device=images.device)  # read once, at the end
    for pixels, truth in zip(images.split(size), labels.split(size), strict=True):
        if normalize is not None:
            pixels = normalize(pixels)
        with torch.autocast(device, torch.bfloat16, bfloat16):
            features = visual(pixels)
        right += (logits(features.float(), head).argmax(dim=1) == truth).sum()
    return int(right) / len(labels)
