"""The predictors as scikit-learn estimators, and their table."""

import numpy as np
from sklearn.cross_decomposition import PLSRegression
from sklearn.linear_model import ElasticNet, Lasso, LinearRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler

from mergelib.core.errors import MergelibError
from mergelib.core.registry import unknown
from mergelib.published.predictors.estimators import (
    DensePearsonAdam,
    GreedyPearsonAdam,
    L1PearsonAdam,
    MSEAdam,
    SmallMLP,
)

# default strength: alpha of ridge, lasso, elastic net, paper-l1; number of components of pls
PREDICTORS: dict[str, float | None] = {
    "ols": None,
    "ridge": 1.0,
    "lasso": 1e-4,
    "elasticnet": 1e-4,
    "pls": 3,
    "paper-dense": None,
    "paper-l1": 1.0,
    "paper-mse": None,
    "paper-forward": None,
    "paper-backward": None,
    "paper-mlp": None,
}
# strengths tried by the nested choice (`alpha="auto"`)
GRIDS: dict[str, tuple[float, ...]] = {
    "ridge": tuple(10.0**k for k in range(-3, 5)),
    "lasso": tuple(float(x) for x in np.logspace(-6, -2, 9)),
    "elasticnet": tuple(float(x) for x in np.logspace(-6, -2, 9)),
    "pls": (1, 2, 3, 4, 6, 8),
    "paper-l1": (0.0, 0.1, 0.3, 1.0, 3.0),
}


def check_predictor(name: str) -> str:
    """The name itself. Raises MergelibError for an unknown predictor."""
    if name not in PREDICTORS:
        raise MergelibError(unknown("predictor", name, PREDICTORS))
    return name


def estimator(name: str, alpha: float | None = None, seed: int = 0) -> Pipeline:
    """The predictor as a pipeline: metrics to [-1, 1] on the training pairs, then the fit.

    ols: least squares with intercept, of least norm when collinear.
    ridge: sum of squared errors + alpha ||w||^2, intercept unpenalized.
    lasso, elasticnet: scikit-learn's objective, mean squared error / 2 + alpha (penalty), the
    elastic net half L1 and half L2. pls: `alpha` components. paper-*: see the classes.

    Raises MergelibError for an unknown name or a strength that is not positive.
    """
    alpha = strength(name, alpha)
    steps = {
        "ols": lambda: LinearRegression(),
        "ridge": lambda: Ridge(alpha=alpha),
        "lasso": lambda: Lasso(alpha=alpha, max_iter=100_000),
        "elasticnet": lambda: ElasticNet(alpha=alpha, l1_ratio=0.5, max_iter=100_000),
        "pls": lambda: PLSRegression(n_components=int(alpha), scale=False),
        "paper-dense": lambda: DensePearsonAdam(random_state=seed),
        "paper-l1": lambda: L1PearsonAdam(alpha=alpha, random_state=seed),
        "paper-mse": lambda: MSEAdam(random_state=seed),
        "paper-forward": lambda: GreedyPearsonAdam("forward", random_state=seed),
        "paper-backward": lambda: GreedyPearsonAdam("backward", random_state=seed),
        "paper-mlp": lambda: SmallMLP(random_state=seed),
    }
    return make_pipeline(MinMaxScaler((-1, 1)), steps[name]())


def strength(name: str, alpha: float | None) -> float | None:
    """`alpha`, or the predictor's default where it is None."""
    default = PREDICTORS[check_predictor(name)]
    if alpha is None:
        return default
    if default is None:
        raise MergelibError(f"predictor {name!r} has no strength: leave --alpha out")
    least = 1 if name == "pls" else 0
    if not np.isfinite(alpha) or alpha < least or (alpha == 0 and name != "paper-l1"):
        allowed = "at least 1" if name == "pls" else "above 0 (use ols for none)"
        raise MergelibError(f"--alpha {alpha} for predictor {name!r}: give a number {allowed}")
    if name == "pls" and alpha != int(alpha):
        raise MergelibError(f"--alpha {alpha} for predictor 'pls': give a whole number")
    return alpha
