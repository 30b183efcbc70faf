"""What the weights tell of one model: the ends of its task vector's singular value factors."""

import torch
from torch import Tensor

from mergelib.factors import Ends, ends
from mergelib.parallel import threaded
from mergelib.vectors import Source, models

SIGMAS = 100  # singular values kept per matrix
TRIPLETS = 10  # singular vectors kept at each end


def summarize(base: Source, tuned: Source, device: str = "cpu") -> dict[str, Tensor]:
    """Ends of the thin SVD of every 2-D tensor of one task vector, as a flat dict.

    `sigma/<tensor>` (min(100, m, n),) float64 and, with k = min(10, m, n), `u_top/<tensor>` (m, k),
    `v_top/…` (n, k), `u_bottom/…` (m, k), `v_bottom/…` (n, k), float32. All is computed in float64
    (accuracy: `mergelib.factors.ends`); float32 is enough to keep the vectors (6e-8 per entry,
    below what float32 checkpoints carry), while the values span many orders and cost nothing.
    Bottom = the last k of the thin SVD, in its order. Below the rank of a matrix its singular
    vectors are arbitrary. One tensor for each thread is in memory at a time.
    Raises MergelibError as `mergelib.vectors.task_vectors` does.
    Source: published metrics, category subspace.
    """
    kept: dict[str, Tensor] = {}
    with models(base, [tuned]) as (origin, (model,)):
        names = sorted(name for name in origin.floating if len(origin.shapes[name]) == 2)

        def of_tensor(name: str) -> Ends:
            start = origin.read(name).to(device, torch.float64)
            return ends(model.read(name).to(device, torch.float64) - start, SIGMAS, TRIPLETS)

        for name, found in zip(names, threaded(of_tensor, names), strict=True):
            kept[f"sigma/{name}"] = found.sigma.clone()
            for end in ("u_top", "v_top", "u_bottom", "v_bottom"):
                kept[f"{end}/{name}"] = getattr(found, end).float().contiguous()
    return {key: part.cpu() for key, part in kept.items()}
