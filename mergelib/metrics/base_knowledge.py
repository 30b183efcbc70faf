"""Base knowledge metrics (extra): how much of a task the pretrained model knew already.

K_t = zero-shot accuracy / fine-tuned accuracy of task t, on calibration images. What the base knows
well is said to survive a merge best.
"""

import numpy as np

from mergelib.metrics.inputs import Inputs
from mergelib.metrics.registry import metric

CATEGORY = "base_knowledge"
REFERENCE = "Rahamim et al. 2026, Will it Merge? (arXiv 2601.06672)"
INF = float("inf")


def knowledge(x: Inputs) -> np.ndarray:
    """K_t = zero_shot_t / fine_tuned_t: (T,); NaN where the fine-tuned accuracy is 0."""
    before, after = x.need("zero_shot"), x.need("fine_tuned")
    return np.divide(before, after, out=np.full(len(after), np.nan), where=after > 0)


@metric("base_knowledge", CATEGORY, (0, INF), REFERENCE)
def base_knowledge(x: Inputs) -> np.ndarray:
    """(K_i + K_j) / 2."""
    return np.add.outer(knowledge(x), knowledge(x)) / 2


@metric("base_knowledge_difference", CATEGORY, (0, INF), REFERENCE)
def base_knowledge_difference(x: Inputs) -> np.ndarray:
    """|K_i − K_j|."""
    return np.abs(np.subtract.outer(knowledge(x), knowledge(x)))
