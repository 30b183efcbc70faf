"""The columns that a forecast is made of, one side of a merge at a time."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mergelib.forecast.statistics import OF_FEATURES, OF_SCORES

OWN = ("zero_shot", "fine_tuned", "base_knowledge")
KNOWN = (*OWN, *(f"other:{name}" for name in OWN))
LABELLED = ("paired", "expert_excess", "base_excess")
LABELLED_ALONE = ("paired_alone", "expert_share", "base_share")
UNLABELLED = (*OF_SCORES, *OF_FEATURES)


def known(zero_shot: Any, fine_tuned: Any, other_zero_shot: Any, other_fine_tuned: Any) -> dict:
    """Accuracies of base and expert on the side's task and on the other: KNOWN, (...) each.

    base_knowledge = zero_shot / fine_tuned.
    """
    own = (zero_shot, fine_tuned, zero_shot / fine_tuned)
    other = (other_zero_shot, other_fine_tuned, other_zero_shot / other_fine_tuned)
    return dict(zip(KNOWN, (*own, *other), strict=True))


def labelled(n: Any, counts: Mapping[str, Any], zero_shot: Any, fine_tuned: Any) -> dict:
    """Right answers on n labelled images against known accuracies: LABELLED, (...) each.

    paired = 1 + (c - b) / (n fine_tuned), b images that only the expert gets right, c only the
    merged model: unbiased for merged / fine-tuned accuracy, and free of what makes all models
    right or wrong alike. expert_excess = k_e / n - fine_tuned and base_excess = k_0 / n -
    zero_shot have mean 0: control variates, which tell how easy the images are.
    Source: paired differences (McNemar 1947); control variates (Owen 2013, section 8.9).
    """
    gain = np.subtract(counts["merged_only"], counts["expert_only"])
    return {
        "paired": 1 + gain / (n * fine_tuned),
        "expert_excess": counts["expert_right"] / n - fine_tuned,
        "base_excess": counts["base_right"] / n - zero_shot,
    }


def labelled_alone(n: Any, counts: Mapping[str, Any]) -> dict:
    """As `labelled` where no accuracy is known: LABELLED_ALONE, (...) each.

    paired_alone = 1 + (c - b) / k_e, k_e at least 1; the shares k_e / n and k_0 / n.
    """
    gain = np.subtract(counts["merged_only"], counts["expert_only"])
    return {
        "paired_alone": 1 + gain / np.maximum(counts["expert_right"], 1),
        "expert_share": counts["expert_right"] / n,
        "base_share": counts["base_right"] / n,
    }
