"""Checkpoint files as they are written, read back by safetensors and torch."""

import json
import os
import shutil
import struct
import tracemalloc
from collections import namedtuple

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mergelib.checkpoints.formats import DTYPES
from mergelib.checkpoints.output.shards import bytes_of, cut, size_in_bytes
from mergelib.checkpoints.output.writing import is_folder, writer
from mergelib.core.errors import MergelibError

INTEGERS = [d for d in DTYPES.values() if not d.is_floating_point and not d.is_complex]


def spec_of(state):
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}


def write(out, state, spec=None, order=reversed, **options):
    with writer(out, spec or spec_of(state), **options) as put:
        for name in order(list(state)):
            put(name, state[name])
    return out


def bits(tensor):
    return tensor.resolve_conj().contiguous().reshape(-1).view(torch.uint8)


def assert_same(read, state):
    assert set(read) == set(state)
    for name, tensor in state.items():
        assert read[name].dtype == tensor.dtype and read[name].shape == tensor.shape, name
        assert torch.equal(bits(read[name]), bits(tensor)), name


def of_every_type():
    """A tensor of each type, of odd sizes, so that alignment has to be seen to."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for kind, dtype in DTYPES.items():
        size = 3 * dtype.itemsize
        raw = torch.randint(0, 2, (size,), dtype=torch.uint8, generator=generator)
        state[f"of.{kind}"] = raw.view(dtype).reshape(1, 3)
    state |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "naïve.ü": torch.ones(2)}
    state["turned"] = torch.arange(6.0).reshape(2, 3).T
    state["conjugate"] = torch.tensor([1 + 2j, 3 - 1j], dtype=torch.complex64).conj()
    return state


def small():
    generator = torch.Generator().manual_seed(1)
    names = ["embed", "layers.0.a", "layers.0.b", "layers.1.a", "layers.1.b", "head"]
    return {name: torch.randn(4, 5, generator=generator) for name in names}


def nothing_in(folder):
    return list(folder.iterdir()) == []


def test_every_type_is_written_as_safetensors_reads_it(tmp_path):
    state = of_every_type()
    out = write(tmp_path / "a.safetensors", state, metadata={"made": "by a test"})
    assert_same(load_file(out), state)
    with safe_open(out, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "made": "by a test"}


def test_the_layout_is_the_formats(tmp_path):
    state = of_every_type()
    data = write(tmp_path / "a.safetensors", state).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert length % 8 == 0
    held = json.loads(data[8 : 8 + length])
    del held["__metadata__"]
    end = 0
    for name, entry in sorted(held.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = entry["data_offsets"]
        assert start == end  # without a gap
        assert start % state[name].itemsize == 0  # aligned
        end = stop
    assert end == len(data) - 8 - length
    save_file({n: t.contiguous() for n, t in state.items() if n != "conjugate"}, tmp_path / "b")
    write(tmp_path / "c.safetensors", {n: t for n, t in state.items() if n != "conjugate"})
    assert (tmp_path / "c.safetensors").stat().st_size == pytest.approx(
        (tmp_path / "b").stat().st_size,
        abs=40,  # of metadata
    )


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_pickled_state_dicts_hold_tensors_alone(tmp_path, suffix):
    state = of_every_type()
    large = torch.zeros(1000)
    state["view"] = large[:2]
    out = write(tmp_path / f"a{suffix}", state)
    read = torch.load(out, weights_only=True)
    assert type(read) is dict and list(read) == list(state)
    assert_same(read, state)
    assert read["view"].untyped_storage().nbytes() == 8


def test_what_is_handed_over_may_be_used_again(tmp_path):
    spec = {name: (torch.float32, (3,)) for name in "ab"}
    buffer = torch.empty(3)
    for out in (tmp_path / "a.pt", tmp_path / "a.safetensors"):
        with writer(out, spec) as put:
            for value, name in enumerate("ab"):
                put(name, buffer.fill_(value))
        read = torch.load(out, weights_only=True) if out.suffix == ".pt" else load_file(out)
        assert read["a"].tolist() == [0] * 3 and read["b"].tolist() == [1] * 3


@pytest.mark.parametrize("dtype", [d for d in DTYPES.values() if d.is_floating_point])
def test_tensors_are_cast_to_the_type_of_their_place(tmp_path, dtype):
    tensor = torch.linspace(-3, 3, 7, dtype=torch.float64)
    out, spec = tmp_path / "a.safetensors", {"w": (dtype, (7,))}
    if dtype == torch.float8_e8m0fnu:
        with pytest.raises(MergelibError, match="'w' .* float8_e8m0fnu: keep its type"):
            write(out, {"w": tensor}, spec)
        return
    assert_same(load_file(write(out, {"w": tensor}, spec)), {"w": tensor.to(dtype)})


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_are_never_made_of_fractions(tmp_path, dtype):
    with pytest.raises(MergelibError, match="'w' is of type float32 and cannot be written as"):
        write(tmp_path / "a.safetensors", {"w": torch.ones(2)}, {"w": (dtype, (2,))})
    with pytest.raises(MergelibError, match="keep its type"):
        write(
            tmp_path / "a.safetensors",
            {"w": torch.ones(2, dtype=torch.int64)},
            {"w": (torch.float32, (2,))},
        )
    assert nothing_in(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_what_a_type_cannot_hold_is_an_error(tmp_path, dtype):
    largest = torch.finfo(dtype).max
    out, spec = tmp_path / "a.safetensors", {"w": (dtype, (2,))}
    write(out, {"w": torch.tensor([largest, -largest])}, spec)
    assert load_file(out)["w"].float().tolist() == [largest, -largest]
    for beyond in ([2 * largest, 0.0], [0.0, -2 * largest]):
        with pytest.raises(MergelibError, match=r"'w' has an entry .* write bfloat16 or float32"):
            write(out, {"w": torch.tensor(beyond)}, spec)
    narrow = torch.tensor([1.0, 2.0]).to(torch.float8_e5m2)
    assert_same(load_file(write(out, {"w": narrow}, spec)), {"w": narrow.to(dtype)})


def faults():
    state = small()
    lacking = {n: t for n, t in state.items() if n != "head"}
    return {
        "'head' was never given": (lacking, list),
        "'embed' is given twice": (state, lambda names: [*names, "embed"]),
        "'other' is not among": ({**state, "other": torch.ones(1)}, list),
        r"'head' has shape \(5, 4\), not \(4, 5\)": ({**state, "head": torch.ones(5, 4)}, list),
    }


@pytest.mark.parametrize("out", ["a.safetensors", "a.pt", "a", "deep/er/a", "deep/a.safetensors"])
@pytest.mark.parametrize("message", faults())
def test_a_fault_names_the_tensor_and_leaves_nothing(tmp_path, out, message):
    state, order = faults()[message]
    options = {} if out.endswith("pt") else {"max_shard_size": 100}
    with pytest.raises(MergelibError, match=message):
        write(tmp_path / out, state, spec_of(small()), order, **options)
    assert nothing_in(tmp_path)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError, SystemExit])
@pytest.mark.parametrize("out", ["a.safetensors", "a.pt", "folder"])
def test_an_exception_leaves_what_was_there(tmp_path, out, kind):
    if out != "folder":
        (tmp_path / out).write_bytes(b"before")
    with pytest.raises(kind), writer(tmp_path / out, spec_of(small())) as put:
        put("embed", small()["embed"])
        raise kind
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"] * (out != "folder")


def test_nothing_is_half_placed(tmp_path, monkeypatch):
    path = type(tmp_path)
    original = path.replace

    def replace(self, target):
        if "00002-of" in target.name:
            raise OSError(28, "No space left on device")
        return original(self, target)

    monkeypatch.setattr(path, "replace", replace)
    with pytest.raises(MergelibError, match="a.safetensors cannot be written .No space left"):
        write(tmp_path / "a.safetensors", small(), max_shard_size=100)
    assert nothing_in(tmp_path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_told(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100))
    with pytest.raises(MergelibError, match="takes 4.8e-07 GB, but only 1e-07 GB are free"):
        write(tmp_path / "a.safetensors", small())
    monkeypatch.undo()
    with (
        pytest.raises(MergelibError, match="cannot be written .No space left on device"),
        writer(tmp_path / "a.safetensors", spec_of(small())) as put,
    ):
        (started,) = tmp_path.glob(".*/a.safetensors")
        started.unlink()
        started.symlink_to("/dev/full")
        put("embed", small()["embed"])
    assert nothing_in(tmp_path)


def test_sizes_in_words():
    for text, size in {
        "5GB": 5 * 10**9,
        "500MB": 500 * 10**6,
        "2GiB": 2 * 2**30,
        "1.5kb": 1500,
        " 10 MiB ": 10 * 2**20,
        "1T": 10**12,
        "77": 77,
        "8B": 8,
        123: 123,
    }.items():
        assert size_in_bytes(text) == size
    for wrong in ("", "GB", "5 XB", "-1GB", "0", "0.1B", True, "1e9", "5GBB"):
        with pytest.raises(MergelibError, match="a shard's size must be"):
            size_in_bytes(wrong)


def test_shards_hold_no_more_than_asked_unless_one_tensor_does():
    sizes = [3, 4, 5, 20, 1, 1, 9, 2]
    spec = {str(i): (torch.uint8, (size,)) for i, size in enumerate(sizes)}
    for limit in range(1, 50):
        files = cut(spec, "m", limit)
        assert [name for part in files.values() for name in part] == list(spec)
        for part in files.values():
            assert len(part) == 1 or sum(bytes_of(*each) for each in part.values()) <= limit
        parts = [list(part) for part in files.values()]
        for before, after in zip(parts, parts[1:], strict=False):  # none could have been joined
            assert sum(sizes[int(n)] for n in [*before, after[0]]) > limit
    assert list(cut(spec, "m", None)) == list(cut(spec, "m", sum(sizes))) == ["m.safetensors"]
    assert list(cut(spec, "m", 33))[0] == "m-00001-of-00002.safetensors"


@pytest.mark.parametrize("out", ["big.safetensors", "big"])
def test_shards_and_their_index(tmp_path, out):
    state = {**small(), "large": torch.randn(40, 5)}
    write(tmp_path / out, state, max_shard_size="170B")
    folder, stem = (tmp_path, "big") if out.endswith("s") else (tmp_path / out, "model")
    index = json.loads((folder / f"{stem}.safetensors.index.json").read_text())
    names = [f"{stem}-{i:05d}-of-00004.safetensors" for i in range(1, 5)]
    assert sorted(path.name for path in folder.iterdir()) == [
        *names,
        f"{stem}.safetensors.index.json",
    ]
    assert index["metadata"] == {"total_size": 6 * 80 + 800}
    read = {}
    for name in names:
        part = load_file(folder / name)
        assert {index["weight_map"][tensor] for tensor in part} == {name}
        read |= part
    assert_same(read, state)
    assert set(index["weight_map"]) == set(state)
    with safe_open(folder / names[0], framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_places_that_must_not_be_replaced(tmp_path):
    state = small()
    write(tmp_path / "a.safetensors", state)
    write(tmp_path / "a.safetensors", state)  # one file replaces one file
    with pytest.raises(MergelibError, match="a.safetensors exists already, in one file"):
        write(tmp_path / "a.safetensors", state, max_shard_size=100)
    write(tmp_path / "b.safetensors", state, max_shard_size=100)
    for size in (100, None):
        with pytest.raises(MergelibError, match="b.safetensors is there in shards"):
            write(tmp_path / "b.safetensors", state, max_shard_size=size)
    (tmp_path / "empty.folder").mkdir()
    write(tmp_path / "empty.folder", state)
    with pytest.raises(MergelibError, match="empty.folder exists already"):
        write(tmp_path / "empty.folder", state)
    (tmp_path / "file").write_text("x")
    with pytest.raises(MergelibError, match="file exists already"):
        write(tmp_path / "file", state)
    with pytest.raises(MergelibError, match="file is no folder"):
        write(tmp_path / "file" / "a.safetensors", state)
    (tmp_path / "c.pt").mkdir()
    with pytest.raises(MergelibError, match="c.pt is a folder"):
        write(tmp_path / "c.pt", state)
    with pytest.raises(MergelibError, match="d.pt cannot be in shards"):
        write(tmp_path / "d.pt", state, max_shard_size="5GB")
    assert not list(tmp_path.glob(".*"))


def test_suffixes(tmp_path):
    for name in ("merged", "llama-3.1-8B", "v2.0", "a.1b"):
        assert is_folder(tmp_path / name)
    for name in ("a.ckpt", "a.safetensor", "a.PT", "a.txt"):
        with pytest.raises(MergelibError, match="unknown suffix"):
            is_folder(tmp_path / name)
    for dtype in (torch.complex128, torch.quint8):
        with pytest.raises(MergelibError, match="'w' of type .* cannot be written"):
            write(tmp_path / "a.safetensors", {}, {"w": (dtype, (1,))})
    assert nothing_in(tmp_path)


def test_files_have_the_rights_of_new_files(tmp_path):
    (tmp_path / "plain").write_text("")
    (tmp_path / "plain.folder").mkdir()
    write(tmp_path / "a.safetensors", small())
    write(tmp_path / "a", small())
    mode = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
    assert mode["a.safetensors"] == mode["plain"] and mode["a"] == mode["plain.folder"]


def test_memory_holds_one_tensor(tmp_path):
    count, size = 50, 2**18
    spec = {str(i): (torch.bfloat16, (size,)) for i in range(count)}
    tracemalloc.start()  # numpy and bytes; torch's own memory is the tensor handed over
    with writer(tmp_path / "a.safetensors", spec, max_shard_size="5MB") as put:
        for name in spec:
            put(name, torch.full((size,), float(name)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * size * 2
    read = load_file(tmp_path / "a-00001-of-00006.safetensors")
    assert all((tensor == float(name)).all() for name, tensor in read.items())
