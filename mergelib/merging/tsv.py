"""TSV-M: task singular vectors, orthogonalized against each other."""

import torch
from torch import Tensor

from mergelib.merging.catalogue import NUMBER, method
from mergelib.merging.factors import is_matrix, polar, svd


@method(
    "tsv",
    parameters={"alpha": NUMBER},
    defaults={"alpha": 1.0},
    reference="Gargiulo et al. 2025, Task singular vectors, arXiv 2412.00081 (TSV-M)",
)
def tsv(vectors: Tensor, name: str, alpha: float) -> Tensor:
    """Δ = α U⊥ diag(S) V⊥ᵀ for a matrix of shape (m, n), α (1/T) Σ τt for any other tensor.

    S holds the leading ⌊min(m, n)/T⌋ singular values of every τt, one model after another, U and V
    their vectors side by side; U⊥ and V⊥ are the polar factors of U and V. Triplets with a null
    singular value carry nothing and are left out, since their vectors are arbitrary.
    """
    if not is_matrix(vectors, name):
        return alpha * vectors.mean(0)
    rank = min(vectors.shape[1:]) // len(vectors)
    triplets = [svd(vector) for vector in vectors]
    u = torch.cat([u[:, :rank] for u, _, _ in triplets], dim=1)
    s = torch.cat([s[:rank] for _, s, _ in triplets])
    vt = torch.cat([vt[:rank] for _, _, vt in triplets])
    return alpha * (polar(u) * s) @ polar(vt)
