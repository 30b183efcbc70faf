"""Exact forms, collinear groups and transfer against independent optimizers and formulas."""

import numpy as np
import pytest
from scipy import optimize, stats
from sklearn.linear_model import Ridge, lars_path

from mergelib.core.errors import MergelibError
from mergelib.pairs.tables import Pairs
from mergelib.predict.collinear import collinear_groups
from mergelib.predict.transfer import transfer
from studies.exact import lasso_pearson, lasso_pearson_within, max_pearson

pytestmark = [pytest.mark.numeric, pytest.mark.slow]


@pytest.fixture
def xy():
    rng = np.random.default_rng(3)
    X = rng.normal(size=(40, 5)) @ rng.normal(size=(5, 5)) + 2
    return X, X @ [1.0, -0.5, 0.0, 0.0, 0.3] + rng.normal(size=40)


def test_no_weights_correlate_more_than_least_squares(xy):
    X, y = xy
    w = max_pearson(X, y)
    best = stats.pearsonr(X @ w, y)[0]
    assert np.linalg.norm((X - X.mean(0)) @ w) == pytest.approx(1)
    found = optimize.minimize(lambda w: -stats.pearsonr(X @ w, y)[0], np.ones(5), tol=1e-10)
    assert -found.fun == pytest.approx(best, abs=1e-7)
    r_squared = np.linalg.lstsq(np.column_stack([X, np.ones(40)]), y, rcond=None)[1][0]
    assert best**2 == pytest.approx(1 - r_squared / ((y - y.mean()) ** 2).sum())


@pytest.mark.parametrize("penalty", [0.3, 2.0, 4.0])
def test_penalized_pearson_at_unit_variance_is_the_lasso(xy, penalty):
    X, y = xy
    Xc, yc = X - X.mean(0), (y - y.mean()) / np.linalg.norm(y - y.mean())
    ours = lasso_pearson(X, y, penalty)
    value = lambda w: yc @ Xc @ w - penalty * np.abs(w).sum()  # noqa: E731

    # an optimizer that knows nothing of the lasso: w = u - v, u, v >= 0, ||Xc w|| <= 1
    split = lambda z: z[:5] - z[5:]  # noqa: E731
    best = -np.inf
    for start in range(4):
        found = optimize.minimize(
            lambda z: -(yc @ Xc @ split(z) - penalty * z.sum()),
            np.random.default_rng(start).uniform(0, 0.05, 10),
            bounds=[(0, None)] * 10,
            constraints={"type": "ineq", "fun": lambda z: 1 - np.sum((Xc @ split(z)) ** 2)},
            method="SLSQP", options={"ftol": 1e-13, "maxiter": 1000},
        )  # fmt: skip
        best = max(best, -found.fun)
    assert value(ours) == pytest.approx(best, abs=1e-6)
    # and the same point of the path that least-angle regression finds
    alphas, _, coefs = lars_path(Xc, yc, method="lasso")
    at = np.array([np.interp(penalty, alphas[::-1] * 40, row[::-1]) for row in coefs])
    if np.abs(at).sum() > 0:
        np.testing.assert_allclose(ours, at / np.linalg.norm(Xc @ at), atol=1e-5)


@pytest.mark.parametrize("share", [0.5, 0.8, 2.0])
def test_no_weights_within_an_l1_bound_correlate_more(xy, share):
    X, y = xy
    Xc, yc = X - X.mean(0), (y - y.mean()) / np.linalg.norm(y - y.mean())
    bound = share * np.abs(max_pearson(X, y)).sum()
    w = lasso_pearson_within(X, y, bound)
    assert np.abs(w).sum() <= bound * (1 + 1e-9) and np.linalg.norm(Xc @ w) == pytest.approx(1)
    split = lambda z: z[:5] - z[5:]  # noqa: E731
    found = optimize.minimize(
        lambda z: -yc @ Xc @ split(z), np.full(10, 0.01), bounds=[(0, None)] * 10,
        constraints=[
            {"type": "ineq", "fun": lambda z: 1 - np.sum((Xc @ split(z)) ** 2)},
            {"type": "ineq", "fun": lambda z: bound - z.sum()},
        ],
        method="SLSQP", options={"ftol": 1e-14, "maxiter": 1000},
    )  # fmt: skip
    assert stats.pearsonr(X @ w, y)[0] == pytest.approx(-found.fun, abs=1e-5)
    with pytest.raises(MergelibError, match="no weights of unit prediction variance"):
        lasso_pearson_within(X, y, 1e-4)


def test_a_penalty_beyond_every_covariance_leaves_nothing(xy):
    X, y = xy
    assert not lasso_pearson(X, y, 1e6).any()
    with pytest.raises(MergelibError, match="constant"):
        max_pearson(X, np.ones(40))


def test_groups_are_the_planted_relations():
    rng = np.random.default_rng(0)
    a, b, c, d, e = rng.normal(size=(5, 50))
    X = np.column_stack([a, b, 2 - 3e4 * a, c, np.full(50, 7.0), d, 1e-5 * (b + d) + 1, e])
    names = list("abcdefgh")
    groups = collinear_groups(X, names)
    assert sorted(groups) == [("a", "c"), ("b", "f", "g"), ("e",)]
    assert collinear_groups(rng.normal(size=(50, 3)), "xyz") == []
    single = X.astype(np.float32).astype(np.float64)
    assert sorted(collinear_groups(single, names))[0] == ("a", "c")


def pairs(seed, n_tasks=7):
    rng = np.random.default_rng(seed)
    ends = np.array([(i, j) for i in range(n_tasks) for j in range(i + 1, n_tasks)])
    n = len(ends)
    tasks = tuple(f"T{k}" for k in range(n_tasks))
    X = rng.normal(size=(n, 3)) * [1, 10, 100]
    ones = np.ones((n, 1, 2))
    return Pairs(tasks, ends, ("a", "b", "c"), X, ("tsv",), ones, ones, 0)


def test_transfer_is_a_fit_here_and_a_forecast_there():
    one, two = pairs(0), pairs(1)
    y_one = one.X @ [[0.1], [0.01], [0.0]]
    y_two = two.X @ [[0.1], [0.01], [0.0]]

    def scale(X, of):
        return 2 * (X - of.min(0)) / (of.max(0) - of.min(0)) - 1

    for rescale in (False, True):
        found = transfer(one, y_one, two, y_two, alpha=0.5, rescale=rescale, draws=49)
        model = Ridge(alpha=0.5).fit(scale(one.X, one.X), y_one[:, 0])
        expected = model.predict(scale(two.X, two.X if rescale else one.X))
        np.testing.assert_allclose(found.prediction[:, 0], expected)
        np.testing.assert_allclose(found.r[0], stats.pearsonr(expected, y_two[:, 0])[0])
        assert found.r[0] > 0.9 and found.p[0] == 1 / 50
    other = Pairs(**{**vars(two), "metrics": ("a", "b", "z")})
    with pytest.raises(MergelibError, match="differ in metrics: c, z"):
        transfer(one, y_one, other, y_two)
