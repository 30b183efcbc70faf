"""What the weights tell of one model: the ends of its task vector's singular value factors."""

from torch import Tensor

from mergelib.factors import thin_factors
from mergelib.vectors import Source, task_vectors

SIGMAS = 100  # singular values kept per matrix
TRIPLETS = 10  # singular vectors kept at each end


def summarize(base: Source, tuned: Source) -> dict[str, Tensor]:
    """Ends of the thin SVD of every 2-D tensor of one task vector, as a flat dict.

    `sigma/<tensor>` (min(100, m, n),) float64 and, with k = min(10, m, n), `u_top/<tensor>` (m, k),
    `v_top/…` (n, k), `u_bottom/…` (m, k), `v_bottom/…` (n, k), float32. The SVD runs in float64;
    float32 is enough to keep the vectors (6e-8 per entry, below what float32 checkpoints carry),
    while the values span many orders and cost nothing. Bottom = the last k of the thin SVD, in its
    order. Below the rank of a matrix its singular vectors are arbitrary.
    Raises MergelibError as `mergelib.vectors.task_vectors` does.
    Source: published metrics, category subspace.
    """
    kept: dict[str, Tensor] = {}
    for name, vectors in task_vectors(base, [tuned]):
        if vectors.ndim != 3:
            continue
        u, s, v = thin_factors(vectors[0])
        k = min(TRIPLETS, len(s))
        kept[f"sigma/{name}"] = s[:SIGMAS].clone()
        ends = {"u_top": u[:, :k], "v_top": v[:, :k], "u_bottom": u[:, -k:], "v_bottom": v[:, -k:]}
        kept |= {f"{end}/{name}": part.float().contiguous() for end, part in ends.items()}
    return kept
