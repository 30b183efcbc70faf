"""The published edition of the gradient metrics for all pairs of models, in one loop."""

import itertools

import pandas as pd

from mergelib.metrics.published_gradients import (
    PER_TASK,
    calibration,
    heads_of_pair,
    of_model,
    of_pair,
)


def published_gradients(visuals, images, labels, classes, tasks, seed, n=PER_TASK) -> pd.DataFrame:
    """task_a, task_b and six columns: `visuals[t]` on its own test images, heads by `seed`."""
    rows = []
    for i, j in itertools.combinations(range(len(tasks)), 2):
        chosen = calibration([len(labels[t]) for t in (i, j)], n)
        heads = heads_of_pair(seed, (i, j), (classes[i], classes[j]), visuals[i].output_dim)
        sides = [
            of_model(visuals[t], images[t][chosen[side]], labels[t][chosen[side]], heads[side])
            for side, t in enumerate((i, j))
        ]
        rows.append({"task_a": tasks[i], "task_b": tasks[j], **of_pair(*sides)})
    return pd.DataFrame(rows)
