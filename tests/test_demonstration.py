"""The made models have the relation that they are said to have."""

import numpy as np
import pytest
import torch

from studies.demonstration import (
    made_vector,
    measures,
    merged_matrices,
    metrics_by_angle,
    spectra,
    turned,
)

pytestmark = [pytest.mark.numeric, pytest.mark.slow]


def test_a_turned_vector_has_its_angle_and_length():
    generator = torch.Generator().manual_seed(1)
    a, b = (made_vector((7, 5), generator) for _ in range(2))
    for degrees in (0, 35, 90, 180):
        c = turned(3 * a, b, degrees)
        cosine = float((a * c).sum() / (a.norm() * c.norm()))
        assert np.isclose(cosine, np.cos(np.deg2rad(degrees)), atol=1e-12)
        assert np.isclose(float(c.norm()), 3, rtol=1e-12)


def test_metrics_follow_the_angle_and_the_length_as_their_formulas_say():
    degrees = (0, 40, 90, 130)
    table = metrics_by_angle(degrees=degrees, length=2.0).set_index("angle")
    theta = np.deg2rad(degrees)
    size = np.sqrt(2)  # two tensors of unit norm
    expected = {
        "task_vector_cosine_similarity": np.cos(theta),
        "weight_space_angle": degrees,
        "task_vector_magnitude_ratio": np.full(4, 0.5),
        "task_vector_l2_distance": size * np.sqrt(5 - 4 * np.cos(theta)),
        "activation_dot_product": 2 * np.cos(theta),
        "input_gradient_l2_distance": np.sqrt(5 - 4 * np.cos(theta)),
    }
    for name, values in expected.items():
        assert np.allclose(table[name], values, atol=1e-5), name
    stack = [np.linalg.svd([[1, 0], [2 * np.cos(t), 2 * np.sin(t)]])[1] for t in theta]
    assert np.allclose(table["singular_value_ratio"], [s[1] / s[0] for s in stack], atol=1e-7)


def test_merged_spectra_are_those_the_methods_promise():
    made = merged_matrices(("tsv", "isotropic", "weight_avg"))
    values = {name: part["value"].to_numpy() for name, part in spectra(made).groupby("matrix")}
    first, second = (np.linalg.svd(made[name])[1][:16] for name in ("first", "second"))
    union = np.sort(np.concatenate([first, second]))[::-1]
    assert np.allclose(values["tsv"], union, atol=1e-5)
    both = np.linalg.svd(made["first"] + made["second"])[1]
    assert np.allclose(values["isotropic"], both.mean(), atol=1e-5)
    mean = np.linalg.svd((made["first"] + made["second"]) / 2)[1]
    assert np.allclose(values["weight_avg"], mean, atol=1e-6)


def test_measures_of_merged_matrices():
    made = merged_matrices(("weight_avg", "ties"))
    table = measures(made)
    total = (made["first"] + made["second"]).numpy()
    assert np.isclose(table.loc["weight_avg", "norm"], np.linalg.norm(total) / 2, rtol=1e-6)
    assert np.isclose(table.loc["weight_avg", "cosine with the sum"], 1, rtol=1e-6)
    ties = made["ties"].numpy()
    assert table.loc["ties", "share of zeros"] == np.mean(ties == 0)
    cosine = (ties * total).sum() / np.linalg.norm(ties) / np.linalg.norm(total)
    assert np.isclose(table.loc["ties", "cosine with the sum"], cosine, rtol=1e-6)
