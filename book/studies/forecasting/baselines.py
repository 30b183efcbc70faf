"""What one can forecast without looking at a merge, and what no forecast can beat."""

from dataclasses import replace

import numpy as np
import pandas as pd

from mergelib.forecasting.bank import Bank
from mergelib.pairs.covariates import with_task_covariates
from mergelib.pairs.tables import Pairs, assemble
from mergelib.pairs.targets import target
from mergelib.predict.baselines import base_knowledge, constant, line
from mergelib.predict.crossval import held_out
from mergelib.predict.splits import fold_masks, splitter


def baselines(
    bank: Bank, metrics: pd.DataFrame, merges: pd.DataFrame, tasks: pd.DataFrame
) -> dict[str, np.ndarray]:
    """Left-out forecasts (P, M) of normalized accuracy by name, in the bank's order of pairs.

    `metrics`: all 28 of a run. Ridge of strength 1, the library's default.
    """
    pairs = assemble(metrics, merges, bank.methods)
    known = _accuracies(with_task_covariates(pairs, tasks))
    y = target(pairs, "normalized")
    _, train, test = fold_masks(splitter("l2to"), pairs.ends)
    ridge = {
        name: held_out("ridge", held.X, y, pairs.ends, train, test).prediction
        for name, held in {"metrics": pairs, "metrics + known": known}.items()
    }
    made = {
        "constant": constant(y, train),
        "line on base knowledge": line(base_knowledge(pairs, tasks), y, train),
        "ridge on 28 metrics": ridge["metrics"],
        "ridge on 28 metrics + known": ridge["metrics + known"],
    }
    order = _order(bank, pairs)
    return {name: forecast[test][order] for name, forecast in made.items()}


def _accuracies(pairs: Pairs) -> Pairs:
    """The pairs with their metrics and known accuracies, without numbers of classes and images."""
    kept = [k for k, name in enumerate(pairs.metrics) if ":log_" not in name]
    return replace(pairs, metrics=tuple(pairs.metrics[k] for k in kept), X=pairs.X[:, kept])


def _order(bank: Bank, pairs: Pairs) -> np.ndarray:
    """Where the bank's pairs stand among the others."""
    names = [pairs.tasks[k] for k in range(len(pairs.tasks))]
    place = {frozenset((names[i], names[j])): k for k, (i, j) in enumerate(pairs.ends)}
    of_bank = [bank.tasks[k].partition(":")[2] for k in range(len(bank.tasks))]
    return np.array([place[frozenset((of_bank[i], of_bank[j]))] for i, j in bank.ends])


def attainable(bank: Bank, merges: pd.DataFrame, tasks: pd.DataFrame) -> pd.DataFrame:
    """What the test sets' own noise leaves to any forecast: method, noise, r, mae.

    A side's accuracy p on N images has variance p (1 - p) / N; noise is the standard deviation of
    a pair's mean of p / fine_tuned; r = sqrt(1 - noise^2 / variance of the target), and mae =
    noise sqrt(2 / pi).
    """
    images = tasks.set_index("task")["n_test"]
    rows = []
    for k, method in enumerate(bank.methods):
        of = merges[merges["method"] == method]
        variance = np.zeros(len(of))
        for side in "ab":
            p, n = of[f"acc_{side}"].to_numpy(), images[of[f"task_{side}"]].to_numpy()
            variance += p * (1 - p) / n / of[f"single_{side}"].to_numpy() ** 2 / 4
        noise = np.sqrt(variance.mean())
        r = np.sqrt(max(1 - variance.mean() / bank.mean[:, k].var(), 0.0))
        rows.append((method, noise, r, noise * np.sqrt(2 / np.pi)))
    return pd.DataFrame(rows, columns=["method", "noise", "r", "mae"])
