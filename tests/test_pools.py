"""Pools of several sizes: against the pipeline's own metrics and literal formulas."""

import numpy as np
import pytest
import torch

from mergelib.core.errors import MergelibError
from mergelib.models.finetune import Recipe
from mergelib.pipeline import tables, task_data
from mergelib.pipeline.params import Run, Sizes
from mergelib.pipeline.units import base, data, summary, tuned
from studies import calibration_pools

pytestmark = [pytest.mark.numeric, pytest.mark.slow]


@pytest.fixture(scope="module")
def run() -> Run:
    return Run(
        name="two",
        tasks=["latin_upper", "animals", "digits"],
        methods={"weight_avg": {}},
        sizes=Sizes(train=16, calibration=8, test=8),
        pool_per_task=4,
        finetune=Recipe(steps=2, batch=8),
    )


@pytest.fixture(scope="module")
def store(run, tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    with pytest.raises(MergelibError, match="no checkpoint of latin_upper as two makes it"):
        calibration_pools.tables(store, run)
    base.make(store, run)
    for unit in (data, tuned, summary):
        for task in run.tasks:
            unit.make(store, run, task)
    return store


@pytest.fixture(scope="module")
def table(run, store):
    return calibration_pools.tables(store, run, (2, 4))


def test_real_heads_and_a_shared_pool_are_the_pipelines_own_metrics(run, store, table):
    # the first half of eight calibration images is the pipeline's pool of four
    part = table[(table["heads"] == "real") & (table["images"] == "shared")]
    part = part[(part["draw"] == 0) & (part["size"] == 4)].reset_index(drop=True)
    expected = tables.metrics_table(store, run)
    names = [c for c in expected if c.startswith(("activation_", "encoder_", "input_"))]
    assert len(names) == 10
    np.testing.assert_allclose(part[names], expected[names], rtol=1e-4, atol=1e-7)


def test_designs_differ_where_they_should(table):
    assert len(table) == 2 * 2 * 2 * 2 * 3
    keys = ["heads", "images", "draw", "size"]
    gradient = table.groupby(keys)["encoder_gradient_l2_distance"].first()
    assert gradient.nunique() == len(gradient)
    known = table["activation_dot_product"].notna()
    assert (known == (table["heads"] == "real")).all()


def test_random_heads_are_a_new_linear_layers(run, store):
    like = task_data.head(store, run, "animals")
    one, same, other = (calibration_pools.random_head(like, 0, "animals", k) for k in (1, 1, 2))
    assert one.shape == like.shape and torch.equal(one, same) and not torch.equal(one, other)
    bound = like.shape[1] ** -0.5
    assert one.abs().max() <= bound and one.abs().max() > 0.99 * bound
    assert abs(one.mean()) < 0.05 * bound
    assert one.std() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_halves_share_no_image(run, store):
    first, second = (calibration_pools.half(store, run, 8, draw) for draw in (0, 1))
    assert first[2].tolist() == [0] * 4 + [1] * 4 + [2] * 4  # a half holds four
    whole = [task_data.ready(store, run, task, "calibration")[0][:] for task in run.tasks]
    for i, images in enumerate(whole):
        both = torch.cat([part[0][part[2] == i] for part in (first, second)])
        assert torch.equal(both, images)


def test_a_model_with_fewer_images_of_its_own_has_zeros_for_the_rest():
    models = [{"encoder": torch.tensor([1.0, 2.0]), "input": torch.tensor([3.0, 4.0, 1.0])},
              {"encoder": torch.tensor([2.0, 0.0]), "input": torch.tensor([1.0, 1.0])}]  # fmt: skip
    row = calibration_pools._pairs(models, ["a", "b"]).iloc[0]
    assert row["encoder_gradient_dot_product"] == 2
    assert row["input_gradient_dot_product"] == 7
    assert row["input_gradient_l2_distance"] == pytest.approx(np.sqrt(4 + 9 + 1))
    assert "activation_dot_product" not in row
