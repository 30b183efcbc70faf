"""What is on disk is whole or not there, and comes back as it was."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

from mergelib.core import atomic as atomically
from mergelib.core import store
from mergelib.core.atomic import atomic
from mergelib.core.errors import MergelibError


def test_tensors_come_back(tmp_path):
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(5), "c": torch.zeros(())}
    store.save_tensors(tmp_path / "deep" / "x.safetensors", tensors)
    back = store.load_tensors(tmp_path / "deep" / "x.safetensors")
    assert back.keys() == tensors.keys()
    for name, value in tensors.items():
        assert torch.equal(back[name], value)


@pytest.mark.parametrize("cut", [0, 4, 40, 300])
def test_a_truncated_file_is_named(tmp_path, cut):
    file = tmp_path / "x.safetensors"
    store.save_tensors(file, {"a": torch.randn(20, 20)})
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(MergelibError, match=r"x\.safetensors is truncated"):
        store.load_tensors(file)


def test_a_failed_write_leaves_what_was_there(tmp_path):
    file = tmp_path / "x.json"
    store.write_json(file, {"kept": 1})
    with pytest.raises(ValueError):
        store.write_json(file, {"bad": math.nan})
    with pytest.raises(RuntimeError):
        _failing_write(file)
    assert json.loads(file.read_text()) == {"kept": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def _failing_write(file):
    def half(temporary):
        temporary.write_text("half")
        raise RuntimeError("the disk is full")

    atomic(file, half)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_keep_every_bit(tmp_path, suffix):
    values = np.random.default_rng(0).standard_normal(50) * 10.0 ** np.arange(-25, 25)
    frame = pd.DataFrame({"name": [f"n{i}" for i in range(50)], "value": values})
    store.write_table(tmp_path / f"t{suffix}", frame)
    pd.testing.assert_frame_equal(
        store.read_table(tmp_path / f"t{suffix}"), frame, check_exact=True, check_dtype=False
    )


def test_missing_files_are_named(tmp_path):
    for read in (store.load_tensors, store.read_table, store.read_json):
        with pytest.raises(MergelibError, match="nothing_here"):
            read(tmp_path / "nothing_here.csv")


def test_digest_tells_contents_apart():
    ones = torch.ones(4)
    different = [
        store.digest("ab"),
        store.digest("a", "b"),
        store.digest(["a", "b"]),
        store.digest(1),
        store.digest(1.0),
        store.digest(ones),
        store.digest(ones.double()),
        store.digest(ones.view(2, 2)),
        store.digest(ones.numpy()),
        store.digest({"a": 1}),
        store.digest({"a": 2}),
    ]
    assert len(set(different)) == len(different)
    assert store.digest({"a": 1, "b": 2}) == store.digest({"b": 2, "a": 1})
    assert store.digest(ones) == store.digest(torch.ones(8)[::2])


def test_file_digest_is_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"glyph")
    assert store.file_digest(tmp_path / "x") == hashlib.sha256(b"glyph").hexdigest()


KINDS = [
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
    "complex64",
]


def test_tensors_are_written_as_safetensors_writes_them(tmp_path):
    tensors = {}
    for i, kind in enumerate([*KINDS, "float8_e4m3fn", "float8_e5m2", "uint16", "uint64"]):
        dtype = getattr(torch, kind)
        tensors[f'{i} \u00fc"\\\n.w'] = torch.arange(3 * i + 3).reshape(3, -1).to(dtype)
        tensors[f"{i} scalar"] = torch.ones((), dtype=dtype)
        tensors[f"{i} empty"] = torch.zeros((0, 2), dtype=dtype)
    for metadata in ({}, {"format": "pt\u2028"}):
        store.save_tensors(tmp_path / "x", tensors, metadata)
        assert (tmp_path / "x").read_bytes() == safetensors.torch.save(tensors, metadata)


def test_tensors_that_share_memory_or_are_turned_come_back(tmp_path):
    whole = torch.randn(4, 3)
    tensors = {"whole": whole, "part": whole[1:], "turned": whole.T, "same": whole}
    store.save_tensors(tmp_path / "x", tensors)
    back = store.load_tensors(tmp_path / "x")
    assert all(torch.equal(back[name], value) for name, value in tensors.items())


@pytest.mark.parametrize("named", [False, True])
def test_both_ways_put_files_in_place(tmp_path, named, monkeypatch):
    if named:
        monkeypatch.setattr(atomically, "_unnamed", lambda folder: None)
    longest = tmp_path / ("n" * 255)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    for path in (longest, longest, link, tmp_path / "deep" / "x"):
        before = path.read_bytes() if path.is_file() else b""
        store.write_atomic(path, before + b"whole")
        assert path.read_bytes() == before + b"whole" and not path.is_symlink()
        assert path.stat().st_mode & 0o777 == 0o644
    with pytest.raises(MergelibError, match="is there and no file"):
        store.write_atomic(tmp_path / "deep", b"")
    with pytest.raises(MergelibError, match="give a shorter name"):
        store.write_atomic(tmp_path / ("n" * 256), b"")
    with pytest.raises(MergelibError, match="cannot be written"):
        store.write_atomic(longest / "x", b"")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "link", longest.name]


def test_devices_are_not_replaced():
    with pytest.raises(MergelibError, match="is there and no file"):
        store.write_atomic(Path("/dev/null"), b"")
    assert not Path("/dev/null").is_file()


def test_a_table_of_another_suffix_is_refused(tmp_path):
    with pytest.raises(MergelibError, match=r"t\.txt: .*\.csv or \.parquet"):
        store.write_table(tmp_path / "t.txt", pd.DataFrame({"a": [1]}))
    assert not list(tmp_path.iterdir())
