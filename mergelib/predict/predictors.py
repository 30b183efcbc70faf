"""The predictors: scikit-learn estimators by name, and how all folds are fitted at once."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.cross_decomposition import PLSRegression
from sklearn.linear_model import ElasticNet, Lasso, LinearRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler

from mergelib.core.errors import MergelibError
from mergelib.core.registry import Registry
from mergelib.predict.folds import Linear, Problem, RidgeFolds, ols_folds

Build = Callable[[Any, int], RegressorMixin]
Folds = Callable[[Problem, Any], Linear | np.ndarray]


@dataclass(frozen=True)
class Predictor:
    """One predictor.

    build: (strength, seed) -> scikit-learn estimator for metrics scaled to [-1, 1].
    strength: the default, None where there is none; grid: those tried by nesting (alpha="auto");
    domain: "positive", "not negative", or "count" (whole, at least 1).
    by_r: the scale of a forecast means nothing, so nesting chooses by r, not by squared error.
    folds: (problem, strength) -> all folds and methods, as `Linear` or, without coefficients, as
    predictions (F, n, m).
    prepare: X -> what all fits on the same metrics share, handed to `folds` in the problem.
    qap: how a null is hastened where no pair is missing: "map", a held-out prediction is linear in
    the targets; "batch", permuted targets are further problems of one batch; "", not at all.
    """

    name: str
    strength: float | None
    grid: tuple[float, ...]
    domain: str
    by_r: bool
    qap: str
    reference: str
    build: Build
    folds: Folds
    prepare: Callable[[np.ndarray], Any]


PREDICTORS: Registry[Predictor] = Registry("predictor", group="mergelib.predictors")


def predictor(
    name: str,
    strength: float | None = None,
    grid: tuple[float, ...] = (),
    *,
    domain: str = "positive",
    by_r: bool = False,
    folds: Folds | None = None,
    prepare: Callable[[np.ndarray], Any] = lambda X: None,
    qap: str = "",
    reference: str = "",
) -> Callable[[Build], Build]:
    """Register (strength, seed) -> scikit-learn estimator under a name; see `Predictor`.

    Without `folds` the estimator is fitted fold by fold; one without coef_ has no coefficients.
    """

    def register(build: Build) -> Build:
        at_once = folds or partial(_one_by_one, build)
        PREDICTORS.add(
            Predictor(name, strength, grid, domain, by_r, qap, reference, build, at_once, prepare)
        )
        return build

    return register


def _pipeline(build: Build, strength: Any, seed: int) -> Pipeline:
    return make_pipeline(MinMaxScaler((-1, 1)), build(strength, seed))


def _one_by_one(build: Build, at: Problem, strength: Any) -> Linear | np.ndarray:
    """Every fold and method fitted by itself; `strength` broadcasts to (F, m)."""
    f, m, p = len(at.train), at.Y.shape[1], at.X.shape[1]
    low, span = np.empty((f, p)), np.empty((f, p))
    coef, intercept = np.empty((f, m, p)), np.empty((f, m))
    prediction, linear = np.empty((f, len(at.X), m)), True
    strengths = np.broadcast_to(strength, (f, m))
    for k, rows in enumerate(at.train):
        for j in range(m):
            model = _pipeline(build, strengths[k, j], int(at.seeds[k, j]))
            scale, last = model.fit(at.X[rows], at.Y[rows, j])[:]
            linear = hasattr(last, "coef_")
            if not linear:
                prediction[k, :, j] = model.predict(at.X)
                continue
            low[k], span[k] = scale.data_min_, 2.0 / scale.scale_
            coef[k, j] = np.ravel(last.coef_)
            intercept[k, j] = np.ravel(last.predict(np.zeros((1, p))))[0]
    return Linear(low, span, coef, intercept) if linear else prediction


@predictor("ols", folds=lambda p, _: ols_folds(p.X, p.Y, p.train), qap="map")
def ols(strength: None, seed: int) -> LinearRegression:
    """Least squares with intercept, of least norm when collinear."""
    return LinearRegression()


def _ridge_folds(problem: Problem, strength: float | np.ndarray) -> Linear:
    shared = problem.shared or RidgeFolds(problem.X)
    return shared.fit(problem.Y, problem.train, strength)


@predictor(
    "ridge",
    strength=1.0,
    grid=tuple(10.0**k for k in range(-3, 5)),
    folds=_ridge_folds,
    prepare=RidgeFolds,
    qap="map",
    reference="Hoerl and Kennard 1970",
)
def ridge(strength: float, seed: int) -> Ridge:
    """Sum of squared errors + strength ||w||^2, intercept unpenalized."""
    return Ridge(alpha=strength)


SMALL = tuple(float(x) for x in np.logspace(-6, -2, 9))


@predictor("lasso", strength=1e-4, grid=SMALL, reference="Tibshirani 1996")
def lasso(strength: float, seed: int) -> Lasso:
    """Mean squared error / 2 + strength sum |w|."""
    return Lasso(alpha=strength, max_iter=100_000)


@predictor("elasticnet", strength=1e-4, grid=SMALL, reference="Zou and Hastie 2005")
def elasticnet(strength: float, seed: int) -> ElasticNet:
    """As `lasso`, the penalty half L1 and half L2."""
    return ElasticNet(alpha=strength, l1_ratio=0.5, max_iter=100_000)


class _Components(PLSRegression):
    """Partial least squares with as many components as asked for and as the data have."""

    def fit(self, X, y=None):
        asked = self.n_components
        self.n_components = max(1, min(asked, len(X) - 1, X.shape[1]))
        try:
            return super().fit(X, y)
        finally:
            self.n_components = asked


@predictor("pls", strength=3, grid=(1, 2, 3, 4, 6, 8), domain="count", reference="Wold 1975")
def pls(strength: float, seed: int) -> PLSRegression:
    """Partial least squares of `strength` components, at most what the pairs allow."""
    return _Components(n_components=int(strength), scale=False)


def estimator(name: str, alpha: float | None = None, seed: int = 0) -> Pipeline:
    """The predictor as a pipeline: metrics to [-1, 1] on the training pairs, then the fit.

    Raises MergelibError for an unknown name or a strength outside its domain.
    """
    return _pipeline(PREDICTORS[name].build, strength(name, alpha), seed)


def strength(name: str, alpha: float | None) -> float | None:
    """`alpha`, or the predictor's default where it is None. Raises as `estimator` does."""
    row = PREDICTORS[name]
    if alpha is None:
        return row.strength
    if row.strength is None:
        raise MergelibError(f"predictor {name!r} has no strength: leave --alpha out")
    least = 1 if row.domain == "count" else 0
    if not np.isfinite(alpha) or alpha < least or (alpha == 0 and row.domain == "positive"):
        allowed = {"count": "at least 1", "positive": "above 0 (use ols for none)"}
        raise MergelibError(
            f"--alpha {alpha} for predictor {name!r}: give a number "
            f"{allowed.get(row.domain, 'of at least 0')}"
        )
    if row.domain == "count" and alpha != int(alpha):
        raise MergelibError(f"--alpha {alpha} for predictor {name!r}: give a whole number")
    return alpha
