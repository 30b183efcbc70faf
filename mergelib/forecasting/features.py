"""The columns that a forecast is made of, one side of a merge at a time."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mergelib.forecasting.statistics import OF_FEATURES, OF_SCORES

OWN = ("zero_shot", "fine_tuned", "base_knowledge")
KNOWN = (*OWN, *(f"other:{name}" for name in OWN))
CONTROLS = ("expert_excess", "base_excess")
CONTROLS_ALONE = ("expert_share", "base_share")
PAIRED = ("paired", "paired_variance", *CONTROLS)
PAIRED_ALONE = ("paired_alone", "paired_alone_variance")
UNLABELLED = (*OF_SCORES, *OF_FEATURES)


def own(zero_shot: Any, fine_tuned: Any) -> dict:
    """Accuracies of base and expert on a task, and their ratio: OWN, (...) each.

    base_knowledge = zero_shot / fine_tuned.
    """
    return dict(zip(OWN, (zero_shot, fine_tuned, zero_shot / fine_tuned), strict=True))


def known(zero_shot: Any, fine_tuned: Any, other_zero_shot: Any, other_fine_tuned: Any) -> dict:
    """What is `own` of the side's task and of the other: KNOWN, (...) each."""
    other = own(other_zero_shot, other_fine_tuned)
    return own(zero_shot, fine_tuned) | {f"other:{name}": x for name, x in other.items()}


def labelled(n: Any, counts: Mapping[str, Any], zero_shot: Any, fine_tuned: Any) -> dict:
    """Right answers on n labelled images against known accuracies: PAIRED and CONTROLS, (...) each.

    paired = 1 + (c - b) / (n fine_tuned), b images that only the expert gets right, c only the
    merged model: an estimate of merged / fine-tuned accuracy without what makes both right or
    wrong alike; paired_variance = (b + c + 1 - (c - b)^2 / n) / (n fine_tuned)^2, of one
    pseudo-count, so that b = c = 0 is no certainty. expert_excess = k_e / n - fine_tuned and
    base_excess = k_0 / n - zero_shot have mean 0: control variates, how easy the images are.
    Source: paired differences (McNemar 1947); control variates (Owen 2013, section 8.9).
    """
    value, variance = _paired(n, counts, n * fine_tuned)
    return {
        "paired": value,
        "paired_variance": variance,
        "expert_excess": counts["expert_right"] / n - fine_tuned,
        "base_excess": counts["base_right"] / n - zero_shot,
    }


def labelled_alone(n: Any, counts: Mapping[str, Any]) -> dict:
    """As `labelled` where no accuracy is known: PAIRED_ALONE and CONTROLS_ALONE, (...) each.

    k_e, at least 1, stands for n fine_tuned; the shares k_e / n and k_0 / n for the excesses.
    """
    value, variance = _paired(n, counts, np.maximum(counts["expert_right"], 1))
    return {
        "paired_alone": value,
        "paired_alone_variance": variance,
        "expert_share": counts["expert_right"] / n,
        "base_share": counts["base_right"] / n,
    }


def _paired(n: Any, counts: Mapping[str, Any], expected: Any) -> tuple[Any, Any]:
    b, c = counts["expert_only"], counts["merged_only"]
    gain = np.subtract(c, b, dtype=np.float64)
    return 1 + gain / expected, (np.add(b, c) + 1 - gain**2 / n) / expected**2
