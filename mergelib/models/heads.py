"""Frozen zero-shot classification heads from the text tower."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize

if TYPE_CHECKING:  # it asks for open_clip, which a head that is given does without
    from mergelib.models.backbones import Backbone


@torch.no_grad()
def zero_shot_head(
    backbone: "Backbone", class_names: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """Zero-shot head (C, d) float32: one scaled text direction per class.

    w_c = exp(logit_scale) * normalize(mean over templates of normalize(text(template(c)))).
    Source: Radford et al. 2021 (CLIP), section 3.1.4, prompt ensembling.
    """
    rows = []
    for name in class_names:
        tokens = backbone.tokenize([template.format(name) for template in templates])
        texts = backbone.model.encode_text(tokens.to(_device(backbone)), normalize=True)
        rows.append(normalize(texts.float().mean(dim=0), dim=0))
    return torch.stack(rows) * backbone.model.logit_scale.exp().float()


def logits(features: Tensor, head: Tensor) -> Tensor:
    """Class scores (N, C) = normalize(features) @ head.T."""
    return normalize(features, dim=-1) @ head.T


def _device(backbone: "Backbone") -> torch.device:
    return backbone.model.logit_scale.device
