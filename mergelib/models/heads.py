"""Frozen classification heads: of class names by the text tower, or of images of the classes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from mergelib.core.errors import MergelibError, tell

if TYPE_CHECKING:  # it asks for open_clip, which a head that is given does without
    from mergelib.models.backbones import Backbone


HEADS = ("zero_shot", "prototypes", "probe")
SCALES = (1.0, 100.0)  # within which prototypes are scaled; the latter is CLIP's
INVERSE_PENALTY = 100.0  # of the probe, for features of length one


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


def prototypes(features: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """Head (C, d) float32 of class means: w_c = s · normalize(mean over class c of normalize(z)).

    features z (N, d) of the base, labels (N,). s in [1, 100] has the least mean cross-entropy of
    these images (a temperature, Guo et al. 2017, arXiv 1706.04599). A class without an image has
    w = 0, which is told. Source: Snell et al. 2017, Prototypical networks, arXiv 1703.05175.
    """
    if absent := _absent(labels, n_classes):
        tell([f"no image of class {absent[0]} of {n_classes} to make a head of: it scores 0"])
    unit = normalize(features.double(), dim=-1)
    sums = unit.new_zeros(n_classes, unit.shape[1]).index_add(0, labels, unit)
    means = normalize(sums, dim=-1)
    cosines = unit @ means.T

    def loss(log_scale: float) -> float:
        return float(cross_entropy(np.exp(log_scale) * cosines, labels))

    found = minimize_scalar(loss, bounds=np.log(SCALES), method="bounded")
    return (np.exp(found.x) * means).float()


def probe(features: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """Head (C, d) float32 of a logistic regression on normalize(z), without intercept.

    features z (N, d) of the base, labels (N,). Raises MergelibError for a class without an image.
    """
    if absent := _absent(labels, n_classes):
        raise MergelibError(
            f"class {absent[0]} of {n_classes} has none of the {len(labels)} images that a probe "
            "is fitted on: give more images, or `head_split: train`"
        )
    unit = normalize(features.double(), dim=-1).numpy()
    fit = LogisticRegression(C=INVERSE_PENALTY, fit_intercept=False, max_iter=1000)
    weight = torch.from_numpy(fit.fit(unit, labels.numpy()).coef_).float()
    return torch.cat([-weight, weight]) / 2 if n_classes == 2 else weight  # scikit-learn gives one


def _absent(labels: Tensor, n_classes: int) -> list[int]:
    return sorted(set(range(n_classes)) - set(labels.tolist()))


def logits(features: Tensor, head: Tensor) -> Tensor:
    """Class scores (N, C) = normalize(features) @ head.T."""
    return normalize(features, dim=-1) @ head.T


def _device(backbone: "Backbone") -> torch.device:
    return backbone.model.logit_scale.device
