"""Greedy selection of metrics as published: one in or one out at a time, by training r."""

import numpy as np
import torch

from mergelib.predict.folds import Linear, scaled, scaling
from mergelib.published.predictors import adam

# a step must gain (forward), or may lose (backward), this much training r
STEP = 1e-3


def _gather(data: adam.Moments, folds: np.ndarray, chosen: np.ndarray) -> adam.Moments:
    """Moments of the candidates' metrics: chosen (A, C, k) indexes the metrics of A folds."""
    a, c, k = chosen.shape
    which = torch.from_numpy(chosen)
    f = torch.from_numpy(folds)[:, None, None]
    xx = data.xx[f[..., None], which[..., :, None], which[..., None, :]].reshape(a * c, k, k)
    xy = data.xy[f, 0, which].reshape(a * c, 1, k)
    yy = data.yy[torch.from_numpy(folds)].repeat_interleave(c, dim=0)
    return adam.Moments(xx, xy, yy, data.n[torch.from_numpy(folds)].repeat_interleave(c))


def _best(
    data: adam.Moments, folds: np.ndarray, chosen: np.ndarray, rngs: list[np.random.RandomState]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit every candidate set anew; per fold the winner's place, training r and weights."""
    a, c, k = chosen.shape
    part = _gather(data, folds, chosen)
    start = np.stack([rngs[f].normal(0.0, adam.DENSE.init, (c, k)) for f in folds])
    weights, _ = adam.fit(adam.DENSE, part, torch.from_numpy(start).reshape(a * c, 1, k))
    r = adam.pearson_value(weights, part).reshape(a, c).numpy()
    r = np.nan_to_num(r, nan=-1.0)
    place = r.argmax(axis=1)
    rows = np.arange(a)
    return place, r[rows, place], weights.reshape(a, c, k).numpy()[rows, place]


def greedy(data: adam.Moments, direction: str, seeds: np.ndarray) -> np.ndarray:
    """Weights (F, p) of greedily selected metrics, 0 for those left out; seeds (F,).

    forward: from none, add the metric that gives the highest training r while it gains STEP.
    backward: from all, remove the one whose removal costs least while it costs at most STEP.
    Every candidate is fitted anew with the dense recipe from its own random start; all
    candidates of all folds run as one batch. Source: arXiv 2601.22285, appendix.
    """
    f, p = data.xx.shape[:2]
    forward = direction == "forward"
    rngs = [np.random.RandomState(int(seed)) for seed in seeds]
    inside = np.zeros((f, p), dtype=bool) if forward else np.ones((f, p), dtype=bool)
    coef, current = np.zeros((f, p)), np.zeros(f)
    active = np.arange(f)
    if not forward:
        every = np.broadcast_to(np.arange(p), (f, 1, p)).copy()
        _, current, coef = _best(data, active, every, rngs)
    for _ in range(p if forward else p - 1):
        candidates = []
        for k in active:
            move = np.flatnonzero(inside[k] != forward)
            sets = np.tile(inside[k], (len(move), 1))
            sets[np.arange(len(move)), move] = forward
            candidates.append([np.flatnonzero(s) for s in sets])
        chosen = np.array(candidates)
        place, r, weights = _best(data, active, chosen, rngs)
        moved = (r - current[active] >= STEP) if forward else (current[active] - r <= STEP)
        for a in np.flatnonzero(moved):
            k, kept = active[a], chosen[a, place[a]]
            inside[k], coef[k] = False, 0.0
            inside[k, kept], coef[k, kept] = True, weights[a]
            current[k] = r[a]
        active = active[moved]
        if not len(active):
            break
    return coef


def greedy_folds(
    direction: str, X: np.ndarray, Y: np.ndarray, train: np.ndarray, seeds: np.ndarray
) -> Linear:
    """`greedy` for metrics X (n, p), targets Y (n, m), masks train (F, n), seeds (F, m)."""
    low, span = scaling(X, train)
    Z = scaled(X, low, span)
    Y = np.where(np.any(train, axis=0)[:, None], Y, 0.0)
    coef = np.empty((len(train), Y.shape[1], X.shape[1]))
    for m in range(Y.shape[1]):
        data = adam.moments(Z, Y[:, m : m + 1], train, center=True)
        coef[:, m] = greedy(data, direction, seeds[:, m])
    return Linear(low, span, coef, np.zeros(coef.shape[:2]))
