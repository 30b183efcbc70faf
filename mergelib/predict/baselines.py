"""What one can forecast without any metric, and with the best single one."""

import numpy as np
import pandas as pd

from mergelib.core.errors import MergelibError
from mergelib.pairs.correlation import pearson
from mergelib.pairs.tables import Pairs
from mergelib.pairs.targets import additive_design


def constant(Y: np.ndarray, train: np.ndarray) -> np.ndarray:
    """The training mean: (F, n, m). Its r within a fold is undefined."""
    rows = train.astype(np.float64)
    mean = rows @ Y / rows.sum(axis=1, keepdims=True)
    return np.broadcast_to(mean[:, None], (len(train), *Y.shape)).copy()


def additive(Y: np.ndarray, ends: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Additive task effects of the training pairs, (F, n, m): yhat_ij = e_i + e_j.

    e by least squares on the training pairs; a task that training does not hold gets the mean
    effect of those it does. Under leave-one-task-out a test pair is thus known by its partner.
    """
    design = additive_design(ends, int(ends.max()) + 1)
    out = np.empty((len(train), *Y.shape))
    for k, rows in enumerate(train):
        known = design[rows].any(axis=0)
        effect = np.linalg.lstsq(design[rows][:, known], Y[rows], rcond=None)[0]
        effects = np.tile(effect.mean(axis=0), (design.shape[1], 1))
        effects[known] = effect
        out[k] = design @ effects
    return out


def line(x: np.ndarray, Y: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Least-squares line on one known quantity x (n,) or (n, m), fitted on training: (F, n, m)."""
    x = np.broadcast_to(x[:, None] if x.ndim == 1 else x, Y.shape)
    rows = train.astype(np.float64)
    n = rows.sum(axis=1, keepdims=True)
    mean_x, mean_y = rows @ x / n, rows @ Y / n
    inside = train[..., None]
    dx = np.where(inside, x - mean_x[:, None], 0.0)
    dy = np.where(inside, Y - mean_y[:, None], 0.0)
    spread = (dx**2).sum(axis=1)
    slope = np.where(spread > 0, (dx * dy).sum(axis=1) / np.where(spread > 0, spread, 1.0), 0.0)
    return mean_y[:, None] + slope[:, None] * (x - mean_x[:, None])


def best_metric(X: np.ndarray, Y: np.ndarray, train: np.ndarray) -> np.ndarray:
    """The line on the metric with the largest |r| in training, chosen in each fold: (F, n, m)."""
    f, (n, m), p = len(train), Y.shape, X.shape[1]
    out = np.empty((f, n, m))
    for k, rows in enumerate(train):
        x = np.repeat(X[rows][:, :, None], m, axis=2)
        y = np.repeat(Y[rows][:, None, :], p, axis=1)
        r = np.abs(pearson(x, y, np.ones_like(x, dtype=bool), axis=0))
        best = np.where(np.isnan(r), -1.0, r).argmax(axis=0)
        out[k] = line(X[:, best], Y, train[k : k + 1])[0]
    return out


def base_knowledge(pairs: Pairs, tasks: pd.DataFrame) -> np.ndarray:
    """Mean over a pair of zero-shot / fine-tuned accuracy, (n,): how much the base already knows.

    Raises MergelibError for missing columns or tasks.
    """
    for column in ("task", "zero_shot", "fine_tuned"):
        if column not in tasks.columns:
            found = ", ".join(map(str, tasks.columns))
            raise MergelibError(f"tasks table: no column {column}; it has {found}")
    known = tasks.set_index("task")
    absent = [t for t in pairs.tasks if t not in known.index]
    if absent:
        raise MergelibError(f"tasks table: no row for {', '.join(absent)}")
    share = (known["zero_shot"] / known["fine_tuned"]).loc[list(pairs.tasks)].to_numpy(np.float64)
    if not np.isfinite(share).all():
        raise MergelibError("tasks table: zero_shot / fine_tuned is missing or not finite")
    return share[pairs.ends].mean(axis=1)


def all_baselines(
    pairs: Pairs, Y: np.ndarray, train: np.ndarray, tasks: pd.DataFrame | None = None
) -> dict[str, np.ndarray]:
    """Held-out predictions (F, n, m) of every baseline, by name."""
    out = {
        "constant": constant(Y, train),
        "additive_task_effects": additive(Y, pairs.ends, train),
        "single_task_accuracy": line(pairs.single.mean(axis=-1), Y, train),
        "best_single_metric": best_metric(pairs.X, Y, train),
    }
    if tasks is not None:
        out["base_knowledge"] = line(base_knowledge(pairs, tasks), Y, train)
    return out
