"""What the metrics of T models are made of, gathered from files tensor by tensor."""

from collections.abc import Container, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mergelib.checkpoints.reading import Source, opened
from mergelib.checkpoints.task_vectors import gram, grams
from mergelib.checkpoints.weights import Weights, check_same
from mergelib.core.errors import MergelibError
from mergelib.core.threads import threaded
from mergelib.linalg.lapack import small_gram


@dataclass(frozen=True)
class Factors:
    """Ends of the thin SVD τ = U Σ Vᵀ of one matrix (m, n) for T models; k = min(10, m, n).

    Bases are as they were kept, T models side by side.
    """

    sigma: np.ndarray  # (T, min(100, m, n)), the largest, descending, float64
    u_top: np.ndarray  # (m, T, k)
    v_top: np.ndarray  # (n, T, k)
    v_bottom: np.ndarray  # (n, T, k), the last k of the min(m, n)

    @property
    def k(self) -> int:
        """How many singular vectors there are at each end."""
        return self.u_top.shape[2]

    @cached_property
    def left_top(self) -> np.ndarray:
        """‖U_iᵀ U_j‖_F² at the top: (T, T)."""
        return squared_overlap(self.u_top)

    @cached_property
    def right_top(self) -> np.ndarray:
        """‖V_iᵀ V_j‖_F² at the top: (T, T)."""
        return squared_overlap(self.v_top)

    @cached_property
    def right_bottom(self) -> np.ndarray:
        """‖V_iᵀ V_j‖_F² at the bottom: (T, T)."""
        return squared_overlap(self.v_bottom)


def basis_products(bases: np.ndarray) -> np.ndarray:
    """B_iᵀ B_j of T bases (m, T, k), as one Gram matrix in float64: (T, k, T, k)."""
    size, models, k = bases.shape
    lower = small_gram(torch.from_numpy(bases.reshape(size, models * k).astype(np.float64)))
    return (lower + lower.tril(-1).T).numpy().reshape(models, k, models, k)


def squared_overlap(bases: np.ndarray) -> np.ndarray:
    """‖B_iᵀ B_j‖_F² of T orthonormal bases (m, T, k): (T, T)."""
    products = basis_products(bases)
    return np.einsum("ikjl,ikjl->ij", products, products)


@dataclass(frozen=True)
class Inputs:
    """Grams, factors and means of T models; what is None was not summarized.

    `zero_matrices` counts the matrices that are left out here because every task vector is zero
    on them (3 in the published work: the text tower's remains); only `edition="paper"` counts them.
    """

    gram: np.ndarray  # (T, T) float64, task vectors
    layer_grams: dict[str, np.ndarray]  # tensor name -> (T, T) float64
    factors: dict[str, Factors] | None = None  # name of a 2-D tensor -> ends of its SVD
    activation: np.ndarray | None = None  # (T, d) float64
    encoder_gradient_gram: np.ndarray | None = None  # (T, T) float64
    input_gradient_gram: np.ndarray | None = None  # (T, T) float64
    zero_matrices: int = 0
    # what only extra metrics need; accuracies are fractions, on calibration images
    encoder_gradient_grams: dict[str, np.ndarray] | None = None  # tensor name -> (T, T) float64
    input_gradient_grams: np.ndarray | None = None  # (N, T, T) float64, image by image
    cross_accuracy: np.ndarray | None = None  # (T, T), encoder t under the head of task u
    zero_shot: np.ndarray | None = None  # (T,)
    fine_tuned: np.ndarray | None = None  # (T,)

    def need(self, field: str) -> Any:
        """A field that must be there. Raises MergelibError if it was not summarized."""
        value = getattr(self, field)
        if value is None:
            raise MergelibError(
                f"the summaries hold no {field}: summarize the models with it, or name only "
                "metrics that do without"
            )
        return value


def read_inputs(
    base_path: Source,
    checkpoint_paths: Sequence[Source],
    summary_paths: Sequence[Source],
    zero_matrices: int = 0,
    layer_grams: dict[str, np.ndarray] | None = None,
) -> Inputs:
    """The inputs of the metrics of T models, in the order of the paths, read tensor by tensor.

    `layer_grams` may be given, where `mergelib.checkpoints.task_vectors.grams` found them before.

    A summary file holds `sigma/<tensor>`, `u_top/<tensor>`, `v_top/…`, `u_bottom/…`, `v_bottom/…`
    and may hold `activation` (d,), `encoder_gradient/<tensor>`, `input_gradient` (N, 3, H, W),
    `cross_accuracy` (T,), the model's under each task's head, and `zero_shot` and `fine_tuned` ().
    Raises MergelibError if files are unreadable, do not match each other, or differ in number.
    """
    if len(checkpoint_paths) != len(summary_paths):
        raise MergelibError(
            f"{len(checkpoint_paths)} checkpoints but {len(summary_paths)} summaries: give one "
            "summary per checkpoint, in the same order"
        )
    if layer_grams is None:
        layer_grams = grams(base_path, checkpoint_paths)
    with ExitStack() as stack:
        files = [
            stack.enter_context(opened(source, f"summary {t}"))
            for t, source in enumerate(summary_paths)
        ]
        for file in files[1:]:
            check_same(files[0], file)
        encoder = _grams(files, "encoder_gradient/")
        images = _image_grams(files)
        return Inputs(
            gram=np.asarray(sum(layer_grams.values())),
            layer_grams=layer_grams,
            factors=_factors(files, layer_grams),
            activation=_optional(files, "activation"),
            encoder_gradient_gram=np.asarray(sum(encoder.values())) if encoder else None,
            input_gradient_gram=None if images is None else images.sum(axis=0),
            zero_matrices=zero_matrices,
            encoder_gradient_grams=encoder or None,
            input_gradient_grams=images,
            cross_accuracy=_optional(files, "cross_accuracy"),
            zero_shot=_optional(files, "zero_shot"),
            fine_tuned=_optional(files, "fine_tuned"),
        )


def _keys(file: Weights, prefix: str) -> list[str]:
    return sorted(key for key in file.shapes if key.startswith(prefix))


def _stack(files: Sequence[Weights], key: str, dim: int = 0) -> Tensor:
    if key not in files[0].shapes:
        raise MergelibError(f"{files[0].label} lacks {key!r}: summarize the model again")
    stacked = torch.stack([file.get(key) for file in files], dim=dim)
    if not torch.isfinite(stacked.sum(dtype=torch.float64)):
        for file in files:
            file.read(key)
    return stacked


def _optional(files: Sequence[Weights], key: str) -> np.ndarray | None:
    return _stack(files, key).double().numpy() if key in files[0].shapes else None


def _grams(files: Sequence[Weights], prefix: str) -> dict[str, np.ndarray]:
    """Gram matrices by tensor, of which one of each model is in memory at a time."""
    keys = _keys(files[0], prefix)
    return {key.removeprefix(prefix): gram([file.read(key) for file in files]) for key in keys}


def _image_grams(files: Sequence[Weights]) -> np.ndarray | None:
    """Gram matrices of the input gradients, image by image: (N, T, T)."""
    key = "input_gradient"
    if key not in files[0].shapes:
        return None
    gradients = [file.read(key) for file in files]
    return np.stack([gram(image) for image in zip(*gradients, strict=True)])


def _factors(files: Sequence[Weights], known: Container[str]) -> dict[str, Factors] | None:
    names = [key.removeprefix("sigma/") for key in _keys(files[0], "sigma/")]
    for name in names:
        if name not in known:
            raise MergelibError(
                f"{files[0].label} summarizes tensor {name!r}, which the checkpoints do not have: "
                "summarize the checkpoints again"
            )
    _, *bases = [field.name for field in fields(Factors)]

    def of_tensor(name: str) -> Factors:
        sigma = _stack(files, f"sigma/{name}").double().numpy()
        return Factors(sigma, *(_stack(files, f"{part}/{name}", dim=1).numpy() for part in bases))

    return dict(zip(names, threaded(of_tensor, names), strict=True)) or None
