"""Large tensors merged block by block: the same bits as whole, and no more read than asked for."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from mergelib.checkpoints.layouts import Parts, rearranged
from mergelib.checkpoints.reading import opened
from mergelib.checkpoints.weights import Weights
from mergelib.core.errors import MergelibError
from mergelib.core.store import save_tensors
from mergelib.linalg import select
from mergelib.linalg.select import kth_magnitude
from mergelib.merging import layer as layers
from mergelib.merging.blocks import merged_tensor, read_layer
from mergelib.merging.engine import merge
from mergelib.merging.layer import Layer
from mergelib.merging.methods.dare import draws, keep_mask
from mergelib.merging.registry import METHODS

SHAPES = {"scale": (), "none": (0, 4), "bias": (37,), "w": (23, 9), "row": (1, 50), "c": (5, 3, 2)}
BLOCKED = ["weight_avg", "arithmetic", "ties", "dare", "tall_masks", "base_protecting", "emr"]


def models(count, dtype=torch.bfloat16):
    """A base and models near it; of 16-bit numbers, so that many differences are equal or 0."""
    generator = torch.Generator().manual_seed(count)
    base = {k: torch.randn(s, generator=generator).to(dtype) for k, s in SHAPES.items()}
    moves = [{k: torch.randn(s, generator=generator) for k, s in SHAPES.items()} for _ in "ab"]
    return base, [{k: (base[k] + 0.02 * m[k]).to(dtype) for k in SHAPES} for m in moves]


@pytest.fixture
def small(monkeypatch):
    """Sets how many entries are worked on and sorted at a time."""

    def set_sizes(size):
        monkeypatch.setattr(layers, "BLOCK", size)
        monkeypatch.setattr(select, "FITS", size)

    return set_sizes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("method", BLOCKED)
def test_blocks_of_any_size_give_the_same_bits(method, dtype, small, tmp_path):
    base, tuned = models(2, dtype)
    whole = merge(base, tuned, method, seed=3)
    files = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for path, state in zip(files, [base, *tuned], strict=True):
        save_tensors(path, state)
    for size in (1, 7, 64):
        small(size)
        for found in (
            merge(base, tuned, method, seed=3),
            merge(files[0], files[1:], method, seed=3),
        ):
            assert all(torch.equal(found[k], whole[k]) for k in SHAPES)


def test_blocks_are_written_to_tensors_of_any_strides(small):
    base, tuned = models(2)
    whole = merge(base, tuned, "ties")
    small(8)
    into = {k: torch.empty(s[::-1]).permute(tuple(range(len(s)))[::-1]) for k, s in SHAPES.items()}
    found = merge(base, tuned, "ties", into=into)
    assert found["w"].data_ptr() == into["w"].data_ptr()
    assert all(torch.equal(found[k], whole[k]) for k in SHAPES)


def test_rows_that_a_method_leaves_out_are_an_error(small):
    small(8)
    base, tuned = models(2)
    origin, *others = (weights_of(state) for state in (base, *tuned))
    row = replace(METHODS["weight_avg"], function=lambda layer: islice(mean(layer), 2))
    mean = METHODS["weight_avg"].function
    layer = read_layer("w", origin, others)
    assert sum(1 for _ in layer.blocks()) > 2
    with pytest.raises(MergelibError, match="'weight_avg' leaves rows of 'w' out"):
        merged_tensor(row, layer, {}, dtype=torch.float32)


@pytest.mark.parametrize("sign", [1, -1])
def test_ties_settles_ties_by_the_sign_of_the_whole_tensor(sign, small):
    """Entries that cancel out in one block, and the majority that decides on them in another."""
    task_vectors = sign * torch.tensor(
        [[[1.0, 2, 4], [1, 1, 1], [3, 3, 3]], [[-1, -2, -4], [1, -1, 1], [3, 3, 3]]],
        dtype=torch.float64,
    )
    expected = sign * torch.tensor([[1.0, 2, 4], [1, 1, 1], [3, 3, 3]], dtype=torch.float64)
    base = {"w": torch.zeros(3, 3, dtype=torch.float64)}
    tuned = [{"w": vector} for vector in task_vectors]
    for size in (1, 3, 100):
        small(size)
        found = merge(base, tuned, "ties", density=1.0, alpha=1.0)["w"]
        assert torch.equal(found, expected)


def test_a_tensor_comes_in_the_type_asked_for(small):
    small(8)
    base, tuned = models(2)
    origin, *others = (weights_of(state) for state in (base, *tuned))
    whole = merge(base, tuned, "weight_avg")["w"]
    row = METHODS["weight_avg"]
    found = merged_tensor(row, read_layer("w", origin, others), {}, dtype=torch.bfloat16)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, whole)  # a merge comes in the base's type


def weights_of(state):
    with opened(state) as weights:
        return weights


@pytest.mark.parametrize("method", BLOCKED)
def test_a_large_tensor_is_never_read_whole(method, small):
    small(16)
    base, tuned = models(2)

    def only_parts(state):
        def get(name):
            raise AssertionError(f"{name} was read whole")

        def cut(name, rows):
            assert rows.stop - rows.start == 1  # 9 entries
            return state[name][rows]

        weights = weights_of(state)
        return Weights("", weights.shapes, weights.dtypes, get, cut=cut)

    origin, *others = (only_parts(state) for state in (base, *tuned))
    row = METHODS[method]
    params = {**row.corrected, **({"seed": 0} if row.random else {})}
    params |= {"surveyed": torch.ones(2)} if row.survey else {}
    found = merged_tensor(row, read_layer("w", origin, others), params, torch.bfloat16)
    assert torch.equal(found, merge(base, tuned, method)["w"])


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_rows_of_a_file_are_those_of_its_tensor(suffix, tmp_path):
    state = {"visual.proj": torch.randn(6, 4), "visual.ln": torch.randn(5)}
    path = tmp_path / f"model{suffix}"
    (save_tensors if suffix == ".safetensors" else lambda p, s: torch.save(s, p))(path, state)
    with opened(path) as weights:
        for name in ("proj", "ln"):
            rows = weights.read(name, slice(2, 5))
            assert torch.equal(rows, state[f"visual.{name}"][2:5])


def test_rows_of_stacked_and_transposed_tensors():
    names = {"visual_projection.weight": (4, 6), "q": (2, 3), "k": (2, 3)}
    state = {name: torch.randn(shape) for name, shape in names.items()}
    parts = {
        "proj": Parts(("visual_projection.weight",), flips=True),
        "qk": Parts(("q", "k")),
        "cut": Parts(("visual_projection.weight",), rows=3),
    }
    weights = rearranged(weights_of(state), parts)
    for name in parts:
        assert torch.equal(weights.part(name, slice(1, 3)), weights.get(name)[1:3])


def test_an_entry_that_is_not_finite_is_found_in_its_block(small):
    small(8)
    for where in range(3):
        base, tuned = models(2)
        [base, *tuned][where]["w"][20, 3] = float("nan")
        with pytest.raises(MergelibError, match=r"'w' has NaN"):
            merge(base, tuned, "ties")


def test_layers_without_a_base_say_so():
    with pytest.raises(MergelibError, match="without their base"):
        Layer.of(torch.zeros(2, 3), "w").start  # noqa: B018


@pytest.mark.parametrize("sizes", [(1, 2, 3), (5_000, 1, 3), (2**20, 7)])
def test_masks_drawn_in_pieces_are_one_mask(sizes):
    whole = keep_mask((sum(sizes),), 0.4, draws(1, "w", 0))
    generator = draws(1, "w", 0)
    pieces = [keep_mask((size,), 0.4, generator) for size in sizes]
    assert torch.equal(torch.cat(pieces), whole)


# --- order statistics ---------------------------------------------------------------------------

TINY = np.nextafter(0, 1)
NUMBERS = {
    "normal": np.random.default_rng(0).normal(size=500),
    "one": np.array([-3.5]),
    "equal": np.full(40, -1e-4),
    "zeros": np.zeros(30) * np.array([1, -1] * 15),
    "signs": np.array([2.0, -2.0, 1.0, -1.0, 0.0, -0.0] * 9),
    "ties": np.random.default_rng(1).integers(-4, 5, 300) / 64,
    "denormal": TINY * np.random.default_rng(2).integers(-5, 6, 200),
    "last bits": 1 + 2.0**-52 * np.random.default_rng(3).integers(0, 50, 300),
    "wide": np.random.default_rng(4).choice([-1, 1], 400) * np.logspace(-320, 300, 400),
    "ends": np.array([np.finfo(float).max, TINY, 0.0, -np.finfo(float).max, 1.0]),
}


@pytest.mark.parametrize("fits", [0, 1, 10, 10_000])
@pytest.mark.parametrize("kind", NUMBERS)
def test_order_statistics_of_pieces_are_those_of_the_sorted_magnitudes(kind, fits, monkeypatch):
    monkeypatch.setattr(select, "FITS", fits)
    numbers = NUMBERS[kind]
    expected = np.sort(np.abs(numbers))
    pieces = torch.from_numpy(numbers).split(17)
    for place in sorted({0, len(numbers) // 5, len(numbers) // 2, len(numbers) - 1}):
        assert kth_magnitude(lambda: pieces, len(numbers), place) == expected[place]


@pytest.mark.parametrize("density", [0.0, 0.2, 1.0])
def test_ties_keeps_what_sorting_says(density, small):
    base, tuned = models(2)
    whole = merge(base, tuned, "ties", density=density)
    small(5)
    found = merge(base, tuned, "ties", density=density)
    assert all(torch.equal(found[k], whole[k]) for k in SHAPES)
