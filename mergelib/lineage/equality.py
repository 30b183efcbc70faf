"""Checkpoints that hold the same numbers, whatever path, format or layout they come in."""

import math
from collections.abc import Sequence

from mergelib.checkpoints.digests import tensor_digest
from mergelib.checkpoints.reading import Source, opened

RUN = 16  # tensors between openings, as pages of a mapped file count as memory until it closes


def equal(sources: Sequence[Source]) -> list[list[int]]:
    """The places of sources that hold equal numbers, in groups of two and more.

    All show the same names. Groups are split tensor by tensor, small ones first, until none is
    left: models that differ do so in the first few.
    """
    with opened(sources[0]) as weights:
        shapes = weights.shapes
        names = sorted(shapes, key=lambda name: (math.prod(shapes[name]), name))
    groups = [list(range(len(sources)))]
    for start in range(0, len(names), RUN):
        split = [_split(sources, group, names[start : start + RUN]) for group in groups]
        groups = [part for parts in split for part in parts if len(part) > 1]
        if not groups:
            break
    return groups


def _split(
    sources: Sequence[Source], group: Sequence[int], names: Sequence[str]
) -> list[list[int]]:
    """A group by what its members hold under these names."""
    held: dict[tuple[str, ...], list[int]] = {}
    for k in group:
        with opened(sources[k]) as weights:
            numbers = tuple(tensor_digest(weights.get(name).double()) for name in names)
            held.setdefault(numbers, []).append(k)
    return list(held.values())
