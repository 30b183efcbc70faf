"""Task vectors τ_t = θ_t − θ_0, one tensor at a time, and the geometry of their Gram matrix."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mergelib.errors import MergelibError

Source = Path | str | Mapping[str, Tensor]  # a checkpoint (see checkpoints), or tensors

CHUNK = 1 << 20  # columns turned to float64 at a time


@dataclass(frozen=True)
class Weights:
    """Named tensors that are read one by one; `label` is what an error calls them."""

    label: str
    shapes: Mapping[str, tuple[int, ...]]
    floating: frozenset[str]
    get: Callable[[str], Tensor]

    def read(self, name: str) -> Tensor:
        """The tensor of that name. Raises MergelibError if an entry is NaN or infinite."""
        tensor = self.get(name)
        if not torch.isfinite(tensor).all():
            raise MergelibError(
                f"{self.label}: tensor {name!r} has NaN or infinite entries; train it again"
            )
        return tensor


@contextmanager
def opened(source: Source, label: str = "") -> Iterator[Weights]:
    """Open a checkpoint (or wrap a mapping) for reading its image tower tensor by tensor.

    Formats and names: `mergelib.checkpoints`. Raises MergelibError, naming the file, if it is
    missing, truncated or of an unknown format.
    """
    from mergelib import checkpoints  # which needs this module's Weights

    if isinstance(source, Mapping):
        state = checkpoints.of_mapping(source, label or "the given tensors")
        yield checkpoints.image_tower(state)
        return
    with checkpoints.opened(source) as weights:
        yield weights


def check_same(origin: Weights, other: Weights) -> None:
    """Raise MergelibError, naming the tensor, unless both hold the same names and shapes."""
    for name in sorted(origin.shapes.keys() ^ other.shapes.keys()):
        has, lacks = (origin, other) if name in origin.shapes else (other, origin)
        raise MergelibError(
            f"{lacks.label} lacks tensor {name!r}, which {has.label} has with shape "
            f"{has.shapes[name]}: give models of one architecture"
        )
    for name, shape in origin.shapes.items():
        if other.shapes[name] != shape:
            raise MergelibError(
                f"tensor {name!r} has shape {other.shapes[name]} in {other.label} but {shape} in "
                f"{origin.label}: give models of one architecture"
            )
    for name in sorted(origin.floating ^ other.floating):
        raise MergelibError(
            f"tensor {name!r} holds integers in one of {origin.label} and {other.label} and "
            "floating point numbers in the other: save both with one type"
        )


def task_vectors(base: Source, tuned: Sequence[Source]) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, τ) for each floating-point tensor, τ = θ_t − θ_0 of shape (T, *shape), float64.

    Only one tensor of each model is in memory at a time; names come in alphabetical order; integer
    tensors are skipped. The difference is taken in float64, so that it is exact for float32.
    Raises MergelibError for other names or shapes, NaN, or a file that cannot be read.
    Source: Ilharco et al. 2023, "Editing models with task arithmetic", section 2.
    """
    if not tuned:
        raise MergelibError("no fine-tuned model is given: give at least one checkpoint")
    with ExitStack() as stack:
        origin = stack.enter_context(opened(base, "the base"))
        models = [stack.enter_context(opened(s, f"model {t}")) for t, s in enumerate(tuned)]
        for model in models:
            check_same(origin, model)
        if not origin.floating:
            raise MergelibError(f"{origin.label} holds no floating point tensor: check the file")
        for name in sorted(origin.floating):
            start = origin.read(name).double()
            yield name, torch.stack([model.read(name).double() - start for model in models])


def gram(vectors: Tensor | Sequence[Tensor]) -> np.ndarray:
    """Gram matrix G_ij = v_i·v_j of T tensors of one shape, flattened: (T, T) float64.

    The sums run in float64: in float32 the cosines of long vectors exceed 1.
    """
    flat = torch.stack(list(vectors))
    flat = flat.reshape(len(flat), -1)  # a scalar is a vector of one entry
    total = torch.zeros(len(flat), len(flat), dtype=torch.float64)
    for chunk in flat.split(CHUNK, dim=1):
        block = chunk.double()
        total += (block @ block.T).cpu()
    return ((total + total.T) / 2).numpy()


def grams(base: Source, tuned: Sequence[Source]) -> dict[str, np.ndarray]:
    """Gram matrix (T, T) float64 of the task vectors, per tensor; their sum is the global one."""
    return {name: gram(vectors) for name, vectors in task_vectors(base, tuned)}


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
