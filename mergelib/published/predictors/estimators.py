"""The published predictors as scikit-learn estimators."""

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from mergelib.core.errors import MergelibError
from mergelib.core.registry import unknown
from mergelib.published.predictors import adam, greedy, mlp


class AdamRegressor(RegressorMixin, BaseEstimator):
    """yhat = Xw without intercept, w by Adam as the paper's released fits were made.

    `fit` sets coef_ (p,), n_iter_ and n_features_in_. X is used as given: put a
    MinMaxScaler((-1, 1)) before it, as `estimator` does.
    """

    recipe: adam.Recipe

    def _fit(self, X, y, alpha, random_state, X_val=None, y_val=None):
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        seed = check_random_state(random_state)
        start = seed.normal(0.0, self.recipe.init, X.shape[1])
        data = self._moments(X, y)
        watch = None
        if X_val is not None:
            X_val = check_array(X_val, dtype=np.float64)
            watch = self._moments(X_val, np.asarray(y_val, dtype=np.float64))
        start = adam.torch.from_numpy(start)[None, None]
        weights, count = adam.fit(self.recipe, data, start, alpha, watch)
        self.coef_ = weights[0, 0].numpy()
        self.n_iter_ = int(count[0, 0])
        return self

    def _moments(self, X, y):
        rows = np.ones((1, len(X)), dtype=bool)
        return adam.moments(X[None], y[:, None], rows, center=self.recipe.loss == "pearson")

    def predict(self, X):
        """Xw, (n,); its scale and offset mean nothing for the Pearson objectives."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return X @ self.coef_

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        # no intercept, and r knows no scale: R^2 on a shifted target is bad by construction
        tags.regressor_tags.poor_score = True
        return tags


class L1PearsonAdam(AdamRegressor):
    """min_w -r(Xw, y) + alpha * sum|w|: the paper's headline predictor.

    Start N(0, 0.1^2), at most 2000 Adam steps of 0.01, patience 100 at 1e-5, weights under 1e-3
    set to 0. Since r ignores scale the penalty drives w towards 0 and the optimizer's stop sets
    the weights' size: prefer `lasso` or `ridge`. Source: arXiv 2601.22285 v8, section 4.
    """

    recipe = adam.L1

    def __init__(self, alpha: float = 1.0, random_state=None) -> None:
        self.alpha = alpha
        self.random_state = random_state

    def fit(self, X, y):
        """Fit on scaled metrics X (n, p) and targets y (n,)."""
        return self._fit(X, y, self.alpha, self.random_state)


class DensePearsonAdam(AdamRegressor):
    """max_w r(Xw, y) with w divided by its sum before each Adam step: the paper's first version.

    Start N(0, 1), at most 1000 steps of 0.01, patience 50 at 1e-4. The weights do not sum to one
    at the end, and change sign as a whole when their sum is negative: the published flaw is kept.
    Without penalty the exact maximum is least squares (`ols`). Source: arXiv 2601.22285 v1.
    """

    recipe = adam.DENSE

    def __init__(self, random_state=None) -> None:
        self.random_state = random_state

    def fit(self, X, y):
        """Fit on scaled metrics X (n, p) and targets y (n,)."""
        return self._fit(X, y, 0.0, self.random_state)


class MSEAdam(AdamRegressor):
    """min_w mean (y - Xw)^2 with w divided by its sum before each step: the published variant.

    Start N(0, 1), at most 1000 steps of 0.01, patience 50 at 1e-6, on the validation pairs' loss
    if they are given (as published: a leak), else on the training loss. Neither intercept nor
    free scale: `ols` is what minimizes squared error. Source: arXiv 2601.22285 v8, appendix.
    """

    recipe = adam.MSE

    def __init__(self, random_state=None) -> None:
        self.random_state = random_state

    def fit(self, X, y, X_val=None, y_val=None):
        """Fit on scaled metrics X (n, p), targets y (n,); X_val, y_val decide when to stop."""
        return self._fit(X, y, 0.0, self.random_state, X_val, y_val)


class GreedyPearsonAdam(AdamRegressor):
    """Metrics selected one at a time by training r, each set fitted by the dense recipe.

    `direction` "forward" or "backward"; see `greedy.greedy`. Source: arXiv 2601.22285, app.
    """

    recipe = adam.DENSE

    def __init__(self, direction: str = "backward", random_state=None) -> None:
        self.direction = direction
        self.random_state = random_state

    def fit(self, X, y):
        """Fit on scaled metrics X (n, p) and targets y (n,)."""
        if self.direction not in ("forward", "backward"):
            raise MergelibError(unknown("direction", self.direction, ("forward", "backward")))
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        seed = _one_seed(self.random_state)
        self.coef_ = greedy.greedy(self._moments(X, y), self.direction, [seed])[0]
        return self


class SmallMLP(RegressorMixin, BaseEstimator):
    """p -> 8 -> LeakyReLU(0.01) -> dropout 0.4 -> 1, 300 epochs: the paper's network.

    The target is scaled to [-1, 1] on the training pairs and the last epoch is kept, unless
    X_val, y_val are given: then the epoch of least error on them, as published (a leak).
    """

    def __init__(self, random_state=42) -> None:
        self.random_state = random_state

    def fit(self, X, y, X_val=None, y_val=None):
        """Fit on scaled metrics X (n, p) and targets y (n,)."""
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        rows = np.ones((1, len(X)), dtype=bool)
        (self.low_,), (self.span_,) = (v.ravel() for v in mlp.unit_range(y[None], rows))
        watch = None
        if X_val is not None:
            X_val = check_array(X_val, dtype=np.float64)
            X, y = np.vstack([X, X_val]), np.concatenate([y, np.asarray(y_val, dtype=np.float64)])
            rows = (np.arange(len(X)) < rows.shape[1])[None]
            watch = ~rows
        scaled = 2 * (y - self.low_) / self.span_ - 1
        seed = _one_seed(self.random_state)
        self.networks_ = mlp.train_networks(X[None], scaled[None], rows, [seed], watch)
        return self

    def predict(self, X):
        """Forecasts (n,)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        with adam.torch.no_grad():
            output = self.networks_(adam.torch.tensor(X)[None])[0].numpy()
        return (output + 1) / 2 * self.span_ + self.low_

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        # 300 small steps from a random start do not fit much, by the published choice
        tags.regressor_tags.poor_score = True
        return tags


def _one_seed(random_state) -> int:
    """The seed itself, or one drawn from a RandomState."""
    if isinstance(random_state, (int, np.integer)):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31 - 1))
