"""What the weights tell of models: Gram matrices, and the ends of the task vectors' factors."""

import threading
from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from mergelib.checkpoints.reading import Source
from mergelib.checkpoints.task_vectors import difference, sweep, tensor_gram
from mergelib.checkpoints.weights import Weights
from mergelib.linalg.svd import ends

SIGMAS = 100  # singular values kept per matrix
TRIPLETS = 10  # singular vectors kept at each end

Summary = dict[str, Tensor]


def survey(
    base: Source,
    tuned: Sequence[Source],
    rows: Sequence[int] | None = None,
    fresh: Sequence[int] | None = None,
    device: str = "cpu",
) -> tuple[dict[str, np.ndarray], list[Summary]]:
    """Gram matrices of T models and summaries of some, in one pass over the checkpoints.

    The first are `mergelib.checkpoints.task_vectors.grams`, with its `rows`. The second, of the
    models in `fresh` (None: all), are flat dicts: for every 2-D tensor `sigma/<tensor>`
    (min(100, m, n),) float64 and, with k = min(10, m, n), `u_top/<tensor>` (m, k), `v_top/…`
    (n, k), `u_bottom/…` (m, k), `v_bottom/…` (n, k), float32, of the thin SVD of its task vector.
    All is computed in float64 (accuracy: `mergelib.linalg.svd.ends`); float32 is enough to keep the
    vectors (6e-8 per entry, below what float32 checkpoints carry), while the values span many
    orders and cost nothing.
    Bottom = the last k of the thin SVD, in its order. Below the rank of a matrix its singular
    vectors are arbitrary. A few tensors for each thread are in memory at a time.
    Raises MergelibError as `mergelib.checkpoints.task_vectors.task_vectors` does.
    Source: published metrics, categories task vector, effective rank and subspace.
    """
    fresh = range(len(tuned)) if fresh is None else fresh
    workspace, squares = _Workspace(), _Workspace()

    def work(
        name: str, origin: Weights, others: Sequence[Weights]
    ) -> tuple[np.ndarray, list[Summary]]:
        start, *models = (weights.get(name) for weights in (origin, *others))
        vectors = None
        if rows is not None:
            vectors = workspace.take((len(rows), start.numel()), device)
            for vector, row in zip(vectors, rows, strict=True):
                difference(models[row], start, out=vector.view(start.shape))
        gram = tensor_gram(name, origin, others, rows, device, vectors)
        if start.ndim != 2 or not fresh:
            return gram, [{} for _ in fresh]
        if not gram.size:  # else its entries have shown that the tensors' are finite
            start, *models = (weights.read(name) for weights in (origin, *others))
        held = dict(zip(rows or (), () if vectors is None else vectors, strict=True))
        room = None if held else workspace.take(start.shape, device)
        gram_room = squares.take((min(start.shape),) * 2, "cpu")
        found = []
        for t in fresh:
            vector = held.get(t)
            if vector is None:
                vector = difference(models[t], start, device, out=room)
            found.append(_summary(name, vector.view(start.shape), gram_room))
        return gram, found

    grams: dict[str, np.ndarray] = {}
    summaries: list[Summary] = [{} for _ in fresh]
    for name, (gram, parts) in sweep(base, tuned, work):
        grams[name] = gram
        for summary, part in zip(summaries, parts, strict=True):
            summary |= part
    return grams, summaries


class _Workspace(threading.local):
    """A thread's memory for matrices; new pages for each would take as long as filling them."""

    def __init__(self) -> None:
        self._held = torch.empty(0, dtype=torch.float64)

    def take(self, shape: Sequence[int], device: str) -> Tensor:
        if self._held.numel() < prod(shape):
            self._held = torch.empty(prod(shape), dtype=torch.float64, device=device)
        return self._held[: prod(shape)].view(shape)


def _summary(name: str, vector: Tensor, gram_room: Tensor) -> Summary:
    found = ends(vector, SIGMAS, TRIPLETS, gram_room)
    kept = {f"sigma/{name}": found.sigma.clone()}
    for end in ("u_top", "v_top", "u_bottom", "v_bottom"):
        kept[f"{end}/{name}"] = getattr(found, end).float().contiguous()
    return kept


def summarize(base: Source, tuned: Source, device: str = "cpu") -> Summary:
    """The summary of one model; see `survey`."""
    return survey(base, [tuned], rows=[], device=device)[1][0]
