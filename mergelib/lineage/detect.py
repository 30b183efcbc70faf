"""Models that a merge with this base would ruin: found by weights alone, named before the work.

What training does and what rewriting does are told apart by two numbers of each part of a
transformer: how far its weights are from the base's, and how far what they compute is
(`mergelib.lineage.invariants`). Training moves both, a symmetry the first alone; of another base
neither is left. Checked are the parts that `mergelib.lineage.symmetries` knows.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from mergelib.checkpoints.layouts import Arranged
from mergelib.checkpoints.output.shards import bytes_of
from mergelib.checkpoints.reading import Source, View, opened, opened_models, views
from mergelib.core.threads import threaded
from mergelib.lineage.equality import equal
from mergelib.lineage.heads import find_heads
from mergelib.lineage.invariants import SMALL, Change, compare
from mergelib.lineage.symmetries import Part, parts, read

COLUMNS = 64  # of the residual stream that are looked at: any of them are invariant alone,
# and its dimensions have no order that would make the first ones special
BATCH = 2**29  # bytes of parts between openings: pages of a mapped file count until it closes

# Training goes across the symmetries, no gradient has their direction: its ratios are about 1,
# those of locks 4 and more (tests/test_lineage.py holds both).
RATIO = 2.0
UNRELATED = 0.5

Kind = Literal["equal_to_base", "equal_to_model", "foreign", "reparameterised"]


@dataclass(frozen=True)
class Finding:
    """What is wrong with a model, in which tensors (under the base's names), and what shows it.

    `model` is its place among the models, `label` its file; `other` the place of the one that it
    equals; no tensors, where all are meant. `ratio` is the relative change of weights over that of
    what they compute, √(d_weights / d_function), the largest of those tensors; 1 for equal ones.
    """

    kind: Kind
    model: int
    label: str
    tensors: tuple[str, ...]
    ratio: float
    other: int | None = None

    def __str__(self) -> str:
        """A line for who gave the model: what it is, where, and the mend."""
        if self.kind == "equal_to_base":
            return f"{self.label} is the base: leave it out, or give the model that was meant"
        if self.kind == "equal_to_model":
            return f"{self.label} holds what model {self.other} holds: leave one of them out"
        where = ", ".join(self.tensors[:3])
        where += f" and {len(self.tensors) - 3} more" * (len(self.tensors) > 3)
        if self.kind == "foreign":
            return (
                f"{self.label} does not come from this base: {where} have nothing in common with "
                "the base's, and a merge would ruin them; give the base that it was fine-tuned from"
            )
        return (
            f"{self.label} was reparameterised: {where} are permuted or rescaled versions of the "
            "base's, which compute alike and do not merge; give the model as it was trained, or "
            "undo it by --canonicalize (canonicalize=True), if its owner agrees"
        )


def findings(base: Source, models: Sequence[Source]) -> list[Finding]:
    """What is wrong with models as descendants of a base; nothing for those that are.

    Equality is of all numbers, whatever their types. A part is foreign where what it computes is
    farther from the base's than d = 1/2, reparameterised where its weights moved twice as far,
    relatively, as what they compute. Adapters, which come with their base, and models without known
    parts are checked for equality only; heads that share K and V, and units of a gated perceptron
    that are rescaled, are not checked. Raises MergelibError as `opened_models` does, for NaN, and
    for a config whose heads do not fit.
    Source: the locks of MergeLock (arXiv 2509.01548) and PaRaMS (2503.07661), by what they keep.
    """
    base, models = as_views(base, models)
    found, is_base = [], set()
    for first, *rest in equal([base, *models]):
        kind: Kind = "equal_to_model" if first else "equal_to_base"
        is_base |= {k - 1 for k in rest} if not first else set()
        for k in rest:
            other = first - 1 if first else None
            found.append(Finding(kind, k - 1, models[k - 1].label, (), 1.0, other))
    moved = [k for k, each in enumerate(models) if k not in is_base and each.base is None]
    for k, changes in zip(moved, _changes(base, [models[k] for k in moved]), strict=True):
        found += _of_model(k, models[k].label, changes)
    return sorted(found, key=lambda each: each.model)


Changes = list[tuple[Part, list[Change]]]  # of a model, by part


def _of_model(place: int, label: str, changes: Changes) -> list[Finding]:
    """What a model's parts say: at most one finding a kind, with all tensors that show it."""
    found = []
    tests: dict[Kind, Callable[[Sequence[Change]], bool]]
    tests = {"foreign": _is_foreign, "reparameterised": is_rewritten}
    for kind, test in tests.items():
        shown = [(part, each) for part, each in changes if test(each)]
        if shown:
            names = tuple(name for part, _ in shown for name in part.tensors)
            ratio = max(_ratio(change) for _, each in shown for change in each)
            found.append(Finding(kind, place, label, names, ratio))
    return found


def as_views(base: Source, models: Sequence[Source]) -> tuple[View, list[View]]:
    """A base and its models as views of all that they share, unless they are views already."""
    if isinstance(base, View) and all(isinstance(model, View) for model in models):
        return base, [model for model in models if isinstance(model, View)]
    origin, shown, _ = views(base, models, whole=True)
    return origin, shown


def _is_foreign(changes: Sequence[Change]) -> bool:
    return any(each.function > UNRELATED for each in changes)


def is_rewritten(changes: Sequence[Change]) -> bool:
    """Whether a part's weights moved, and much farther than what they compute."""
    moved = any(each.weights > SMALL and _ratio(each) > RATIO for each in changes)
    return moved and not _is_foreign(changes)


def _ratio(change: Change) -> float:
    """Relative change of weights over that of what they compute."""
    if not change.function:
        return math.inf if change.weights else 1.0
    return math.sqrt(change.weights / change.function)


def _changes(base: Source, models: Sequence[Source]) -> list[Changes]:
    """How far every part of each model is from the base's; parts are worked on in parallel."""
    if not models:
        return []
    with opened(base) as origin:
        runs = _runs(origin, len(models) + 1)

    found: list[Changes] = [[] for _ in models]
    for run in runs:
        with opened_models(base, models) as (origin, others):
            work = partial(_of_part, [base, *models], origin, others)
            for part, by_model in zip(run, threaded(work, run), strict=True):
                for changes, change in zip(found, by_model, strict=True):
                    changes.append((part, change))
    return found


def _runs(origin: Arranged, copies: int) -> list[list[Part]]:
    """The parts in runs of about BATCH bytes."""
    runs: list[list[Part]] = [[]]
    room = BATCH
    for part in parts(origin.shapes):
        runs[-1].append(part)
        room -= copies * sum(bytes_of(origin.dtypes[n], origin.shapes[n]) for n in part.tensors)
        if room <= 0:
            runs.append([])
            room = BATCH
    return [run for run in runs if run]


@torch.no_grad()  # which holds for one thread only
def _of_part(
    sources: Sequence[Source], origin: Arranged, others: Sequence[Arranged], part: Part
) -> list[list[Change]]:
    """How far one part of each model is from the base's."""
    rows, _ = part.size(origin.shapes)
    heads = find_heads(sources, part, rows) if part.attention else None
    start = read(origin, part, COLUMNS, torch.float32)
    found = []
    for other in others:
        changes = compare(part.attention, start, read(other, part, COLUMNS, torch.float32), heads)
        if not all(math.isfinite(value) for change in changes for value in change):
            for weights in (origin, other):
                for name in part.tensors:
                    weights.read(name)  # which tells the name of what is not finite
        found.append(changes)
    return found
