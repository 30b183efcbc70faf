"""Cross-task metrics (extra): what one model's encoder is worth under the other task's head.

A_tu is the accuracy of model t's encoder under the frozen zero-shot head of task u, on calibration
images of task u (`mergelib.metrics.encoder.cross_accuracies`). An encoder that unlearned the other
task can hardly pass it on to a merge.
"""

import numpy as np

from mergelib.metrics.inputs import Inputs
from mergelib.metrics.registry import metric

CATEGORY = "cross_task"
REFERENCE = "Jung et al. 2024, SyMerge (arXiv 2412.19098), cross-task performance"


@metric("cross_task_accuracy", CATEGORY, (0, 1), REFERENCE)
def cross_task_accuracy(x: Inputs) -> np.ndarray:
    """(A_ij + A_ji) / 2, the mean of both directions."""
    found = x.need("cross_accuracy")
    return (found + found.T) / 2


@metric("cross_task_accuracy_of_a", CATEGORY, (0, 1), REFERENCE, symmetric=False)
def cross_task_accuracy_of_a(x: Inputs) -> np.ndarray:
    """A_ij: encoder i (of task_a) under the head of j (task_b)."""
    return x.need("cross_accuracy")


@metric("cross_task_accuracy_of_b", CATEGORY, (0, 1), REFERENCE, symmetric=False)
def cross_task_accuracy_of_b(x: Inputs) -> np.ndarray:
    """A_ji: encoder j (of task_b) under the head of i (task_a)."""
    return x.need("cross_accuracy").T
