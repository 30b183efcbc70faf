"""Greedy selection, the small network and task covariates against literal loops."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from published_loop import fit_literal
from scipy import stats
from sklearn.utils.estimator_checks import check_estimator

from mergelib.core.errors import MergelibError
from mergelib.pairs.covariates import with_task_covariates
from mergelib.pairs.tables import Pairs
from mergelib.published.predictors import adam, greedy, mlp
from mergelib.published.predictors.estimators import GreedyPearsonAdam, SmallMLP

pytestmark = pytest.mark.numeric


@pytest.fixture
def short(monkeypatch):
    """A dense recipe short enough for rounding to stay small."""
    recipe = replace(adam.DENSE, iterations=30)
    monkeypatch.setattr(adam, "DENSE", recipe)
    return recipe


def literal_greedy(recipe, Z, y, direction, seed):
    """One fold, one candidate at a time, by autograd."""
    rng, p = np.random.RandomState(seed), Z.shape[1]

    def fit(columns, start):
        data = torch.from_numpy(np.ascontiguousarray(Z[:, columns])), torch.from_numpy(y)
        w = fit_literal(recipe, *data, torch.from_numpy(start))[0].numpy()
        return stats.pearsonr(Z[:, columns] @ w, y)[0], w

    inside, best, coef = [], 0.0, np.zeros(p)
    if direction == "backward":
        inside = list(range(p))
        best, coef = fit(inside, rng.normal(0, 1, (1, p))[0])
    while len(inside) < p if direction == "forward" else len(inside) > 1:
        if direction == "forward":
            sets = [sorted([*inside, k]) for k in range(p) if k not in inside]
        else:
            sets = [[k for k in inside if k != out] for out in inside]
        starts = rng.normal(0, 1, (len(sets), len(sets[0])))
        tried = [fit(s, start) for s, start in zip(sets, starts, strict=True)]
        k = int(np.argmax([r for r, _ in tried]))
        r, w = tried[k]
        if direction == "forward" and r - best < 1e-3:
            break
        if direction == "backward" and best - r > 1e-3:
            break
        inside, best, coef = sets[k], r, np.zeros(p)
        coef[inside] = w
    return coef


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_batched_selection_equals_the_literal_search(short, direction):
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, (30, 4))
    Y = (X @ [1.0, 0.5, 0.0, -0.3] + 0.3 * rng.normal(size=30))[:, None]
    train = rng.random((3, 30)) < 0.8
    found = greedy.greedy_folds(direction, X, Y, train, np.arange(3)[:, None])
    assert len({tuple(row) for row in found.coef[:, 0] != 0}) >= 1
    for f, rows in enumerate(train):
        low, high = X[rows].min(0), X[rows].max(0)
        Z = 2 * (X[rows] - low) / (high - low) - 1
        expected = literal_greedy(short, Z, Y[rows, 0], direction, f)
        np.testing.assert_allclose(found.coef[f, 0], expected, atol=1e-8)


def test_the_network_is_torchs_own(monkeypatch):
    monkeypatch.setattr(mlp, "EPOCHS", 15)
    monkeypatch.setattr(mlp, "DROPOUT", 0.0)
    monkeypatch.setattr(mlp, "RATE", 0.05)
    rng = np.random.default_rng(1)
    Z, T = rng.uniform(-1, 1, (2, 20, 3)), rng.uniform(-1, 1, (2, 20))
    rows = np.arange(20)[None] < np.array([[12], [14]])
    last = mlp.train_networks(Z, T, rows, [5, 6])
    chosen = mlp.train_networks(Z, T, rows, [5, 6], ~rows)
    for b in range(2):
        draw = np.random.RandomState([5, 6][b])
        net = torch.nn.Sequential(
            torch.nn.Linear(3, 8), torch.nn.LeakyReLU(0.01), torch.nn.Linear(8, 1)
        ).double()
        gain = torch.nn.init.calculate_gain("leaky_relu", 0.01)
        with torch.no_grad():
            net[0].weight[:] = torch.from_numpy(draw.normal(0, gain / 3**0.5, (3, 8)).T)
            net[2].weight[:] = torch.from_numpy(draw.normal(0, gain / 8**0.5, (8, 1)).T)
            net[0].bias.zero_()
            net[2].bias.zero_()
        z, t, inside = (torch.from_numpy(x[b]) for x in (Z, T, rows))
        optimizer = torch.optim.Adam(net.parameters(), lr=0.05, weight_decay=1e-3)
        errors, outputs = [], []
        for _ in range(15):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(net(z[inside])[:, 0], t[inside]).backward()
            optimizer.step()
            with torch.no_grad():
                outputs.append(net(z)[:, 0])
                errors.append(((outputs[-1] - t)[~inside] ** 2).mean().item())
        torch.testing.assert_close(last(torch.from_numpy(Z))[b], outputs[-1])
        best = outputs[int(np.argmin(errors))]
        torch.testing.assert_close(chosen(torch.from_numpy(Z))[b], best)


def test_only_the_paper_edition_of_the_network_looks_at_the_test_pairs(monkeypatch):
    monkeypatch.setattr(mlp, "EPOCHS", 10)
    rng = np.random.default_rng(2)
    X, Y = rng.normal(size=(20, 3)), rng.normal(size=(20, 1))
    train = np.arange(20)[None] < 14
    moved = Y + 5.0 * ~train.T
    seeds = np.array([[3]])
    same = [mlp.mlp_folds(X, y, train, ~train, seeds, "corrected") for y in (Y, moved)]
    np.testing.assert_array_equal(*same)
    leaky = [mlp.mlp_folds(X, y, train, ~train, seeds) for y in (Y, moved)]
    assert not np.allclose(*leaky)


@pytest.mark.filterwarnings("ignore:Skipping check")
@pytest.mark.parametrize("model", [GreedyPearsonAdam("forward"), SmallMLP()], ids=repr)
def test_estimators_pass_scikit_learns_checks(model, monkeypatch):
    monkeypatch.setattr(mlp, "EPOCHS", 20)
    monkeypatch.setattr(adam, "DENSE", replace(adam.DENSE, iterations=20))
    check_estimator(model)


def test_task_covariates_are_means_and_differences():
    ends = np.array([(0, 1), (0, 2), (1, 2)])
    ones = np.ones((3, 1, 2))
    pairs = Pairs(("A", "B", "C"), ends, ("m",), np.zeros((3, 1)), ("tsv",), ones, ones, 0)
    tasks = pd.DataFrame(
        {
            "task": ["C", "A", "B"],
            "zero_shot": [0.3, 0.1, 0.2],
            "fine_tuned": [0.6, 0.8, 0.4],
            "n_classes": [10, 100, 2],
            "n_train": [1000, 10, 100],
        }
    )
    found = with_task_covariates(pairs, tasks)
    table = pd.DataFrame(found.X, columns=found.metrics)
    np.testing.assert_allclose(table["mean:zero_shot"], [0.15, 0.2, 0.25])
    np.testing.assert_allclose(table["difference:fine_tuned"], [0.4, 0.2, 0.2])
    np.testing.assert_allclose(table["mean:base_knowledge"], [0.3125, 0.3125, 0.5])
    np.testing.assert_allclose(table["mean:log_n_train"], np.log([1000**0.5, 100, 1e5**0.5]))
    with pytest.raises(MergelibError, match="no column n_train"):
        with_task_covariates(pairs, tasks.drop(columns="n_train"))
    with pytest.raises(MergelibError, match="zero_shot is missing"):
        with_task_covariates(pairs, tasks.assign(zero_shot=[np.nan, 0.1, 0.2]))
    with pytest.raises(MergelibError, match="no row for B"):
        with_task_covariates(pairs, tasks[tasks.task != "B"])
