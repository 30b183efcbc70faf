"""How near a merged model's answers are to the expert's, on a few images of the expert's task."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mergelib.core.errors import MergelibError
from mergelib.forecasting.evidence import Probe

OF_SCORES = ("soft", "agree", "kl", "conf", "doc", "ent", "base_soft")  # they ask for a head
OF_FEATURES = ("drift", "recovered")
COUNTS = ("expert_right", "expert_only", "merged_only", "base_right")  # they ask for labels


@dataclass(frozen=True)
class Outputs:
    """What an encoder makes of n images: features (n, d) and, with a head, class scores (n, C)."""

    features: Tensor
    logits: Tensor | None = None


def statistics(
    merged: Outputs, expert: Outputs, base: Outputs, labels: Tensor | None = None
) -> Probe:
    """The probe of one side of a merge: outputs of the same n images, labels (n,) or none.

    Raises MergelibError as `per_image` and `probe` do.
    """
    return probe(per_image(merged, expert, base, labels))


def per_image(
    merged: Outputs, expert: Outputs, base: Outputs, labels: Tensor | None = None
) -> dict[str, Tensor]:
    """What every image adds to the statistics, each (n,) float64.

    With class scores, p = softmax(logits), m of the merged model, e of the expert, 0 of the base:
    soft sum_c min(p_m, p_e); agree [argmax p_m = argmax p_e]; kl KL(p_e || p_m) in nats; conf
    max p_m; doc max p_e - max p_m; ent the entropy of p_m in nats; base_soft sum_c min(p_0, p_e).
    Of features z of unit length: left |z_m - z_e|^2, moved |z_e - z_0|^2, along
    <z_m - z_0, z_e - z_0>. With labels, 0 or 1: expert_right, expert_only (the merged model is
    wrong), merged_only (the expert is), base_right.

    Raises MergelibError for no image, outputs of different shapes, values not finite, and labels
    without class scores.
    """
    _check(merged, expert, base)
    z_m, z_e, z_0 = (normalize(x.features.double(), dim=1) for x in (merged, expert, base))
    found = {
        "left": (z_m - z_e).square().sum(dim=1),
        "moved": (z_e - z_0).square().sum(dim=1),
        "along": ((z_m - z_0) * (z_e - z_0)).sum(dim=1),
    }
    logits = [x.logits for x in (merged, expert, base) if x.logits is not None]
    if len(logits) < 3:
        if labels is not None:
            raise MergelibError("labels ask for a head: give the task's class names or its head")
        return found
    log_m, log_e, log_0 = (x.double().log_softmax(dim=1) for x in logits)
    p_m, p_e = log_m.exp(), log_e.exp()
    conf = p_m.amax(dim=1)
    answers = [x.argmax(dim=1) for x in logits]
    found |= {
        "soft": torch.minimum(p_m, p_e).sum(dim=1),
        "agree": answers[0] == answers[1],
        "kl": (p_e * (log_e - log_m)).sum(dim=1),
        "conf": conf,
        "doc": p_e.amax(dim=1) - conf,
        "ent": -(p_m * log_m).sum(dim=1),
        "base_soft": torch.minimum(log_0.exp(), p_e).sum(dim=1),
    }
    if labels is not None:
        by_merged, by_expert, by_base = (answer == labels for answer in answers)
        found |= {
            "expert_right": by_expert,
            "expert_only": by_expert & ~by_merged,
            "merged_only": by_merged & ~by_expert,
            "base_right": by_base,
        }
    return {name: value.double() for name, value in found.items()}


def probe(terms: Mapping[str, Tensor]) -> Probe:
    """The statistics of n images from what each adds, `per_image`. Raises as `unlabelled` does."""
    n = len(terms["moved"])
    sums = {name: value.sum() for name, value in terms.items()}
    found = {name: float(value) for name, value in unlabelled(sums, n).items()}
    return Probe(n, found, **{name: int(sums[name]) for name in COUNTS if name in sums})


def unlabelled(sums: Mapping[str, Tensor], n: int | Tensor) -> dict[str, Tensor]:
    """The unlabelled statistics from sums (...) over n images: means of the scores', and

    drift = sum left / sum moved: 0 imitates the expert, 1 is as far from it as the base, above 1
    harms; recovered = sum along / sum moved: the share of the expert's change that is there.
    Source: confidence and entropy, arXiv 2107.03315; agreement, arXiv 2106.13799; the rest ours.

    Raises MergelibError where the expert's features are the base's.
    """
    moved = sums["moved"]
    if not bool((moved > 0).all()):
        raise MergelibError(
            "the expert gives the base's features on these images: it is no fine-tuned model"
        )
    found = {name: sums[name] / n for name in OF_SCORES if name in sums}
    return found | {"drift": sums["left"] / moved, "recovered": sums["along"] / moved}


def _check(merged: Outputs, expert: Outputs, base: Outputs) -> None:
    every = (merged, expert, base)
    shapes = {tuple(x.features.shape) for x in every}
    if len(shapes) > 1 or len(merged.features) == 0:
        raise MergelibError(
            f"features of merged model, expert and base have the shapes {sorted(shapes)}: give the "
            "same images, at least one, to all three"
        )
    logits = [x.logits for x in every if x.logits is not None]
    if len({tuple(x.shape) for x in logits}) > 1:
        raise MergelibError("class scores of the three models differ in shape: use one head")
    if not all(bool(x.isfinite().all()) for x in [*(x.features for x in every), *logits]):
        raise MergelibError("an encoder gives values that are not finite: check its weights")
