"""Does a predictor travel: fitted on one setting's pairs, forecasting another's."""

from dataclasses import dataclass

import numpy as np

from mergelib.core.errors import MergelibError
from mergelib.pairs.correlation import pearson
from mergelib.pairs.inference import permutation_p, permuted_targets
from mergelib.pairs.tables import Pairs
from mergelib.predict.crossval import choose_alpha, fit_folds, fold_seeds
from mergelib.predict.folds import Linear, scaling


@dataclass(frozen=True)
class Transfer:
    """prediction (n_to, m) of the other setting's pairs; r (m,); null (N, m) of permutations."""

    prediction: np.ndarray
    r: np.ndarray
    null: np.ndarray

    @property
    def p(self) -> np.ndarray:
        """`permutation_p` of each method, (m,)."""
        return permutation_p(self.r, self.null)


def transfer(
    fitted: Pairs,
    y: np.ndarray,
    other: Pairs,
    y_other: np.ndarray,
    predictor: str = "ridge",
    alpha=None,
    seed: int = 0,
    rescale: bool = True,
    draws: int = 0,
) -> Transfer:
    """Fit y (n, m) on all of one setting's pairs, forecast another's y_other (n_to, m).

    Both settings may share tasks: what is new is the backbone or optimizer. `rescale` puts the
    other setting's metrics on [-1, 1] by their own range (known before any merge), since raw
    metrics differ in size between backbones; without it the fitted setting's range is kept.
    `draws`: QAP permutations of the other setting's tasks against the forecasts.

    Raises MergelibError if the two differ in metrics or methods.
    """
    check_alike(fitted, other, "metrics", "methods")
    train = np.ones((1, len(fitted)), dtype=bool)
    seeds = fold_seeds(seed, fitted.methods, 1)
    if isinstance(alpha, str):
        alpha = choose_alpha(predictor, fitted.X, y, fitted.ends, train, seeds)
    model = fit_folds(predictor, fitted.X, y, train, ~train, alpha, seeds)
    if rescale:
        low, span = scaling(other.X, np.ones((1, len(other)), dtype=bool))
        model = Linear(low, span, model.coef, model.intercept)
    prediction = model.predict(other.X)[0]
    every = np.ones_like(prediction, dtype=bool)
    null = np.empty((draws, y.shape[1]))
    for k, moved in enumerate(permuted_targets(y_other, other.ends, draws, seed, stream=3)):
        valid = ~np.isnan(moved)
        null[k] = pearson(prediction, np.where(valid, moved, 0.0), valid, axis=0)
    return Transfer(prediction, pearson(prediction, y_other, every, axis=0), null)


def check_alike(fitted: Pairs, other: Pairs, *names: str) -> None:
    """Raise MergelibError unless two settings agree in each of the named fields of `Pairs`."""
    for name in names:
        a, b = getattr(fitted, name), getattr(other, name)
        if a != b:
            differing = ", ".join(sorted(set(a) ^ set(b))) or "the order"
            raise MergelibError(f"the two settings differ in {name}: {differing}")
