"""The published predictors' optimizer: Adam on -r or on squared error, many problems at once.

Pearson's r and the squared error of Xw depend on the training pairs only through X'X, X'y and
y'y, so one step for all folds, methods, strengths and seeds is one small batched product of
(p, p) Gram matrices with weights, whatever the number of pairs.
"""

from dataclasses import dataclass

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from mergelib.predict.folds import Linear, scaled, scaling

EPSILON = 1e-8
BETAS = (0.9, 0.999)


@dataclass(frozen=True)
class Recipe:
    """One row of the published optimizers (see `RECIPES`).

    `loss`: "pearson" (-r) or "mse"; `init`: standard deviation of the starting weights;
    `sum_to_one`: divide w by its sum before every step (with the gradient taken before it);
    `threshold`: weights below it in size are set to 0 at the end; `l1`: default strength.
    """

    loss: str
    init: float
    sum_to_one: bool
    iterations: int
    patience: int
    tolerance: float
    threshold: float = 0.0
    l1: float = 0.0
    lr: float = 0.01


L1 = Recipe("pearson", 0.1, False, 2000, 100, 1e-5, threshold=1e-3, l1=1.0)
DENSE = Recipe("pearson", 1.0, True, 1000, 50, 1e-4)
MSE = Recipe("mse", 1.0, True, 1000, 50, 1e-6)
RECIPES = {"paper-l1": L1, "paper-dense": DENSE, "paper-mse": MSE}  # by predictor


@dataclass(frozen=True)
class Moments:
    """Sums over the pairs of F folds: xx (F, p, p), xy (F, m, p), yy (F, m), n (F,)."""

    xx: Tensor
    xy: Tensor
    yy: Tensor
    n: Tensor

    def repeat(self, k: int) -> "Moments":
        """Every method k times in a row (one for each seed)."""
        again = lambda x: x.repeat_interleave(k, dim=1)  # noqa: E731
        return Moments(self.xx, again(self.xy), again(self.yy), self.n)


def moments(X: np.ndarray, Y: np.ndarray, rows: np.ndarray, center: bool) -> Moments:
    """Sums over `rows` (F, n) of scaled metrics X (F, n, p) and targets Y (n, m), in float64."""
    n = rows.sum(axis=1).astype(np.float64)
    X = np.where(rows[..., None], X, 0.0)
    Y = np.where(rows[..., None], Y[None], 0.0)
    if center:
        X = np.where(rows[..., None], X - X.sum(axis=1, keepdims=True) / n[:, None, None], 0.0)
        Y = np.where(rows[..., None], Y - Y.sum(axis=1, keepdims=True) / n[:, None, None], 0.0)
    flat = X.transpose(0, 2, 1)
    parts = (flat @ X, (flat @ Y).transpose(0, 2, 1), (Y**2).sum(axis=1), n)
    return Moments(*(torch.from_numpy(np.ascontiguousarray(part)) for part in parts))


def _pearson(w: Tensor, s: Moments) -> tuple[Tensor, Tensor]:
    """r = w'b / (sqrt(w'Sw yy) + 1e-8) and its gradient, for w (F, K, p)."""
    sw = w @ s.xx
    spread = (w * sw).sum(-1).clamp_min(0).sqrt()
    scale = s.yy.sqrt()
    below = spread * scale + EPSILON
    r = (w * s.xy).sum(-1) / below
    shrink = r * scale / (spread.clamp_min(1e-300) * below)
    return r, s.xy / below[..., None] - shrink[..., None] * sw


def pearson_value(w: Tensor, s: Moments) -> Tensor:
    """r of Xw with y for w (F, K, p): (F, K)."""
    return _pearson(w, s)[0]


def _mse(w: Tensor, s: Moments) -> tuple[Tensor, Tensor]:
    """Mean squared error of Xw without intercept and its gradient, for w (F, K, p)."""
    sw = w @ s.xx
    n = s.n[:, None]
    loss = ((w * sw).sum(-1) - 2 * (w * s.xy).sum(-1) + s.yy) / n
    return loss, 2 * (sw - s.xy) / n[..., None]


@threadpool_limits.wrap(limits=1)  # the tensors are small: threads would only wait on another
def fit(
    recipe: Recipe,
    data: Moments,
    start: Tensor,
    l1: Tensor | float = 0.0,
    watch: Moments | None = None,
) -> tuple[Tensor, Tensor]:
    """Run one recipe on F folds x K problems at once: weights (F, K, p), iterations (F, K).

    Each problem minimizes loss + l1 * sum|w| from its own `start` (F, K, p) and stops, keeping
    the last iterate, when the watched loss has not improved by `tolerance` for `patience` steps;
    problems that have stopped no longer change, so the result is that of fitting them one by one
    up to rounding (which grows along the path, since r knows no scale: some 1e-4 of the weights).
    `watch` holds the validation pairs if the stop is to look at them (the published squared-error
    variant), else the training loss is watched. `l1` broadcasts to (F, K).
    Source: arXiv 2601.22285, section 4.1 and its released fits.
    """
    w, l1 = start.clone(), torch.as_tensor(l1, dtype=start.dtype).expand(start.shape[:2])
    first, second = torch.zeros_like(w), torch.zeros_like(w)
    result, count = w.clone(), torch.full(w.shape[:2], recipe.iterations)
    active = torch.ones(w.shape[:2], dtype=torch.bool)
    best, waited = torch.full(w.shape[:2], torch.inf, dtype=w.dtype), torch.zeros_like(count)
    penalized = bool((l1 != 0).any())
    for step in range(1, recipe.iterations + 1):
        if recipe.loss == "pearson":
            r, slope = _pearson(w, data)
            loss, gradient = -r, -slope
        else:
            loss, gradient = _mse(w, data)
        if penalized:
            loss = loss + l1 * w.abs().sum(-1)
            gradient = gradient + l1[..., None] * w.sign()
        if recipe.sum_to_one:
            w = w / (w.sum(-1, keepdim=True) + EPSILON)
        first.lerp_(gradient, 1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        below = second.sqrt().div_((1 - BETAS[1] ** step) ** 0.5).add_(EPSILON)
        w = torch.addcdiv(w, first, below, value=-recipe.lr / (1 - BETAS[0] ** step))
        if watch is not None:
            loss = _mse(w, watch)[0] if recipe.loss == "mse" else -_pearson(w, watch)[0]
        better = loss < best - recipe.tolerance
        best = torch.where(better, loss, best)
        waited = torch.where(better, 0, waited + 1)
        stopped = active & (waited >= recipe.patience)
        if stopped.any():
            result[stopped] = w[stopped]
            count[stopped] = step
            active &= ~stopped
            if not active.any():
                break
    result[active] = w[active]
    if recipe.threshold:
        result[result.abs() < recipe.threshold] = 0.0
    return result, count


def start_weights(seeds, p: int, scale: float) -> Tensor:
    """Starting weights N(0, scale^2), (len(seeds), p): each row from its own seed."""
    rows = [np.random.RandomState(int(seed)).normal(0.0, scale, p) for seed in seeds]
    return torch.from_numpy(np.array(rows).reshape(len(rows), p))


def fit_folds(
    recipe: Recipe,
    X: np.ndarray,
    Y: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    seeds: np.ndarray,
    l1: np.ndarray | float = 0.0,
) -> Linear:
    """Fit metrics X (n, p) to targets Y (n, m) on the training rows (F, n) of every fold.

    seeds (F, m) or, for repeats, (F, m, s): then coef is (F, m, s, p). `l1` broadcasts to that
    shape. The squared-error recipe scales on all pairs and watches the test rows, as published.
    """
    seeds = np.asarray(seeds)
    repeats = seeds.shape[2] if seeds.ndim == 3 else 1
    used = (train | test).any(axis=0)
    Y = np.where(used[:, None], Y, 0.0)
    leaky = recipe.loss == "mse"
    low, span = scaling(X, np.broadcast_to(used, train.shape) if leaky else train)
    Z = scaled(X, low, span)
    data = moments(Z, Y, train, center=not leaky).repeat(repeats)
    watch = moments(Z, Y, test, center=False).repeat(repeats) if leaky else None
    f, p = len(train), X.shape[1]
    start = start_weights(seeds.ravel(), p, recipe.init).reshape(f, -1, p)
    each = np.broadcast_to(l1, seeds.shape).reshape(f, -1).copy()
    weights, _ = fit(recipe, data, start, torch.as_tensor(each, dtype=start.dtype), watch)
    coef = weights.numpy().reshape(*seeds.shape, p)
    return Linear(low, span, coef, np.zeros(seeds.shape))
