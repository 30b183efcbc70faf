"""Task vectors τ_t = θ_t − θ_0, one tensor at a time, and the geometry of their Gram matrix."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from mergelib.checkpoints.reading import Source, View, opened_models, views
from mergelib.checkpoints.weights import Weights
from mergelib.core.errors import MergelibError
from mergelib.core.threads import threaded
from mergelib.linalg.lapack import small_gram

Result = TypeVar("Result")

CHUNK = 1 << 17  # columns of a Gram product in float64 at a time; fewer, and threads wait in Python
CHUNK_ROWS = 1 << 15  # likewise where one model's at a time do, which stay in the cache
CHUNK_CUDA = 1 << 22
RUN = 1 << 22  # entries of a run of tensors, between which mapped files are let go


def task_vectors(base: Source, tuned: Sequence[Source]) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, τ) for each floating-point tensor, τ = θ_t − θ_0 of shape (T, *shape), float64.

    Only one tensor of each model is in memory at a time; names come in alphabetical order; integer
    tensors are skipped. The difference is taken in float64, so that it is exact for float32.
    Raises MergelibError as `opened_models` does, and for NaN or infinite entries.
    Source: Ilharco et al. 2023, "Editing models with task arithmetic", section 2.
    """
    with opened_models(base, tuned) as (origin, others):
        for name in sorted(origin.floating):
            start = origin.read(name)
            yield name, torch.stack([difference(other.read(name), start) for other in others])


def difference(
    tuned: Tensor, start: Tensor, device: str = "cpu", out: Tensor | None = None
) -> Tensor:
    """θ_t − θ_0 of one tensor in float64, so that it is exact for float32; `out` or a new one."""
    if out is None:
        out = torch.empty(start.shape, dtype=torch.float64, device=device)
    if not out.is_cpu:
        # moved before it is cast, which the device does faster
        tuned, start = (tensor.to(out.device) for tensor in (tuned, start))
        return torch.sub(tuned.double(), start.double(), out=out)
    # numpy casts as it goes, in half of torch's time
    np.subtract(_array(tuned), _array(start), out=out.numpy(), dtype=np.float64)
    return out


def _array(tensor: Tensor) -> np.ndarray:
    """A tensor's numbers as an array; numpy has no bfloat16."""
    tensor = tensor.detach().cpu()
    return (tensor if tensor.dtype.itemsize >= 4 else tensor.float()).numpy()


def gram(vectors: Tensor | Sequence[Tensor]) -> np.ndarray:
    """Gram matrix G_ij = v_i·v_j of T tensors of one shape, flattened: (T, T) float64.

    The sums run in float64: in float32 the cosines of long vectors exceed 1.
    """
    flat = [vector.reshape(-1) for vector in vectors]
    return _gram(flat, flat[0].new_zeros(1).expand(len(flat[0])), "cpu")


def grams(
    base: Source, tuned: Sequence[Source], rows: Sequence[int] | None = None, device: str = "cpu"
) -> dict[str, np.ndarray]:
    """Gram matrix (T, T) float64 of the task vectors, per tensor; their sum is the global one.

    `rows` asks for the rows of some models only, (len(rows), T); these are τ_r·θ_t − τ_r·θ_0, which
    spares the differences of all others and is within 1e-15 ‖τ_r‖ ‖θ_t‖ of τ_r·τ_t.
    Raises MergelibError as `task_vectors` does.
    """

    def work(name: str, origin: Weights, others: Sequence[Weights]) -> np.ndarray:
        return tensor_gram(name, origin, others, rows, device)

    return dict(sweep(base, tuned, work))


def sweep(
    base: Source,
    tuned: Sequence[Source],
    work: Callable[[str, Weights, Sequence[Weights]], Result],
) -> Iterator[tuple[str, Result]]:
    """Yield (name, work(name, base, models)) for each floating-point tensor, in alphabetical order.

    Runs of tensors are worked on in parallel, one core each.
    Raises MergelibError as `opened_models` does.
    """
    if not isinstance(base, View):
        base, tuned, _ = views(base, tuned)  # looked through once, not in every run
    with opened_models(base, tuned) as (origin, _):
        runs = _runs({name: origin.shapes[name] for name in sorted(origin.floating)})

    def of_run(names: Sequence[str]) -> list[tuple[str, Result]]:
        with opened_models(base, tuned) as (origin, others):
            return [(name, work(name, origin, others)) for name in names]

    for found in threaded(of_run, runs):
        yield from found


def _runs(shapes: Mapping[str, Sequence[int]]) -> list[list[str]]:
    """Names in runs of at most RUN entries, or of one tensor."""
    found: list[list[str]] = []
    room = 0
    for name, shape in shapes.items():
        room -= math.prod(shape)
        if room < 0:
            found.append([])
            room = RUN - math.prod(shape)
        found[-1].append(name)
    return found


def tensor_gram(
    name: str,
    origin: Weights,
    others: Sequence[Weights],
    rows: Sequence[int] | None = None,
    device: str = "cpu",
    vectors: Tensor | None = None,
) -> np.ndarray:
    """One tensor's part of `grams`. Raises MergelibError for NaN or infinite entries.

    `vectors` are the flat task vectors of the rows (R, N), float64, if they are at hand.
    """
    start, *flat = (weights.get(name).reshape(-1) for weights in (origin, *others))
    if rows is None:
        found = _gram(flat, start, device)
    else:
        if vectors is None:
            vectors = torch.empty(len(rows), len(start), dtype=torch.float64, device=device)
            for vector, row in zip(vectors, rows, strict=True):
                difference(flat[row], start, out=vector)
        found = _rows(vectors, flat, start)
    if not np.isfinite(found).all():  # rather than look through all entries before
        for weights in (origin, *others):
            weights.read(name)
        raise MergelibError(f"the task vectors overflow at {name!r}: are these checkpoints?")
    return found


def _gram(flat: Sequence[Tensor], start: Tensor, device: str) -> np.ndarray:
    """(v_i − start)·(v_j − start) of T vectors: (T, T)."""
    size, chunk = len(flat[0]), CHUNK if device == "cpu" else CHUNK_CUDA
    memory = torch.empty(len(flat), min(chunk, size), dtype=torch.float64, device=device)
    total = torch.zeros(len(flat), len(flat), dtype=torch.float64, device=device)
    for begin in range(0, size, chunk):
        part = slice(begin, begin + chunk)
        block = memory[:, : size - begin]
        origin = start[part].to(device)
        for row, vector in zip(block, flat, strict=True):
            difference(vector[part], origin, out=row)
        total += small_gram(block.T)
    return (total.tril() + total.tril(-1).T).cpu().numpy()


def _rows(vectors: Tensor, flat: Sequence[Tensor], start: Tensor) -> np.ndarray:
    """τ_r·(v_t − start) for R task vectors and every t: (R, T)."""
    if not len(vectors):
        return np.empty((0, len(flat)))
    if vectors.is_cpu:
        total = _products(vectors.numpy(), [_array(other) for other in (start, *flat)])
    else:
        columns = [vectors @ other.to(vectors) for other in (start, *flat)]
        total = torch.stack(columns, dim=1).cpu().numpy()
    return total[:, 1:] - total[:, :1]


def _products(vectors: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:
    """(R, N) times the vectors of N numbers, each cast to float64 in pieces: (R, len(others))."""
    total = np.zeros((len(others), len(vectors)))
    size = vectors.shape[1]
    held = np.empty(min(CHUNK_ROWS, size))
    for begin in range(0, size, CHUNK_ROWS):
        part = slice(begin, begin + CHUNK_ROWS)
        block, piece = vectors[:, part], held[: size - begin]
        for row, other in zip(total, others, strict=True):
            piece[...] = other[part]
            row += block @ piece
    return total.T


def norms(gram: np.ndarray) -> np.ndarray:
    """Norms ‖v_i‖ = √G_ii from a Gram matrix: (T,)."""
    return np.sqrt(np.diagonal(gram))


def cosine(gram: np.ndarray) -> np.ndarray:
    """Cosines v_i·v_j / (max(‖v_i‖, 1e-8) max(‖v_j‖, 1e-8)) from a Gram matrix: (T, T)."""
    lengths = np.maximum(norms(gram), 1e-8)
    return np.clip(gram / np.outer(lengths, lengths), -1, 1)


def distance(gram: np.ndarray) -> np.ndarray:
    """Distances ‖v_i − v_j‖ = √(G_ii + G_jj − 2 G_ij) from a Gram matrix: (T, T)."""
    squares = np.diagonal(gram)
    return np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2 * gram, 0))


def magnitude_ratio(gram: np.ndarray) -> np.ndarray:
    """Ratios min(‖v_i‖, ‖v_j‖) / max(…), 0 where a norm is below 1e-8: (T, T)."""
    lengths = norms(gram)
    low = np.minimum.outer(lengths, lengths)
    high = np.maximum.outer(lengths, lengths)
    return np.where(low < 1e-8, 0.0, low / np.maximum(high, 1e-8))
