"""The published predictors' rows in the registry; what each is says its class."""

from functools import partial

import numpy as np

from mergelib.predict.folds import Linear, Problem
from mergelib.predict.predictors import predictor
from mergelib.published.predictors import adam
from mergelib.published.predictors.estimators import (
    AdamRegressor,
    DensePearsonAdam,
    GreedyPearsonAdam,
    L1PearsonAdam,
    MSEAdam,
    SmallMLP,
)
from mergelib.published.predictors.greedy import greedy_folds
from mergelib.published.predictors.mlp import mlp_folds

FIRST, FINAL = "arXiv 2601.22285v1", "arXiv 2601.22285v8"


def _adam(regressor: type[AdamRegressor], at: Problem, l1: float | np.ndarray | None) -> Linear:
    l1 = 0.0 if l1 is None else l1
    return adam.fit_folds(regressor.recipe, at.X, at.Y, at.train, at.test, at.seeds, l1)


def _greedy(direction: str, at: Problem, _: None) -> Linear:
    return greedy_folds(direction, at.X, at.Y, at.train, at.seeds)


@predictor(
    "paper-dense", folds=partial(_adam, DensePearsonAdam), by_r=True, qap="batch", reference=FIRST
)
def dense(strength: None, seed: int) -> DensePearsonAdam:
    """Maximum training r by Adam."""
    return DensePearsonAdam(random_state=seed)


@predictor(
    "paper-l1",
    strength=1.0,
    grid=(0.0, 0.1, 0.3, 1.0, 3.0),
    domain="not negative",
    by_r=True,
    folds=partial(_adam, L1PearsonAdam),
    qap="batch",
    reference=FINAL,
)
def l1(strength: float, seed: int) -> L1PearsonAdam:
    """Maximum training r less strength sum |w| by Adam: the published headline's."""
    return L1PearsonAdam(alpha=strength, random_state=seed)


@predictor("paper-mse", folds=partial(_adam, MSEAdam), qap="batch", reference=FINAL)
def mse(strength: None, seed: int) -> MSEAdam:
    """Least squared error by Adam, stopped on the test pairs."""
    return MSEAdam(random_state=seed)


@predictor("paper-forward", folds=partial(_greedy, "forward"), reference=FIRST)
def forward(strength: None, seed: int) -> GreedyPearsonAdam:
    """Metrics added one at a time."""
    return GreedyPearsonAdam("forward", random_state=seed)


@predictor("paper-backward", folds=partial(_greedy, "backward"), reference=FINAL)
def backward(strength: None, seed: int) -> GreedyPearsonAdam:
    """Metrics removed one at a time."""
    return GreedyPearsonAdam("backward", random_state=seed)


@predictor(
    "paper-mlp",
    folds=lambda at, _: mlp_folds(at.X, at.Y, at.train, at.test, at.seeds),
    reference=FINAL,
)
def network(strength: None, seed: int) -> SmallMLP:
    """A small network."""
    return SmallMLP(random_state=seed)
