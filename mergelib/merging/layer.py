"""One tensor of a base and of T models: task vectors, each read when it is asked for."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial, wraps
from types import EllipsisType

from torch import Tensor

from mergelib.core.errors import MergelibError
from mergelib.linalg.polar import is_matrix, triplets

# entries that are worked on at a time: those of twenty models fit in HELD and are read once
BLOCK = 2**17


Triplets = tuple[Tensor, Tensor, Tensor]  # U (m, r), s (r,), V (n, r)


class Layer(Sequence[Tensor]):
    """Task vectors τ_t of one tensor, float64, as a sequence: only what is being used is in memory.

    `read` holds a function for every model, which returns its τ_t, not to be changed; `origin`
    returns θ0. `kept`, if given, returns the leading triplets (U, s, V) of model t that were
    factored before, null ones left out; `narrow` makes the layer of some rows, which are the `rows`
    of that one.
    """

    def __init__(
        self,
        name: str,
        shape: Sequence[int],
        read: Sequence[Callable[[], Tensor]],
        kept: Callable[[int, int], Triplets | None] | None = None,
        origin: Callable[[], Tensor] | None = None,
        narrow: Callable[[slice], "Layer"] | None = None,
        rows: slice | EllipsisType = ...,
    ) -> None:
        self.name, self.shape, self.rows = name, tuple(shape), rows
        self._read, self._kept, self._origin, self._narrow = read, kept, origin, narrow

    @classmethod
    def of(cls, vectors: Tensor, name: str) -> "Layer":
        """Task vectors that are in memory already, (T, *shape)."""
        read = [partial(vectors.__getitem__, t) for t in range(len(vectors))]
        return cls(name, vectors.shape[1:], read)

    def __len__(self) -> int:
        return len(self._read)

    def __getitem__(self, position: int) -> Tensor:  # type: ignore[override]  # no slices
        return self._read[position]()

    @property
    def start(self) -> Tensor:
        """θ0. Raises MergelibError for task vectors that came without."""
        if self._origin is None:
            raise MergelibError(f"the task vectors of {self.name!r} were given without their base")
        return self._origin()

    def blocks(self, most: int | None = None) -> Iterator["Layer"]:
        """Layers of the tensor's rows, in order, of at most `most` (BLOCK) entries or of one row.

        It is the layer itself where that is small. What a block has read is let go with it.
        """
        size, most = math.prod(self.shape), most or BLOCK
        if size <= BLOCK or self._narrow is None:
            yield self
            return
        count = self.shape[0]
        step = max(1, most * count // size)
        for begin in range(0, count, step):
            yield self._narrow(slice(begin, min(begin + step, count)))

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
        found = None if self._kept is None else self._kept(position, rank)
        if found is None:
            return triplets(self[position], rank)
        u, s, v = found
        return u[:, :rank], s[:rank], v[:, :rank]


def cached_rank(shape: Sequence[int]) -> int:
    """How many triplets a file of factors keeps: half the spectrum, all that pairs use."""
    return min(shape) // 2


def elementwise(
    function: Callable[..., Tensor],
) -> Callable[..., Iterator[tuple[Layer, Tensor]]]:
    """A method's function f(layer, **params) as one that yields each of the blocks, and f of it."""

    @wraps(function)
    def of_blocks(layer: Layer, **params: object) -> Iterator[tuple[Layer, Tensor]]:
        return ((block, function(block, **params)) for block in layer.blocks())

    return of_blocks
