"""What metrics and methods do on two small made models whose relation is known."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mergelib.merging.engine import merge
from mergelib.merging.registry import METHODS
from mergelib.metrics.inputs import read_inputs
from mergelib.metrics.table import pairwise
from mergelib.metrics.weights import summarize

MATRIX = "matrix"
PARTS = {MATRIX: (48, 32), "bias": (48,), "activation": (64,), "gradient": (40, 12)}


def made_vector(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """A random tensor of unit norm, float64; a matrix has a spectrum falling as 1 / k."""
    if len(shape) != 2:
        values = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return values / values.norm()
    size = min(shape)
    u, v = (
        torch.linalg.qr(torch.randn(n, size, generator=generator, dtype=torch.float64))[0]
        for n in shape
    )
    matrix = (u / torch.arange(1, size + 1, dtype=torch.float64)) @ v.T
    return matrix / matrix.norm()


def turned(start: Tensor, other: Tensor, degrees: float) -> Tensor:
    """cos(θ) a + sin(θ) b⊥, with b⊥ the part of b orthogonal to a, at a's norm."""
    across = other - (other * start).sum() / (start * start).sum() * start
    across = across * (start.norm() / across.norm())
    angle = np.deg2rad(degrees)
    return np.cos(angle) * start + np.sin(angle) * across


def metrics_by_angle(
    names: Iterable[str] | None = None,
    degrees: Sequence[float] = tuple(range(0, 181, 10)),
    length: float = 1.0,
    seed: int = 0,
) -> pd.DataFrame:
    """Every metric between a model and one turned away from it: angle and a column a metric.

    The second model's task vector, mean activation and gradients are those of the first turned by
    the angle (degrees) towards independent ones, tensor by tensor, and `length` times as long.
    Raises MergelibError for an unknown metric.
    """
    generator = torch.Generator().manual_seed(seed)
    first = {name: made_vector(shape, generator) for name, shape in PARTS.items()}
    other = {name: made_vector(shape, generator) for name, shape in PARTS.items()}
    rows = []
    for angle in degrees:
        second = {name: length * turned(first[name], other[name], angle) for name in first}
        rows.append(_measured(first, second, names).assign(angle=float(angle)))
    table = pd.concat(rows, ignore_index=True)
    return table[["angle", *(name for name in table if name not in ("angle", "task_a", "task_b"))]]


def _measured(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], names: Iterable[str] | None
) -> pd.DataFrame:
    weights = [{name: one[name] for name in (MATRIX, "bias")} for one in (first, second)]
    base = {name: torch.zeros_like(value) for name, value in weights[0].items()}
    summaries = [
        summarize(base, tuned)
        | {
            "activation": one["activation"],
            "encoder_gradient/all": one["gradient"],
            "input_gradient": one["gradient"],
        }
        for tuned, one in zip(weights, (first, second), strict=True)
    ]
    return pairwise(read_inputs(base, weights, summaries), ["a", "b"], names)


def merged_matrices(
    names: Iterable[str] | None = None, degrees: float = 60.0, seed: int = 0
) -> dict[str, Tensor]:
    """Two matrices at an angle and what each merging method makes of them, by name.

    Keys `first` and `second` are the task vectors (48, 32), the others methods with their
    defaults; the base is zero, so a merged model is its merged task vector.
    """
    generator = torch.Generator().manual_seed(seed)
    first, other = (made_vector(PARTS[MATRIX], generator) for _ in range(2))
    second = turned(first, other, degrees)
    base = {MATRIX: torch.zeros_like(first)}
    made = {"first": first, "second": second}
    for name in METHODS if names is None else names:
        made[name] = merge(base, [{MATRIX: first}, {MATRIX: second}], name, seed=seed)[MATRIX]
    return made


def spectra(matrices: Mapping[str, Tensor]) -> pd.DataFrame:
    """Singular values by rank: columns matrix, rank (from 1), value."""
    parts = []
    for name, matrix in matrices.items():
        values = torch.linalg.svdvals(matrix.double()).numpy()
        ranks = np.arange(1, len(values) + 1)
        parts.append(pd.DataFrame({"matrix": name, "rank": ranks, "value": values}))
    return pd.concat(parts, ignore_index=True)


def measures(matrices: Mapping[str, Tensor]) -> pd.DataFrame:
    """Norm, cosine with the sum of the two task vectors, and share of zero entries, by matrix."""
    total = (matrices["first"] + matrices["second"]).double()
    rows = {}
    for name, matrix in matrices.items():
        values = matrix.double()
        rows[name] = {
            "norm": values.norm().item(),
            "cosine with the sum": ((values * total).sum() / values.norm() / total.norm()).item(),
            "share of zeros": (values == 0).double().mean().item(),
        }
    return pd.DataFrame.from_dict(rows, orient="index")
