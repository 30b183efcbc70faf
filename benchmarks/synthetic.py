"""Synthetic "fine-tuned" CLIP vision towers: a random base and low-rank-dominated task vectors.

τ_ℓ of a matrix (m, n) is Σ_k d_k a_k b_kᵀ (d_k falling as a power of k, a part of it common to all
models) plus full-rank noise whose columns differ in size by three orders: a few directions hold
most of the norm (94 %), and σ_min/σ_max comes out between 1e-3 and 1e-6.

`python benchmarks/synthetic.py FOLDER --name ViT-B-16 --models 20` writes them.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from mergelib.core.store import save_tensors

# width, blocks, patch size, embedding; images are 224 x 224
TOWERS = {
    "ViT-B-32": (768, 12, 32, 512),
    "ViT-B-16": (768, 12, 16, 512),
    "ViT-L-14": (1024, 24, 14, 768),
}
RANK = 32
SHARED = 0.4  # of a task vector's norm, roughly, that all models have in common


def tower_shapes(width: int, blocks: int, patch: int, embedding: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of open_clip's vision transformer (its state dict, without a prefix)."""
    norm = {"weight": (width,), "bias": (width,)}
    block = {
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "mlp.c_fc.weight": (4 * width, width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width),
        "mlp.c_proj.bias": (width,),
        **{f"{layer}.{end}": size for layer in ("ln_1", "ln_2") for end, size in norm.items()},
    }
    return {
        "class_embedding": (width,),
        "positional_embedding": ((224 // patch) ** 2 + 1, width),
        "proj": (width, embedding),
        "conv1.weight": (width, 3, patch, patch),
        **{f"{layer}.{end}": s for layer in ("ln_pre", "ln_post") for end, s in norm.items()},
        **{f"transformer.resblocks.{b}.{n}": s for b in range(blocks) for n, s in block.items()},
    }


def checkpoint_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Shapes of a tower's state dict: ViT-B-16 has 152 tensors, 50 matrices, 86,192,640 numbers."""
    return tower_shapes(*TOWERS[name])


def _base(shapes: dict[str, tuple[int, ...]], generator: torch.Generator) -> dict[str, Tensor]:
    return {n: 0.02 * torch.randn(s, generator=generator) for n, s in shapes.items()}


def _low_rank(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    rank = min(RANK, *shape)
    falling = torch.arange(1, rank + 1) ** -0.8
    left, right = (torch.randn(n, rank, generator=generator) for n in shape)
    return (left * falling) @ right.T


def task_vector(shape: tuple[int, ...], seed: int, place: int, model: int) -> Tensor:
    """The float32 task vector of one model at the tensor numbered `place`; entries around 2e-4."""
    own = torch.Generator().manual_seed(hash((seed, place, model)))
    if len(shape) != 2:
        return 2e-4 * torch.randn(shape, generator=own)
    common = torch.Generator().manual_seed(hash((seed, place)))
    size = torch.logspace(0, -3, shape[1])[torch.randperm(shape[1], generator=own)]
    noise = torch.randn(shape, generator=own) * size
    return 1e-4 * (SHARED * _low_rank(shape, common) + _low_rank(shape, own) + noise)


def write_shapes(
    folder: Path, shapes: dict[str, tuple[int, ...]], count: int, seed: int
) -> tuple[Path, list[Path]]:
    """Write a base and `count` models of these shapes: base.safetensors, model00.safetensors, …"""
    folder = Path(folder)
    base = _base(shapes, torch.Generator().manual_seed(seed))
    save_tensors(folder / "base.safetensors", base)
    paths = [folder / f"model{t:02d}.safetensors" for t in range(count)]
    for t, path in enumerate(paths):
        tuned = {
            name: base[name] + task_vector(shape, seed, place, t)
            for place, (name, shape) in enumerate(shapes.items())
        }
        save_tensors(path, tuned)
    return folder / "base.safetensors", paths


def write_models(folder: Path, name: str, count: int, seed: int = 0) -> tuple[Path, list[Path]]:
    """Write a base and `count` models of a tower: (path of the base, paths of the models).

    Model t is the same whatever the count. ViT-B-16 takes 345 MB a file.
    """
    return write_shapes(folder, checkpoint_shapes(name), count, seed)


def main() -> None:
    """Write models; print their paths as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", default="ViT-B-16", choices=list(TOWERS))
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    base, paths = write_models(args.folder, args.name, args.models, args.seed)
    print(json.dumps({"base": str(base), "models": [str(path) for path in paths]}))


if __name__ == "__main__":
    main()
