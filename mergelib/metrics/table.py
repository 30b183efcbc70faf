"""The metrics table: every registered metric of every pair of models."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mergelib.checkpoints.digests import contents
from mergelib.checkpoints.formats import text_matrices
from mergelib.core.errors import MergelibError
from mergelib.metrics.cache import kept_survey
from mergelib.metrics.inputs import Ingredients, ingredients
from mergelib.metrics.registry import EXTRA, METRICS, check_mode, find
from mergelib.metrics.weights import survey

OF_WEIGHTS = ("task_vector", "effective_rank", "subspace", "principal_angles")


def pairwise(
    x: Ingredients,
    tasks: Sequence[str],
    names: Iterable[str] | None = None,
    mode: str = "corrected",
) -> pd.DataFrame:
    """The metrics table: task_a, task_b and one float64 column per metric.

    One row per unordered pair i < j in the order of `tasks`, T (T − 1) / 2 rows; columns in
    registration order: the published 28, or those in `names`, which may name extra ones (they come
    last). `mode="paper"` repeats the published choices of the weight metrics: subspace_overlap
    divided by k, and matrices that are zero counted in the subspace means. The calibration pool and
    the heads are those of the summaries in either (`mean_activation` has its own paper edition,
    `published_gradients` is that of the gradient metrics).
    Raises MergelibError for an unknown metric or mode, a task list that does not fit, or a metric
    whose ingredient is missing.
    """
    check_mode(mode)
    tasks = list(tasks)
    if len(tasks) != len(x.gram) or len(set(tasks)) != len(tasks):
        raise MergelibError(
            f"{len(tasks)} task names ({len(set(tasks))} different) for {len(x.gram)} models: "
            "give each model one name of its own"
        )
    wanted = set(METRICS) if names is None else {find(name).name for name in names}
    first, second = np.triu_indices(len(tasks), k=1)
    table = {"task_a": [tasks[i] for i in first], "task_b": [tasks[j] for j in second]}
    for row in [*METRICS.rows(), *EXTRA.rows()]:
        if row.name in wanted:
            table[row.name] = np.asarray(row(x, mode), dtype=np.float64)[first, second]
    return pd.DataFrame(table)


def pairwise_of_checkpoints(
    base: Path,
    models: Sequence[Path],
    mode: str = "corrected",
    extra: bool = False,
    cache: Path | None = None,
    device: str = "cpu",
) -> pd.DataFrame:
    """The weight metrics (task vector, effective rank, subspace) of checkpoints.

    `extra` adds the principal angles. Formats and what is read: `mergelib.checkpoints`. Models are
    named by their file names without suffix, or their directories' names. `mode="paper"` also
    counts the matrices of the base's text side, as zero. `cache` is a folder that keeps what was
    computed, by content, so that one more model costs its own pass; `device` is where factors and
    Gram matrices are computed. Raises MergelibError for fewer than two models, equal names, and as
    `mergelib.vectors.task_vectors` does.
    """
    if len(models) < 2:
        raise MergelibError(f"{len(models)} model: metrics compare two or more, give another")
    zeros = text_matrices(base) if mode == "paper" else 0
    if cache is None:
        layer_grams, summaries = survey(base, models, device=device)
    else:
        keys = contents(cache, [base, *models])
        layer_grams, summaries = kept_survey(cache, base, models, keys, device)
    x = ingredients(base, models, summaries, zeros, layer_grams)
    rows = [*METRICS.rows(), *(EXTRA.rows() if extra else ())]
    names = [row.name for row in rows if row.category in OF_WEIGHTS]
    return pairwise(x, [_name(Path(model)) for model in models], names, mode)


def _name(path: Path) -> str:
    return path.name if path.is_dir() else path.stem
