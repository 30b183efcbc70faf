"""Accuracy of an image encoder under a frozen head; normalized accuracy."""

import torch
from torch import Tensor, nn

from mergelib.heads import logits


@torch.inference_mode()
def accuracy(
    visual: nn.Module,
    images: Tensor,
    labels: Tensor,
    head: Tensor,
    batch_size: int = 100,
    bfloat16: bool = False,
) -> float:
    """Top-1 accuracy, a fraction: mean of [argmax_c logits_c = label].

    images float32 (N, 3, H, W), normalized; labels int64 (N,); head (C, d). The encoder is used
    as it stands (put it in eval mode).
    """
    right = 0
    device = images.device.type
    for pixels, truth in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        with torch.autocast(device, torch.bfloat16, bfloat16):
            features = visual(pixels)
        right += int((logits(features.float(), head).argmax(dim=1) == truth).sum())
    return right / len(labels)


def normalized_accuracy(merged: float, single: float) -> float:
    """acc(merged) / acc(single), the share of a fine-tuned model's accuracy that a merge keeps."""
    return merged / single if single else float("nan")
