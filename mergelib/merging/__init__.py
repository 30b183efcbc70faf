"""Merging: T fine-tuned models and their base in, one state dict out.

Ten methods, one file each, listed in `METHODS` (`METHODS.table()` gives them as a table):

=============== =============================================== ====================================
name            merged task vector Δ of a tensor                parameters (ours; paper; original)
=============== =============================================== ====================================
weight_avg      (1/T) Σ τt                                      none
arithmetic      α Σ τt                                          alpha 0.3; 0.3; 0.4
ties            α · disjoint mean of trimmed τt, elected signs  density 0.2, alpha 0.3; 0.3; 1.0
dare            α (1/T) Σ mask τt / (1 − p), random             drop_rate 0.9, alpha 1.0
tsv             α U⊥ diag(S) V⊥ᵀ of the leading triplets        alpha 1.0
isotropic       α mean(σ) UVᵀ of Σ τt                           alpha 1.0, truncate false; true;
                                                                false
iso_cts         α mean(σ) U⊥V⊥ᵀ, common and own directions      alpha 1.0, common 0.8
tall_masks      α Σ τt where enough tasks show in it            threshold 0.4, alpha 1.0, agree 1
                                                                for a pair, else 2; same; 2
emr             sign of Σ τt, largest |τt| of that sign         none
base_protecting α Σ wt τt / Σ wt                                weights equal, alpha 1.0
=============== =============================================== ====================================

τt = θt − θ0 is a task vector; the merged model is θ0 + Δ. `preset(name, edition)` gives the
parameters of an edition: `corrected` (ours), `paper` (behind the released numbers of arXiv
2601.22285) or `original` (the method's own authors). `tall_masks` and `emr` also give the model of
one task, `task=t`, from what is shared by all: t counts from 0 in the order of the models.

Accuracy: task vectors and what is done elementwise are float64, rounded once to float32 at the end.
Singular vectors and polar factors come from float64 eigenvectors of the smaller Gram matrix, and
what these blur is found from the matrix itself. For matrices of 2^18 entries and more the large
products of tsv and iso_cts run in float32: relative error of Δ about 3e-6.
Tensors are worked on one to a core, so the result does not depend on the number of cores.

Memory: tensors are read one by one, and a few task vectors are held at a time; so any number of
models takes the merged state dict, and some hundred MB.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergelib.checkpoints import of_mapping
from mergelib.errors import MergelibError
from mergelib.merging.catalogue import EDITIONS, METHODS, Method, Parameter, method, preset
from mergelib.merging.layer import Layer
from mergelib.merging.stream import sweep
from mergelib.vectors import Source, check_same, opened

__all__ = ["EDITIONS", "METHODS", "Method", "Parameter", "merge", "method", "preset"]

# Importing a method's file registers it; the order is that of the published tables, then ours.
for _name in (
    *("weight_avg", "arithmetic", "ties", "dare", "tsv", "isotropic"),
    *("iso_cts", "tall_masks", "emr", "base_protecting"),
):
    import_module(f"mergelib.merging.{_name}")


def merge(
    base: Source,
    tuned: Sequence[Source],
    method: str,
    seed: int = 0,
    factors: Sequence[Source] | None = None,
    into: Mapping[str, Tensor] | None = None,
    **params: Any,
) -> dict[str, Tensor]:
    """Merge fine-tuned models: θ0 + Δ(τ1 … τT), tensor by tensor.

    `base` and each of `tuned` are state dicts, or checkpoints (`mergelib.checkpoints`; read tensor
    by tensor), with the same names and shapes. Floating tensors come in float32, on the device of
    the base; others (counters, masks) are copied from the base. `seed` matters for random methods
    only (`METHODS[method].random`). `factors`, one file of `mergelib.merging.kept` a model, spares
    tsv the decompositions; other methods do without. `into` are the tensors to write to (say, those
    of a model that evaluates one merge after another); they are returned. Raises MergelibError for
    an unknown method, a wrong parameter, no model, other names or shapes (of `into` too), NaN, and
    a file that cannot be read.
    """
    row = METHODS[method]
    params = row.check(params)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise MergelibError(f"{method}: seed must be a whole number, not {seed!r}")
    if row.random:
        params["seed"] = seed
    if isinstance(tuned, (Mapping, str, Path)):
        raise MergelibError(
            "the fine-tuned models must come as a list, even one alone: give [model]"
        )

    if row.survey is not None:
        parts = sweep(base, tuned, lambda start, layer: row.survey(layer, **params))
        params = {**params, "surveyed": torch.stack([part for _, part in parts]).sum(0)}

    if into is not None:
        with opened(base, "the base") as origin:
            check_same(origin, of_mapping(into, "the tensors to write to"))

    def add(start: Tensor, layer: Layer) -> Tensor:
        tensor = start + row.function(layer, **params)
        return tensor.float() if into is None else into[layer.name].copy_(tensor)

    merged = dict(sweep(base, tuned, add, factors))
    with opened(base) as origin:
        for name in origin.shapes.keys() - origin.floating:
            tensor = origin.get(name)
            merged[name] = tensor.clone() if into is None else into[name].copy_(tensor)
        return {name: merged[name] for name in origin.shapes}
