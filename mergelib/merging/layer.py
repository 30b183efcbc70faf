"""The task vectors of T models on one tensor, each read when it is asked for."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from mergelib.core.errors import MergelibError
from mergelib.linalg.polar import is_matrix, triplets


class Layer(Sequence[Tensor]):
    """Task vectors τ_t of one tensor, float64, as a sequence: only what is being used is in memory.

    `read` holds a function for every model, which returns its τ_t, not to be changed. `kept`, if
    given, returns the leading triplets (U, s, V) of model t that were factored before, null ones
    left out.
    """

    def __init__(
        self,
        name: str,
        shape: Sequence[int],
        read: Sequence[Callable[[], Tensor]],
        kept: Callable[[int], tuple[Tensor, Tensor, Tensor]] | None = None,
    ) -> None:
        self.name, self.shape = name, tuple(shape)
        self._read, self._kept = read, kept

    @classmethod
    def of(cls, vectors: Tensor, name: str) -> "Layer":
        """Task vectors that are in memory already, (T, *shape)."""
        return cls(
            name, vectors.shape[1:], [partial(vectors.__getitem__, t) for t in range(len(vectors))]
        )

    def __len__(self) -> int:
        return len(self._read)

    def __getitem__(self, position: int) -> Tensor:  # type: ignore[override]  # no slices
        return self._read[position]()

    @property
    def is_matrix(self) -> bool:
        """Whether the spectral methods treat the tensor as a matrix."""
        return is_matrix(self.shape, self.name)

    def chosen(self, task: int) -> Tensor:
        """The task vector of one model. Raises MergelibError if there is none of that number."""
        if task >= len(self):
            raise MergelibError(
                f"task {task} is not among the {len(self)} models: count them from 0, in their "
                "order"
            )
        return self[task]

    def sum(self) -> Tensor:
        """Σ τ_t, one model after another."""
        total = self[0].clone()
        for position in range(1, len(self)):
            total += self[position]
        return total

    def mean(self) -> Tensor:
        """(1/T) Σ τ_t."""
        return self.sum() / len(self)

    def triplets(self, position: int, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        """Leading triplets (U (m, r), s (r,), V (n, r)) of a model, r ≤ rank, null ones left out.

        Those that were kept are in the type that they were kept in, new ones in float64.
        """
        if self._kept is None or rank > cached_rank(self.shape):
            return triplets(self[position], rank)
        u, s, v = self._kept(position)
        return u[:, :rank], s[:rank], v[:, :rank]


def cached_rank(shape: Sequence[int]) -> int:
    """How many triplets a file of factors keeps: half the spectrum, all that pairs use."""
    return min(shape) // 2
