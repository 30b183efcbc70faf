"""The augmentation of CLIP's fine-tuning: a random crop of a batch's images, at their own size."""

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.functional import resized_crop

AREA, SHAPE = [0.9, 1.0], [3 / 4, 4 / 3]  # of a crop: share of the image, width by height


def cropped(images: Tensor, seed: int) -> Tensor:
    """A crop of each image (N, 3, H, W), bicubic at (H, W); seed alone fixes the crops.

    Source: open_clip's training transform, `RandomResizedCrop(scale=(0.9, 1))`.
    """
    size = list(images.shape[-2:])
    with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's own generator
        torch.manual_seed(seed)
        boxes = [RandomResizedCrop.get_params(image, AREA, SHAPE) for image in images]
    made = [
        resized_crop(image, *box, size, InterpolationMode.BICUBIC, antialias=True)
        for image, box in zip(images, boxes, strict=True)
    ]
    return torch.stack(made)
