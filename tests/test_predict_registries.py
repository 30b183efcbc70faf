"""A predictor, a split or a target of one's own: one decorated function or class each."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.tree import DecisionTreeRegressor
from test_predict import tables

from mergelib.core.errors import MergelibError
from mergelib.pairs.tables import Tables, assemble
from mergelib.pairs.targets import TARGETS, new_target, residual, target
from mergelib.predict.crossval import fit_folds, fold_seeds
from mergelib.predict.evaluate import evaluate
from mergelib.predict.predictors import PREDICTORS, predictor
from mergelib.predict.splits import SPLITS, PairSplitter, fold_masks, split, splitter
from studies.chance import targets_of


@pytest.fixture
def own(monkeypatch):
    """The registries, put back at the end."""
    for registry in (PREDICTORS, SPLITS, TARGETS):
        monkeypatch.setattr(registry, "_rows", dict(registry._rows))


def test_a_predictor_without_coefficients_is_one_function(own):
    @predictor("tree", strength=2, grid=(1, 2), domain="count")
    def tree(strength, seed):
        return DecisionTreeRegressor(max_depth=int(strength), max_features=1, random_state=seed)

    metrics, merges = tables(n_tasks=6)
    found = evaluate(metrics, merges, "tsv", predictor="tree", qap=2, seed=5)
    pairs = assemble(metrics, merges, ["tsv"])
    y = target(pairs, "normalized")
    _, train, test = fold_masks(splitter("loto"), pairs.ends)
    seeds = fold_seeds(5, ["tsv"], len(train))
    for k, fold in enumerate(found["folds"]):
        model = make_pipeline(
            MinMaxScaler((-1, 1)),
            DecisionTreeRegressor(max_depth=2, max_features=1, random_state=int(seeds[k, 0])),
        ).fit(pairs.X[train[k]], y[train[k], 0])
        expected = np.corrcoef(model.predict(pairs.X[test[k]]), y[test[k], 0])[0, 1]
        np.testing.assert_allclose(fold["r"], expected, rtol=1e-9)
    assert found["coefficients"] == {} and found["qap"]["n"] == 2
    chosen = evaluate(metrics, merges, "tsv", predictor="tree", alpha="auto")
    assert set(chosen["alpha"]) <= {1, 2} and len(chosen["alpha"]) == 6
    with pytest.raises(MergelibError, match="tree has no coefficients"):
        fit_folds("tree", pairs.X, y, train, test)


def test_a_split_is_one_class(own):
    @split("first", "r_pooled", spread="tasks")
    class FirstTask(PairSplitter):
        def __init__(self, repeats=1):
            self.repeats = repeats

        def masks(self, ends):
            test = (ends == ends.min()).any(axis=1)
            for k in range(self.repeats):
                yield f"fold {k}", ~test, test

    found = evaluate(*tables(n_tasks=6), "tsv", split="first", repeats=3, qap=2)
    assert [fold["held_out"] for fold in found["folds"]] == ["fold 0", "fold 1", "fold 2"]
    assert found["qap"]["statistic"] == "r_pooled" and found["folds"][0]["n_test"] == 5


def test_a_target_is_one_function(own):
    @new_target("worst")
    def worst(accuracy, single, ends):
        return accuracy.min(axis=-1)

    metrics, merges = tables(n_tasks=6)
    pairs = assemble(metrics, merges, ["weight_avg", "tsv"])
    np.testing.assert_array_equal(target(pairs, "worst"), pairs.accuracy.min(axis=-1))
    raw = target(pairs, "raw")
    np.testing.assert_array_equal(target(pairs, "residual", "raw"), residual(raw, pairs.ends))
    found = evaluate(metrics, merges, "tsv", target="worst")
    assert found["target"] == "worst" and found["r_fold_mean"] is not None
    held = Tables(metrics, merges, None, {}, ("weight_avg", "tsv"))
    y, moved = targets_of(held, pairs, ("worst",), relabel=2)
    np.testing.assert_array_equal(y, target(pairs, "worst"))
    assert (np.sort(moved, axis=1) == np.sort(y, axis=0)).all()  # every pair was merged


def test_an_unknown_name_is_refused_with_the_nearest():
    for call in (
        lambda: PREDICTORS["ridg"],
        lambda: splitter("lotto"),
        lambda: TARGETS["normalised"],
    ):
        with pytest.raises(MergelibError, match="did you mean"):
            call()


def test_the_library_does_not_import_the_published_predictors():
    code = (
        "import sys, mergelib.predict.evaluate, mergelib.predict.qap\n"
        "from mergelib.predict.predictors import PREDICTORS\n"
        "assert not [m for m in sys.modules if m.startswith('mergelib.published')]\n"
        "import mergelib.published.predictors\n"
        "assert 'paper-l1' in list(PREDICTORS) and 'paper-mlp' in list(PREDICTORS)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
