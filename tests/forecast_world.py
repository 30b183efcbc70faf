"""A made-up world for the forecast's tests: tables of a bank whose law is known."""

import itertools

import numpy as np
import pandas as pd

from mergelib.forecasting.bank import Bank, assemble, weight_metrics
from mergelib.forecasting.statistics import COUNTS, OF_FEATURES, OF_SCORES

SIZES, DRAWS, METHODS = (5, 20, 80), 6, ("one", "two", "three")


def tables(n_tasks: int = 7, seed: int = 0, small: bool = True) -> dict[str, pd.DataFrame]:
    """Probes, merges, metrics and tasks; the first task has 15 images only, if `small`.

    A merge keeps 1 - loss of a side, loss from the task, its partner and the method; soft is
    1 - loss and a noise of variance 0.1 / n; counts of labels are binomial.
    """
    rng = np.random.default_rng(seed)
    names = [f"t{k}" for k in range(n_tasks)]
    tasks = pd.DataFrame({"world": "made", "task": names})
    tasks["zero_shot"] = rng.uniform(0.3, 0.6, n_tasks)
    tasks["fine_tuned"] = rng.uniform(0.8, 0.95, n_tasks)
    fragile = rng.uniform(0.02, 0.2, n_tasks)
    probes, merges, metrics = [], [], []
    for i, j in itertools.combinations(range(n_tasks), 2):
        pair = {"world": "made", "task_a": names[i], "task_b": names[j]}
        metrics.append(pair | dict(zip(weight_metrics(), rng.normal(size=18), strict=True)))
        for k, method in enumerate(METHODS):
            row = pair | {"method": method}
            loss = np.clip(fragile[[i, j]] * (1 + 0.3 * k) + rng.normal(0, 0.02, 2), 0, 0.9)
            single = tasks["fine_tuned"].to_numpy()[[i, j]]
            acc = single * (1 - loss)
            merges.append(row | dict(zip(("acc_a", "acc_b"), acc, strict=True))
                          | dict(zip(("single_a", "single_b"), single, strict=True)))  # fmt: skip
            for s, task in enumerate((i, j)):
                for draw, n in itertools.product(range(DRAWS), SIZES):
                    images = min(n, 15) if task == 0 and small else n
                    found = row | {"side": "ab"[s], "draw": draw, "n": n, "images": images}
                    wide = rng.normal(0, (0.1 / images) ** 0.5, len(OF_SCORES + OF_FEATURES))
                    found |= dict(zip(OF_SCORES + OF_FEATURES, 0.5 + wide, strict=True))
                    found["soft"] = 1 - loss[s] + wide[0]
                    right = rng.binomial(images, single[s])
                    lost = rng.binomial(right, loss[s])
                    counts = (right, lost, 0, rng.binomial(images, 0.4))
                    probes.append(found | dict(zip(COUNTS, counts, strict=True)))
    return {
        "probes": pd.DataFrame(probes),
        "merges": pd.DataFrame(merges),
        "metrics": pd.DataFrame(metrics),
        "tasks": tasks,
    }


def bank(n_tasks: int = 7, seed: int = 0, small: bool = True) -> Bank:
    """The bank of `tables`."""
    return assemble(**tables(n_tasks, seed, small))
