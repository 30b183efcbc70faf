"""The metrics table: every registered metric of every pair of models."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mergelib.checkpoints.digests import content_digests
from mergelib.checkpoints.names import names_of_paths
from mergelib.checkpoints.reading import Source, View, text_matrices, views
from mergelib.checkpoints.selection import Choice
from mergelib.core.errors import MergelibError, tell
from mergelib.lineage.detect import findings
from mergelib.metrics.cache import cached_survey
from mergelib.metrics.inputs import Inputs, read_inputs
from mergelib.metrics.registry import METRICS, check_edition, published_metrics
from mergelib.metrics.weights import survey

if TYPE_CHECKING:  # half a second, which merging does without
    import pandas as pd

OF_WEIGHTS = ("task_vector", "effective_rank", "subspace", "principal_angles")


def pairwise(
    x: Inputs,
    tasks: Sequence[str],
    names: Iterable[str] | None = None,
    edition: str = "corrected",
) -> "pd.DataFrame":
    """The metrics table: task_a, task_b and one float64 column per metric.

    One row per unordered pair i < j in the order of `tasks`, T (T − 1) / 2 rows; columns in
    registration order: the published 28, or those in `names`, which may name extra ones (they come
    last). `edition="paper"` repeats the published choices of the weight metrics: subspace_overlap
    divided by k, and matrices that are zero counted in the subspace means. The calibration pool and
    the heads are those of the summaries in either (`mean_activation` has its own paper edition,
    `published_gradients` is that of the gradient metrics).
    Raises MergelibError for an unknown metric or edition, a task list that does not fit, or a
    metric whose input is missing.
    """
    import pandas as pd

    check_edition(edition)
    tasks = list(tasks)
    if len(tasks) != len(x.gram) or len(set(tasks)) != len(tasks):
        raise MergelibError(
            f"{len(tasks)} task names ({len(set(tasks))} different) for {len(x.gram)} models: "
            "give each model one name of its own"
        )
    wanted = published_metrics() if names is None else [METRICS[name].name for name in names]
    first, second = np.triu_indices(len(tasks), k=1)
    table: dict[str, Any] = {
        "task_a": [tasks[i] for i in first],
        "task_b": [tasks[j] for j in second],
    }
    for row in METRICS.rows():
        if row.name in wanted:
            table[row.name] = np.asarray(row(x, edition), dtype=np.float64)[first, second]
    return pd.DataFrame(table)


def weight_metrics(extra: bool = False) -> list[str]:
    """Names of the published metrics that weights alone give; `extra` adds the principal angles."""
    rows = [row for row in METRICS.rows() if row.category in OF_WEIGHTS]
    return [row.name for row in rows if row.published or extra]


def pairwise_of_checkpoints(
    base: Source,
    models: Mapping[str, Source] | Sequence[Path],
    names: Iterable[str] | None = None,
    edition: str = "corrected",
    cache: Path | None = None,
    device: str = "cpu",
    choice: Choice | None = None,
    whole: bool = False,
) -> "pd.DataFrame":
    """The metrics of checkpoints that their weights give: `weight_metrics`, or those in `names`.

    Formats: `mergelib.checkpoints.formats`. Of a CLIP the image tower is measured, or the `whole`;
    `choice` leaves tensors out. Models that come as a list of paths are named by what tells these
    apart (`mergelib.checkpoints.names`). `edition="paper"` also counts the matrices of the base's
    text side, as zero. `cache` is a folder that keeps what was computed, by content, so that one
    more model costs its own pass. A model that is of another base, reparameterised or equal to
    another one is told of (`mergelib.lineage`), and measured. `device` is where factors and Gram
    matrices are computed. Raises MergelibError for fewer than two models, one given twice, where no
    model differs from the base, an unknown metric or edition, and as
    `mergelib.checkpoints.task_vectors.task_vectors` does.
    """
    check_edition(edition)
    names = weight_metrics() if names is None else [METRICS[name].name for name in names]
    if len(models) < 2:
        raise MergelibError(f"{len(models)} model: metrics compare two or more, give another")
    named = models if isinstance(models, Mapping) else None
    labels = names_of_paths([Path(m) for m in models]) if named is None else list(named)
    sources: list[Source] = [*models] if named is None else [*named.values()]
    zeros = text_matrices(base) if edition == "paper" else 0
    base, shown, found = views(base, sources, choice, whole)
    tell(found.notes)
    tell(str(each) for each in findings(base, shown) if each.kind != "equal_to_base")
    x = _inputs(base, shown, cache, device, zeros)
    _check_moved(x, labels, whole)
    return pairwise(x, labels, names, edition)


def pairwise_of_views(
    base: View, models: Mapping[str, View], cache: Path | None = None
) -> "pd.DataFrame":
    """The `weight_metrics` of models whose lineage is known; `cache` as above.

    Raises MergelibError as `pairwise_of_checkpoints` does.
    """
    x = _inputs(base, list(models.values()), cache)
    return pairwise(x, list(models), weight_metrics())


def _inputs(
    base: View, models: Sequence[View], cache: Path | None, device: str = "cpu", zeros: int = 0
) -> Inputs:
    summaries: Sequence[Source]
    if cache is None:
        layer_grams, summaries = survey(base, models, device=device)
    else:
        keys = content_digests(cache, [base, *models])
        layer_grams, summaries = cached_survey(cache, base, models, keys, device)
    return read_inputs(base, models, summaries, zeros, layer_grams)


def _check_moved(x: Inputs, labels: Sequence[str], whole: bool) -> None:
    """Tell of models that are the base; raise MergelibError if all are."""
    still = [label for label, norm in zip(labels, np.diagonal(x.gram), strict=True) if not norm]
    of = "all that is measured" + ("" if whole else " (of a CLIP the image tower)")
    if len(still) == len(labels):
        raise MergelibError(
            f"every model is the base in {of}: there is nothing to measure; if text towers were "
            "tuned, measure whole models (--whole)"
        )
    if still:
        tell([f"model {label!r} is the base in {of}: its metrics say nothing" for label in still])
