"""Merging: T fine-tuned models and their base in, one state dict out.

Six methods, one file each, listed in `METHODS` (`METHODS.table()` gives them as a table):

========== ================================================ ======================================
name       merged task vector Δ of a tensor                 parameters (ours; paper; original)
========== ================================================ ======================================
weight_avg (1/T) Σ τt                                       none
arithmetic α Σ τt                                           alpha 0.3; 0.3; 0.4
ties       α · disjoint mean of trimmed τt, elected signs   density 0.2, alpha 0.3; 0.3; 1.0
dare       α (1/T) Σ mask τt / (1 − p), random              drop_rate 0.9, alpha 1.0
tsv        α U⊥ diag(S) V⊥ᵀ of the leading triplets         alpha 1.0
isotropic  α mean(σ) UVᵀ of Σ τt                            alpha 1.0, truncate false; true; false
========== ================================================ ======================================

τt = θt − θ0 is a task vector; the merged model is θ0 + Δ. `preset(name, edition)` gives the
parameters of an edition: `corrected` (ours), `paper` (behind the released numbers of arXiv
2601.22285) or `original` (the method's own authors).

Accuracy: task vectors and all that follows are float64, rounded once to float32 at the end, so
the result does not depend on the number of threads beyond that rounding, except where a matrix is
so close to rank-deficient (condition number c) that its polar factor moves by c times 1e-16.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from mergelib.errors import MergelibError
from mergelib.merging.catalogue import EDITIONS, METHODS, Method, Parameter, method, preset
from mergelib.merging.layer import Layer
from mergelib.merging.stream import sweep
from mergelib.vectors import Source, opened

__all__ = ["EDITIONS", "METHODS", "Method", "Parameter", "merge", "method", "preset"]

# Importing a method's file registers it; the order is that of the published tables.
for _name in ("weight_avg", "arithmetic", "ties", "dare", "tsv", "isotropic"):
    import_module(f"mergelib.merging.{_name}")


def merge(
    base: Source,
    tuned: Sequence[Source],
    method: str,
    seed: int = 0,
    factors: Sequence[Source] | None = None,
    **params: Any,
) -> dict[str, Tensor]:
    """Merge fine-tuned models: θ0 + Δ(τ1 … τT), tensor by tensor.

    `base` and each of `tuned` are state dicts, or paths of safetensors files (read one tensor at a
    time), with the same names and shapes. Floating tensors are merged in float64 and returned in
    float32, on the device of the base; others (counters, masks) are copied from the base. `seed`
    matters for random methods only (`METHODS[method].random`). Raises MergelibError for an unknown
    method, a wrong parameter, no model, other names or shapes, NaN, and a file that cannot be read.
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

    def add(start: Tensor, layer: Layer) -> Tensor:
        return (start + row.function(layer, **params)).float()

    merged = dict(sweep(base, tuned, add, factors))
    with opened(base) as origin:
        for name in origin.shapes.keys() - origin.floating:
            merged[name] = origin.get(name).clone()
        return {name: merged[name] for name in origin.shapes}
