"""How much of a model goes into each tensor of a merge: numbers, gradients over layers, filters.

A weight is a number; a list of numbers, a gradient, which stretches over the blocks of each tower
from the first to the last, linear between, and whose first number counts outside of blocks (in the
head too, as in mergekit 0.1.5: give it a filter); or a list of {filter, value} whose value is one
of both: the first entry whose filter is part of the tensor's name counts ("*", or no filter: all).
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mergelib.core.errors import MergelibError
from mergelib.merging.registry import NUMBER

Weight = float | list[float] | list[dict[str, Any]]

# A numbered block: layers.3., resblocks.3., transformer.h.3., stages.1.layers.0., layer1.
BLOCK = re.compile(r"(?:^|\.)(?:layers?|(?:res|dec)?blocks?|h|stages?)\.?(\d+)(?=\.)")


def checked(weight: Any, where: str) -> Weight:
    """The weight, a lone {filter, value} as a list. Raises MergelibError, naming it, if it is none.

    An entry after one that counts for every tensor is a mistake too.
    """
    if NUMBER.accepts(weight) or _is_gradient(weight):
        return weight
    entries = [weight] if isinstance(weight, Mapping) else weight
    if not isinstance(entries, list) or not all(isinstance(e, Mapping) for e in entries):
        raise MergelibError(
            f"{where}: a weight must be a number, a list of numbers, or a list of filter and "
            f"value, not {weight!r}"
        )
    if not entries:
        raise MergelibError(f"{where}: a weight must not be an empty list")
    for entry in entries:
        if not {"value"} <= set(entry) <= {"filter", "value"}:
            raise MergelibError(f"{where}: an entry has filter and value, not {dict(entry)!r}")
        if not isinstance(entry.get("filter", ""), str):
            raise MergelibError(f"{where}: a filter is part of a name, not {entry['filter']!r}")
        if not (NUMBER.accepts(entry["value"]) or _is_gradient(entry["value"])):
            raise MergelibError(
                f"{where}: a value is a number or a list of numbers, not {entry['value']!r}"
            )
    if any(_for_all(entry) for entry in entries[:-1]):
        raise MergelibError(f"{where}: entries after one for every tensor never count: put it last")
    return [dict(entry) for entry in entries]


def _is_gradient(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(NUMBER.accepts(each) for each in value)


def _for_all(entry: Mapping[str, Any]) -> bool:
    return entry.get("filter", "*") == "*"


def positions(names: Iterable[str]) -> dict[str, float]:
    """Where each tensor is along its tower: 0 in the first block, 1 in the last.

    A tower is what stands before the first block's number; blocks in stages are counted through.
    A lone block is at 1, what is outside of blocks at 0.
    """
    found = {name: _block(name) for name in names}
    towers: dict[str, set[tuple[int, ...]]] = {}
    for tower, block in found.values():
        if block:
            towers.setdefault(tower, set()).add(block)
    places = {}
    for tower, blocks in towers.items():
        last = max(len(blocks) - 1, 1)
        for i, block in enumerate(sorted(blocks)):
            places[tower, block] = i / last if len(blocks) > 1 else 1.0
    return {name: places.get(where, 0.0) for name, where in found.items()}


def _block(name: str) -> tuple[str, tuple[int, ...]]:
    """The tower of a tensor, and the numbers of its block; none outside of blocks."""
    matches = list(BLOCK.finditer(name))
    tower = name[: matches[0].start()] if matches else ""
    return tower, tuple(int(match[1]) for match in matches)


def entries(weight: Weight) -> list[dict[str, Any]]:
    """A weight of any form as a list of {filter, value}."""
    if isinstance(weight, list) and isinstance(weight[0], dict):
        return [each for each in weight if isinstance(each, dict)]
    return [{"value": weight}]


def value_at(weight: Weight, name: str, place: float) -> float:
    """The weight of one tensor. Raises MergelibError, naming it, if no entry counts for it."""
    found = (e["value"] for e in entries(weight) if _for_all(e) or e["filter"] in name)
    value = next(found, None)
    if value is None:
        raise MergelibError(f"no weight for tensor {name!r}: add an entry without filter")
    if not isinstance(value, list):
        return float(value)
    at = place * (len(value) - 1)
    low = min(int(at), max(len(value) - 2, 0))
    high = min(low + 1, len(value) - 1)
    return value[low] + (at - low) * (value[high] - value[low])


def weights_by_name(
    weights: Sequence[Weight], names: Iterable[str], normalize: bool
) -> dict[str, list[float]]:
    """The weights of T models by tensor; with `normalize` they are 1 on average in every tensor.

    Raises MergelibError for a filter that is part of no name, a gradient where no name has a block,
    a tensor without weight, and weights to be normalized whose sum is 0.
    """
    where = positions(names)
    graded = any(isinstance(e["value"], list) for weight in weights for e in entries(weight))
    if graded and not any(_block(name)[1] for name in where):
        raise MergelibError(
            "no tensor's name has a numbered block: give numbers, not lists of them"
        )
    for entry in (each for weight in weights for each in entries(weight)):
        if not _for_all(entry) and not any(entry["filter"] in name for name in where):
            raise MergelibError(f"filter {entry['filter']!r} is part of no tensor's name: mend it")
    out = {}
    for name, place in where.items():
        row = [value_at(weight, name, place) for weight in weights]
        if normalize:
            total = math.fsum(row)
            if total == 0:
                raise MergelibError(f"the weights of tensor {name!r} sum to 0: change one")
            row = [value * len(row) / total for value in row]
        out[name] = row
    return out
