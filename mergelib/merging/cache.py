"""Singular triplets of a model's task vector, kept in a file so that many merges share them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mergelib.checkpoints.digests import content_digests
from mergelib.checkpoints.reading import Source
from mergelib.core.store import digest, save_tensors
from mergelib.merging.engine import sweep
from mergelib.merging.layer import Layer, cached_rank

FORMAT = 2  # raised when what a file holds changes


def write_factors(path: Path, base: Source, tuned: Source) -> None:
    """Write the leading half of every matrix's triplets, what pairs use, as safetensors.

    `u/<tensor>` (m, r), `s/<tensor>` (r,) and `v/<tensor>` (n, r), r = ⌊min(m, n)/2⌋ less the null
    ones; float64, since two models' halves can have directions in common to within float32, and
    what tells them apart would be lost. ViT-B/16: 460 MB.
    Raises MergelibError as `mergelib.merging.engine.merge` does.
    """
    found: dict[str, Tensor] = {}

    def factor(layer: Layer) -> Tensor:
        if layer.is_matrix:
            parts = layer.triplets(0, cached_rank(layer.shape))
            for key, part in zip("usv", parts, strict=True):
                found[f"{key}/{layer.name}"] = part.contiguous()
        return torch.empty(0)

    for _ in sweep(base, [tuned], factor):
        pass
    save_tensors(path, {key: found[key] for key in sorted(found)})


def cached_factors(folder: Path, base: Source, tuned: Sequence[Source]) -> list[Path]:
    """Files of factors of models in a folder, named by the content of base and model.

    Those that are missing are made.
    """
    origin, *keys = content_digests(folder, [base, *tuned])
    paths = []
    for model, key in zip(tuned, keys, strict=True):
        name = digest(FORMAT, origin, key)[:24]
        paths.append(Path(folder) / "factors" / f"{name}.safetensors")
        if not paths[-1].is_file():
            write_factors(paths[-1], base, model)
    return paths
