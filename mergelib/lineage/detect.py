"""Models that a merge with this base would ruin: found by weights alone, named before the work.

What training does and what rewriting does are told apart by two numbers of each part of a
transformer: how alike its weights are to the base's, and how alike what they compute is
(`mergelib.lineage.invariants`). Training moves both, a symmetry the first alone; of another base
neither is left. Checked are the parts that `mergelib.lineage.symmetries` knows.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from mergelib.checkpoints.digests import tensor_digest
from mergelib.checkpoints.layouts import Arranged
from mergelib.checkpoints.reading import Source, View, opened, opened_models, views
from mergelib.core.threads import threaded
from mergelib.lineage.heads import known_heads
from mergelib.lineage.invariants import Alike, compare
from mergelib.lineage.symmetries import Part, parts, read

COLUMNS = 128  # of the residual stream that are looked at: any of them are invariant alone
RUN = 4  # parts between which mapped files are let go

# Of the twenty glyph experts, in any part: ratio at most 1.0, function at least 0.96. Locked they
# have 5.2 or more and the same function; fresh models of the architecture 1.1 and at most 0.20.
RATIO = 2.0
UNRELATED = 0.5
SMALL = 0.005  # 1 − e of weights that moved by a tenth: less harms no merge

Kind = Literal["equal_to_base", "equal_to_model", "foreign", "reparameterised"]


@dataclass(frozen=True)
class Finding:
    """What is wrong with a model, in which tensors (under the base's names), and what shows it.

    `model` is its place among the models, `label` its file; `other` the place of the one that it
    equals. `ratio` is the relative change of weights over that of what they compute, √((1 − e_w) /
    (1 − e_f)), of the part where it is the largest (reparameterised) or the median one (foreign);
    1 for equal ones.
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

    Equality is of all tensors, to the bit. A part is foreign where 1 of what it computes is left
    (e_f below 1/2), reparameterised where its weights moved twice as far, relatively, as what they
    compute. Adapters, which come with their base, are checked for equality only. Models without
    known parts likewise. Raises MergelibError as `opened_models` does, for NaN and for a config
    whose heads do not fit.
    Source: the lock of MergeLock (arXiv 2509.01548) and PaRaMS (2503.07661), by its invariants.
    """
    if not all(isinstance(source, View) for source in (base, *models)):
        base, shown, _ = views(base, models, whole=True)
        models = shown
    found = _equal(base, models)
    same = {each.model for each in found}
    for model, alike in _compared(base, models, same).items():
        label = _label(models[model])
        foreign = [(p, a) for p, a in alike if _is_foreign(a)]
        rewritten = [(p, a) for p, a in alike if is_rewritten(a)]
        kinds: tuple[tuple[Kind, list], ...]
        kinds = (("foreign", foreign), ("reparameterised", rewritten))
        for kind, some in kinds:
            if some:
                ratios = sorted(_ratio(each) for _, a in some for each in a)
                ratio = ratios[-1] if kind == "reparameterised" else ratios[len(ratios) // 2]
                names = tuple(name for part, _ in some for name in part.tensors)
                found.append(Finding(kind, model, label, names, ratio))
    return sorted(found, key=lambda each: each.model)


def _is_foreign(alike: Sequence[Alike]) -> bool:
    return any(each.function < UNRELATED for each in alike)


def is_rewritten(alike: Sequence[Alike]) -> bool:
    """Whether a part's weights moved, and much farther than what they compute."""
    moved = any(1 - a.weights > SMALL and _ratio(a) > RATIO for a in alike)
    return moved and not _is_foreign(alike)


def _ratio(alike: Alike) -> float:
    """Relative change of weights over that of what they compute."""
    changes = [math.sqrt(max(0.0, 1 - each)) for each in alike]
    return changes[0] / changes[1] if changes[1] else (math.inf if changes[0] else 1.0)


def _label(source: Source) -> str:
    return source.label if isinstance(source, View) else str(source)


def _equal(base: Source, models: Sequence[Source]) -> list[Finding]:
    """Models that hold the base's numbers, or those of a model before them.

    Groups of equal ones are split tensor by tensor, small ones first, until none is left: models
    that differ do so in the first few.
    """
    sources = [base, *models]
    with opened(base) as origin:
        sizes = {name: math.prod(shape) for name, shape in origin.shapes.items()}
    names = sorted(sizes, key=lambda name: (sizes[name], name))
    groups = [list(range(len(sources)))]
    for start in range(0, len(names), RUN):
        groups = [group for group in groups if len(group) > 1]
        if not groups:
            return []
        groups = [
            part for group in groups for part in _split(sources, group, names[start : start + RUN])
        ]
    found = []
    for first, *rest in groups:
        kind: Kind = "equal_to_model" if first else "equal_to_base"
        other = first - 1 if first else None
        for k in rest:
            label = _label(sources[k])
            found.append(Finding(kind, k - 1, label, tuple(sorted(names)), 1.0, other))
    return found


def _split(sources: Sequence[Source], group: list[int], names: Sequence[str]) -> list[list[int]]:
    """A group by what its members hold under these names."""
    held: dict[tuple[str, ...], list[int]] = {}
    for k in group:
        with opened(sources[k]) as weights:
            held.setdefault(tuple(tensor_digest(weights.get(n)) for n in names), []).append(k)
    return list(held.values())


def _compared(
    base: Source, models: Sequence[Source], same: set[int]
) -> dict[int, list[tuple[Part, list[Alike]]]]:
    """By model, how alike every part of it is to the base's; not of adapters, nor of the base."""
    some = [
        k
        for k, each in enumerate(models)
        if k not in same and not (isinstance(each, View) and each.base is not None)
    ]
    with opened(base) as origin:
        shapes = origin.shapes
    there = parts(shapes) if some else []

    def of_run(run: Sequence[Part]) -> list[tuple[Part, list[list[Alike]]]]:
        with opened_models(base, [models[k] for k in some]) as (origin, others):
            return [(part, list(_part(base, origin, others, part))) for part in run]

    found: dict[int, list[tuple[Part, list[Alike]]]] = {k: [] for k in some}
    runs = [there[start : start + RUN] for start in range(0, len(there), RUN)]
    for done in threaded(of_run, runs):
        for part, alikes in done:
            for k, alike in zip(some, alikes, strict=True):
                found[k].append((part, alike))
    return found


@torch.no_grad()
def _part(
    base: Source, origin: Arranged, others: Sequence[Arranged], part: Part
) -> Iterator[list[Alike]]:
    """How alike one part of each model is to the base's."""
    rows, width = part.size(origin.shapes)
    columns = torch.arange(0, width, -(-width // COLUMNS))
    heads = known_heads(base, part, rows) if part.attention else None
    start = read(origin, part, columns)
    for other in others:
        yield compare(part.attention, start, read(other, part, columns), heads)
