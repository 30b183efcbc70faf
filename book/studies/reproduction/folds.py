"""Released fits read in the order of our own folds, methods and metrics."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mergelib.core.errors import MergelibError
from mergelib.core.store import read_json
from studies.released_fits import read_fits
from studies.reproduction.runs import Problem, Run


@dataclass(frozen=True)
class Released:
    """Released fits of a run's methods, folds and metrics ordered as in its `Problem`.

    coef (F, m, p); r, train_r (F, m) as stored, or (1, m) for the one r of leave-two-tasks-out.
    """

    coef: np.ndarray
    r: np.ndarray
    train_r: np.ndarray


def read_released(run: Run, at: Problem, source: Path) -> Released:
    """The released fits of `run`. Raises MergelibError if folds or metrics are not the run's."""
    folder = run.path(source)
    if run.split == "l2to":
        return _read_pairs(run, at, folder)
    fits = read_fits(folder)
    coef = np.zeros((len(at.names), len(run.methods), len(at.pairs.metrics)))
    r, train_r = np.empty(coef.shape[:2]), np.empty(coef.shape[:2])
    for k, method in enumerate(run.methods):
        fit = fits.get(method)
        if fit is None or sorted(fit.tasks) != sorted(at.names):
            raise MergelibError(f"{folder} holds no fit of {method} with a fold for each task")
        order = [fit.tasks.index(name) for name in at.names]
        columns = [at.pairs.metrics.index(m) for m in fit.metrics]
        coef[:, k, columns] = fit.coef[order]
        r[:, k], train_r[:, k] = fit.r[order], fit.train_r[order]
    return Released(coef, r, train_r)


def _read_pairs(run: Run, at: Problem, folder: Path) -> Released:
    coef = np.empty((len(at.names), len(run.methods), len(at.pairs.metrics)))
    r = np.empty((1, len(run.methods)))
    for k, method in enumerate(run.methods):
        path = folder / f"{method}_l2to_results.json"
        held = read_json(path)
        try:
            folds = {f["held_out_pair"].replace("__", "+"): f for f in held["fold_results"]}
            coef[:, k] = [
                [folds[name]["coefficients"][m] for m in at.pairs.metrics] for name in at.names
            ]
            r[0, k] = held["aggregate_metrics"]["val_r"]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise MergelibError(
                f"{path} is not of the released shape ({error}); check it out again"
            ) from None
    return Released(coef, r, np.full_like(r, np.nan))


def last_rounds(run: Run, source: Path) -> pd.DataFrame:
    """Training r of a released greedy selection: of the set chosen in its last round, and stored
    for the set's final fit; per method the mean over the folds that chose at all."""
    rows = []
    for method, fit in read_fits(run.path(source)).items():
        pairs = []
        for fold in fit.record["fold_results"]:
            rounds = fold.get("selection_history") or fold.get("elimination_history")
            if rounds:
                last = rounds[-1]
                pairs.append((last.get("train_r", last.get("train_r_after")), fold["train_r"]))
        chosen, final = np.mean(pairs, axis=0)
        rows.append((run.version, run.setting, run.name, method, len(pairs), chosen, final))
    names = ["version", "setting", "run", "method", "folds", "last round", "final fit"]
    return pd.DataFrame(rows, columns=names)
