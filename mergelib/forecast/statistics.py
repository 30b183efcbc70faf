"""How near a merged model's answers are to the expert's, on a few images of the expert's task."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mergelib.core.errors import MergelibError
from mergelib.forecast.evidence import Probe

OF_SCORES = ("soft", "agree", "kl", "conf", "doc", "ent")  # those that ask for a head
OF_FEATURES = ("drift", "recovered")


@dataclass(frozen=True)
class Outputs:
    """What an encoder makes of n images: features (n, d) and, with a head, class scores (n, C)."""

    features: Tensor
    logits: Tensor | None = None


def statistics(
    merged: Outputs, expert: Outputs, base: Outputs, labels: Tensor | None = None
) -> Probe:
    """The probe of one side of a merge: `unlabelled` over the images, with labels (n,) the counts.

    All outputs are of the same n images. Raises MergelibError as `per_image` and `unlabelled` do,
    and for labels without class scores.
    """
    found = unlabelled(per_image(merged, expert, base))
    n = len(merged.features)
    if labels is None:
        return Probe(n, found)
    if merged.logits is None or expert.logits is None:
        raise MergelibError("labels ask for a head: give the class names or the head of the task")
    right, by_merged = (_answers(x) == labels for x in (expert.logits, merged.logits))
    return Probe(
        n,
        found,
        expert_right=int(right.sum()),
        expert_only=int((right & ~by_merged).sum()),
        merged_only=int((by_merged & ~right).sum()),
    )


def per_image(merged: Outputs, expert: Outputs, base: Outputs) -> dict[str, Tensor]:
    """What every image adds to the statistics, each (n,) float64.

    With class scores, p = softmax(logits), m of the merged model, e of the expert:
    soft sum_c min(p_m, p_e); agree [argmax p_m = argmax p_e]; kl KL(p_e || p_m) in nats; conf
    max p_m; doc max p_e - max p_m; ent the entropy of p_m in nats. Of features z of unit length:
    left |z_m - z_e|^2, moved |z_e - z_0|^2, along <z_m - z_0, z_e - z_0>.

    Raises MergelibError for no image, outputs of different shapes, and values not finite.
    """
    _check(merged, expert, base)
    z_m, z_e, z_0 = (normalize(x.features.double(), dim=1) for x in (merged, expert, base))
    found = {
        "left": (z_m - z_e).square().sum(dim=1),
        "moved": (z_e - z_0).square().sum(dim=1),
        "along": ((z_m - z_0) * (z_e - z_0)).sum(dim=1),
    }
    if merged.logits is None or expert.logits is None:
        return found
    log_m, log_e = (x.double().log_softmax(dim=1) for x in (merged.logits, expert.logits))
    p_m, p_e = log_m.exp(), log_e.exp()
    conf = p_m.amax(dim=1)
    scores = {
        "soft": torch.minimum(p_m, p_e).sum(dim=1),
        "agree": (_answers(merged.logits) == _answers(expert.logits)).double(),
        "kl": (p_e * (log_e - log_m)).sum(dim=1),
        "conf": conf,
        "doc": p_e.amax(dim=1) - conf,
        "ent": -(p_m * log_m).sum(dim=1),
    }
    return scores | found


def unlabelled(terms: Mapping[str, Tensor]) -> dict[str, float]:
    """The statistics of n images from `per_image`: means of the scores', and of the features

    drift = sum left / sum moved: 0 imitates the expert, 1 is as far from it as the base, above 1
    harms; recovered = sum along / sum moved: the share of the expert's change that is there.
    Source: confidence and entropy, arXiv 2107.03315; agreement, arXiv 2106.13799; the rest ours.

    Raises MergelibError where the expert's features are the base's.
    """
    found = {name: float(terms[name].mean()) for name in OF_SCORES if name in terms}
    moved = float(terms["moved"].sum())
    if not moved > 0:
        raise MergelibError(
            "the expert gives the base's features on these images: it is no fine-tuned model"
        )
    found["drift"] = float(terms["left"].sum()) / moved
    found["recovered"] = float(terms["along"].sum()) / moved
    return found


def _answers(logits: Tensor) -> Tensor:
    return logits.argmax(dim=1)


def _check(merged: Outputs, expert: Outputs, base: Outputs) -> None:
    shapes = {tuple(x.features.shape) for x in (merged, expert, base)}
    if len(shapes) > 1 or len(merged.features) == 0:
        raise MergelibError(
            f"features of merged model, expert and base have the shapes {sorted(shapes)}: give the "
            "same images, at least one, to all three"
        )
    logits = [x.logits for x in (merged, expert) if x.logits is not None]
    if len({tuple(x.shape) for x in logits}) > 1:
        raise MergelibError("class scores of merged model and expert differ in shape: use one head")
    held = [x.features for x in (merged, expert, base)] + logits
    if not all(bool(x.isfinite().all()) for x in held):
        raise MergelibError("an encoder gives values that are not finite: check its weights")
