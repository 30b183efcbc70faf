"""The published optimizer written as published: the reference for tests and benchmarks."""

import torch
from torch import Tensor

from mergelib.published.predictors.adam import EPSILON, Recipe


def fit_literal(
    recipe: Recipe,
    X: Tensor,
    y: Tensor,
    start: Tensor,
    l1: float = 0.0,
    X_watch: Tensor | None = None,
    y_watch: Tensor | None = None,
) -> tuple[Tensor, int]:
    """A recipe for one problem, written as published: autograd, `torch.optim.Adam`, a loop.

    One problem in plain autograd: `adam.fit` is tested against it and timed beside it. X (n, p),
    y (n,), start (p,).
    """

    def value(w: Tensor, X: Tensor, y: Tensor) -> Tensor:
        prediction = X @ w
        if recipe.loss == "mse":
            return ((prediction - y) ** 2).mean()
        a, b = prediction - prediction.mean(), y - y.mean()
        return -(a * b).sum() / (((a**2).sum() * (b**2).sum()).sqrt() + EPSILON)

    w = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([w], lr=recipe.lr)
    best, waited, steps = float("inf"), 0, 0
    while steps < recipe.iterations and waited < recipe.patience:
        steps += 1
        optimizer.zero_grad()
        loss = value(w, X, y) + l1 * w.abs().sum()
        loss.backward()
        if recipe.sum_to_one:
            with torch.no_grad():
                w.div_(w.sum() + EPSILON)
        optimizer.step()
        current = loss.item()
        if X_watch is not None:
            with torch.no_grad():
                current = value(w, X_watch, y_watch).item()
        if current < best - recipe.tolerance:
            best, waited = current, 0
        else:
            waited += 1
    result = w.detach().clone()
    result[result.abs() < recipe.threshold] = 0.0
    return result, steps
