"""The published multilayer perceptron: p -> 8 -> LeakyReLU -> dropout -> 1, many at once."""

from dataclasses import dataclass

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

WIDTH, SLOPE, DROPOUT = 8, 0.01, 0.4
EPOCHS, RATE, DECAY = 300, 1e-3, 1e-3


@dataclass(frozen=True)
class Networks:
    """B networks: hidden (B, p, 8), shift (B, 8), out (B, 8, 1), level (B, 1)."""

    hidden: Tensor
    shift: Tensor
    out: Tensor
    level: Tensor

    def __call__(self, Z: Tensor, keep: Tensor | None = None) -> Tensor:
        """Outputs (B, n) for inputs (B, n, p); `keep` (B, n, 8) are dropout masks."""
        h = torch.nn.functional.leaky_relu(Z @ self.hidden + self.shift[:, None], SLOPE)
        if keep is not None:
            h = h * keep / (1 - DROPOUT)
        return (h @ self.out)[..., 0] + self.level


@threadpool_limits.wrap(limits=1)
def train_networks(
    Z: np.ndarray, T: np.ndarray, rows: np.ndarray, seeds, watch: np.ndarray | None = None
) -> Networks:
    """Train B networks on inputs Z (B, n, p), targets T (B, n) over the rows (B, n).

    Mean squared error, 300 full-batch Adam steps of 1e-3 with L2 1e-3, Kaiming-normal weights
    and zero biases; each network draws from its own seed. With `watch` (B, n) the epoch of least
    error on those rows is kept (as published: a choice by the validation pairs), else the last.
    Source: arXiv 2601.22285, appendix.
    """
    b, n, p = Z.shape
    rngs = [np.random.RandomState(int(seed)) for seed in seeds]
    gain = np.sqrt(2 / (1 + SLOPE**2))
    first = np.stack([r.normal(0, gain / np.sqrt(p), (p, WIDTH)) for r in rngs])
    second = np.stack([r.normal(0, gain / np.sqrt(WIDTH), (WIDTH, 1)) for r in rngs])
    start = (first, np.zeros((b, WIDTH)), second, np.zeros((b, 1)))
    parameters = [torch.from_numpy(x).requires_grad_(True) for x in start]
    net = Networks(*parameters)
    optimizer = torch.optim.Adam(parameters, lr=RATE, weight_decay=DECAY)
    inputs, targets = torch.tensor(Z), torch.tensor(T)

    def loss(output: Tensor, of: np.ndarray) -> Tensor:
        weight = torch.from_numpy(of.astype(np.float64))
        return (weight * (output - targets) ** 2).sum(-1) / weight.sum(-1)

    best = torch.full((b,), torch.inf, dtype=targets.dtype)
    kept = [x.detach().clone() for x in parameters]
    for _ in range(EPOCHS):
        keep = torch.from_numpy(np.stack([r.random_sample((n, WIDTH)) >= DROPOUT for r in rngs]))
        optimizer.zero_grad()
        loss(net(inputs, keep), rows).sum().backward()
        optimizer.step()
        with torch.no_grad():
            if watch is None:
                continue
            now = loss(net(inputs), watch)
            better = now < best
            best = torch.where(better, now, best)
            for old, new in zip(kept, parameters, strict=True):
                old[better] = new[better]
    return Networks(*(kept if watch is not None else [x.detach() for x in parameters]))


def unit_range(x: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Minimum and range over rows (B, n) of x (B, n) or (B, n, p); a zero range counts as 1."""
    rows = rows.reshape(rows.shape + (1,) * (x.ndim - rows.ndim))
    low = np.where(rows, x, np.inf).min(axis=1, keepdims=True)
    span = np.where(rows, x, -np.inf).max(axis=1, keepdims=True) - low
    return low, np.where(span > 0, span, 1.0)


def mlp_folds(
    X: np.ndarray,
    Y: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    seeds: np.ndarray,
    edition: str = "paper",
) -> np.ndarray:
    """Forecasts (F, n, m) of networks trained on the rows train (F, n); seeds (F, m).

    edition "paper": metrics and target scaled on all pairs, the epoch chosen by the test pairs, as
    published (both leak). edition "corrected": scaled on training pairs, last epoch.
    """
    f, m = len(train), Y.shape[1]
    used = (train | test).any(axis=0)
    Y = np.where(used[:, None], Y, 0.0)
    rows = np.repeat(train, m, axis=0)
    scale_on = np.broadcast_to(used, rows.shape) if edition == "paper" else rows
    Z, T = np.broadcast_to(X, (f * m, *X.shape)), np.tile(Y.T, (f, 1))
    (low, span), (base, size) = unit_range(Z, scale_on), unit_range(T, scale_on)
    Z, T = 2 * (Z - low) / span - 1, 2 * (T - base) / size - 1
    watch = np.repeat(test, m, axis=0) if edition == "paper" else None
    net = train_networks(Z, T, rows, seeds.ravel(), watch)
    with torch.no_grad():
        output = net(torch.from_numpy(Z)).numpy()
    return ((output + 1) / 2 * size + base).reshape(f, m, -1).transpose(0, 2, 1)
