"""Merges tried on a few images: every method's, of a pair or a set, beside experts and base."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mergelib.checkpoints.reading import View, opened
from mergelib.core.errors import MergelibError
from mergelib.forecasting.encoders import Encoder
from mergelib.forecasting.evidence import Probe
from mergelib.forecasting.heads import Head
from mergelib.forecasting.statistics import Outputs, statistics
from mergelib.merging.cache import cached_factors
from mergelib.merging.engine import Plan, merged
from mergelib.merging.registry import METHODS, preset

BATCH = 10  # images at a time: a ViT-B/16 at 224 pixels keeps below 100 MB with these


@dataclass(frozen=True)
class Side:
    """A task to look at: `pixels` (n, 3, H, W) as the encoder wants them, labels (n,), its head."""

    name: str
    pixels: Tensor
    labels: Tensor | None = None
    head: Head | None = None


@dataclass(frozen=True)
class Bench:
    """Base and T models as views of the same tensors, an encoder, a side a model.

    `experts` and `base_on` are what the fine-tuned models and the base make of their sides.
    """

    base: View
    models: tuple[View, ...]
    encoder: Encoder
    sides: tuple[Side, ...]
    experts: tuple[Outputs, ...]
    base_on: tuple[Outputs, ...]


def prepare(
    base: View,
    models: Sequence[View],
    encoder: Encoder,
    sides: Sequence[Side],
    step: Callable[[], object] = lambda: None,
) -> Bench:
    """Run base and experts, once a task; `step` is called after each model.

    Raises MergelibError as encoder and heads do, and for labels that the head has no class for.
    """
    for side in sides:
        _check_labels(side)
    encoder.write(_state(base, base))
    before = tuple(_outputs(encoder, side) for side in sides)
    step()
    after = []
    for model, side in zip(models, sides, strict=True):
        encoder.write(_state(base, model))
        after.append(_outputs(encoder, side))
        step()
    return Bench(base, tuple(models), encoder, tuple(sides), tuple(after), before)


def probe(
    bench: Bench,
    members: Sequence[int],
    methods: Sequence[str],
    seed: int = 0,
    cache: Path | None = None,
    step: Callable[[], object] = lambda: None,
) -> dict[str, tuple[Probe, ...]]:
    """What merges of some models, by every method, make of these models' tasks: a probe a side.

    Merges have the corrected edition's parameters; `seed` is of random methods. With `cache`, a
    folder of factors (`mergelib.merging.cache`), tsv factors every model once, however many pairs
    it is in. `step` is called after each method. Raises MergelibError as `engine.merge` does.
    """
    with opened(bench.base) as weights:
        own = weights.own
        names = [part for parts in weights.layout.values() for part in parts.names]
        spec = {name: (own.dtypes[name], own.shapes[name]) for name in names}
    models = tuple(bench.models[m] for m in members)
    planned = Plan(bench.base, models, spec, (), ())
    found = {}
    for method in methods:
        factors = None
        if cache is not None and METHODS[method].factored:
            factors = cached_factors(cache, bench.base, models)
        bench.encoder.write(dict(merged(planned, method, seed, factors, **preset(method))))
        found[method] = tuple(
            statistics(
                _outputs(bench.encoder, bench.sides[m]),
                bench.experts[m],
                bench.base_on[m],
                bench.sides[m].labels,
            )
            for m in members
        )
        step()
    return found


def _state(base: View, model: View) -> dict[str, Tensor]:
    """A model's tensors under the names in the base's file."""
    return dict(_under_own_names(base, model))


def _under_own_names(base: View, model: View) -> Iterator[tuple[str, Tensor]]:
    with opened(base) as origin, opened(model) as weights:
        for name in weights.shapes:
            yield from origin.under_own_names(name, weights.read(name))


@torch.inference_mode()
def _outputs(encoder: Encoder, side: Side) -> Outputs:
    try:
        features = torch.cat([encoder.embed(part).float() for part in side.pixels.split(BATCH)])
    except RuntimeError as error:  # torch's word for images of another size than the encoder's
        raise MergelibError(
            f"the images of {side.name} do not suit the encoder {encoder.name} "
            f"({' '.join(str(error).split())[:200]}): check --backbone and the preprocessing files"
        ) from None
    return Outputs(features, None if side.head is None else side.head.scores(features))


def _check_labels(side: Side) -> None:
    if side.labels is not None and side.head is not None:
        classes = len(side.head.weight)
        if int(side.labels.max()) >= classes:
            raise MergelibError(
                f"labels of {side.name} go up to {int(side.labels.max())}, but its head has "
                f"{classes} classes: give the head of this task, or labels from 0 to {classes - 1}"
            )


def pairs_of(count: int) -> list[tuple[int, int]]:
    """All pairs i < j."""
    return [(i, j) for i in range(count) for j in range(i + 1, count)]
