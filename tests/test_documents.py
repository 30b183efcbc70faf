"""JSON and YAML that people write, and names of models: one clear line for every mistake."""

import itertools
import random
import string
from pathlib import Path

import pytest

from mergelib.checkpoints.names import names_of_paths
from mergelib.core import documents, yaml_files
from mergelib.core.documents import read_json, read_mapping
from mergelib.core.errors import MergelibError
from mergelib.core.yaml_files import parse_yaml, read_yaml
from mergelib.pipeline.params import load

JSON = {
    "truncated": (b'{"a": [1, 2', "is truncated or not JSON"),
    "empty": (b"", "is truncated or not JSON"),
    "no UTF-8": (b'{"a": "\xff"}', "no UTF-8 text"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "no UTF-8 text"),
    "byte order mark": (b'\xef\xbb\xbf{"a": 1}', "byte order mark"),
    "deep": (b"[" * 200_000 + b"]" * 200_000, "nested too deeply"),
    "NaN": (b'{"a": NaN}', "NaN is no finite number"),
    "infinity": (b'{"a": -Infinity}', "-Infinity is no finite number"),
    "overflow": (b'{"a": 1e999}', "1e999 is no finite number"),
    "twice": (b'{"b": {"a": 1, "a": 2}}', "'a' is there twice"),
    "digits": (b'{"a": ' + b"9" * 5000 + b"}", "limit"),
}


@pytest.mark.parametrize("name", JSON)
def test_json_that_cannot_be_used(tmp_path, name):
    data, says = JSON[name]
    file = tmp_path / "x.json"
    file.write_bytes(data)
    with pytest.raises(MergelibError, match=says) as caught:
        read_json(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_json_comes_as_it_is(tmp_path):
    file = tmp_path / "x.json"
    file.write_text('{"a": [1, 2.5, -1e-300, null, true], "\\u00e9": {}}')
    assert read_mapping(file) == {"a": [1, 2.5, -1e-300, None, True], "é": {}}
    file.write_text("[1]")
    assert read_json(file) == [1]
    with pytest.raises(MergelibError, match="holds a list, no JSON object"):
        read_mapping(file)


@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_files_that_are_none(tmp_path, read, monkeypatch):
    with pytest.raises(MergelibError, match="is a folder"):
        read(tmp_path)
    with pytest.raises(MergelibError, match="is missing"):
        read(tmp_path / "x")
    with pytest.raises(MergelibError, match="is missing"):
        read(Path(__file__) / "x")
    with pytest.raises(MergelibError, match="cannot be read"):
        read(tmp_path / ("x" * 300))
    monkeypatch.setattr(documents, "JSON_BYTES", 2**10)
    monkeypatch.setattr(yaml_files, "BYTES", 2**10)
    with pytest.raises(MergelibError, match="larger than 1 KiB"):
        read(Path("/dev/zero"))


def bomb(start: str, line: str) -> str:
    """Nine names, each of which holds ten of the one before."""
    names = string.ascii_lowercase[:10]
    lines = [line.format(new=n, old=o) for o, n in itertools.pairwise(names)]
    return "\n".join([f"a: &a {start}", *lines])


YAML = {
    "twice": ("a: 1\nb: {c: 1, c: 2}", "'c' is there twice"),
    "a bomb": (bomb("[x]", "{new}: &{new} [" + ", ".join(["*{old}"] * 10) + "]"), "aliases"),
    "a bomb of merges": (
        bomb("{x: 1}", "{new}: &{new} {{<<: [" + ", ".join(["*{old}"] * 10) + "]}}"),
        "aliases",
    ),
    "in itself": ("a: &a [*a]", "inside what it stands for"),
    "deep": ("a: " + "[" * 5000, "nested too deeply"),
    "a tab": ("a:\n\t- b", "line 2: found character '.t'"),
    "NaN": ("a: .nan", ".nan is no finite number"),
    "infinity": ("a: -.inf", "-.inf is no finite number"),
    "digits": ("a: " + "9" * 5000, "limit"),
    "no date": ("a: 2024-13-45", "month"),
    "code": ("a: !!python/object:os.system x", "line 1: could not determine a constructor"),
    "two documents": ("a: 1\n---\nb: 2", "another document"),
    "unhashable": ("{[a]: 1}", "unhashable"),
    "a control character": ("a: \0", "special characters"),
    "a list": ("- a", "no `name: value` lines"),
    "nothing": ("", "no `name: value` lines"),
}


@pytest.mark.parametrize("name", YAML)
def test_yaml_that_cannot_be_used(tmp_path, name):
    text, says = YAML[name]
    file = tmp_path / "x.yaml"
    file.write_text(text)
    for read in (read_yaml, load):
        with pytest.raises(MergelibError, match=says) as caught:
            read(file)
        assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_yaml_comes_as_it_is(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("a: &a {x: 1, y: 2.5}\nb: {<<: *a, x: 2}\nc: [*a, text, null, true]\n")
    a = {"x": 1, "y": 2.5}
    assert read_yaml(file) == {"a": a, "b": {"x": 2, "y": 2.5}, "c": [a, "text", None, True]}
    assert parse_yaml("3", "-p n") == 3 and parse_yaml("", "-p n") is None


@pytest.mark.parametrize("size", ["1e11", "1.0e+11", "100000000000", "-1", "0", ".nan", "[1]"])
def test_sizes_are_bounded(tmp_path, size):
    file = tmp_path / "x.yaml"
    text = f"name: x\ntasks: [digits, braille]\nmethods: {{ties: {{}}}}\nsizes: {{train: {size}}}\n"
    file.write_text(text)
    with pytest.raises(MergelibError, match="sizes|finite") as caught:
        load(file)
    assert str(file) in str(caught.value)


# --- names of models ------------------------------------------------------------------------------

NAMED = {
    "Cars/finetuned.pt DTD/finetuned.pt": "Cars DTD",
    "a/x.pt b/y.pt": "x y",
    "x.v1.pt x.v2.pt": "x.v1 x.v2",
    "runs/cars/v1/model.safetensors runs/dtd/v1/model.safetensors": "cars dtd",
    "cars/v1/m.pt cars/v2/m.pt dtd/v1/m.pt": "cars/v1 cars/v2 dtd/v1",
    "cars/v1/m.pt cars/v1/n.pt dtd/v1/m.pt": "cars/m cars/n dtd/m",
    "a/x.pt a/x.bin": "x.pt x.bin",
    "a/x.pt a/x.bin b/x.pt": "a/x.pt a/x.bin b/x.pt",
    "a/m.pt b/c/m.pt": "a c",
    "m.pt": "m",
}


@pytest.mark.parametrize("paths", NAMED)
def test_names_are_what_tells_paths_apart(paths):
    assert names_of_paths([Path(each) for each in paths.split()]) == NAMED[paths].split()


def test_folders_keep_their_whole_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/clip.v1", "b/clip.v1", "b/other.v1"):
        Path(name).mkdir(parents=True)
    assert names_of_paths([Path("a/clip.v1"), Path("b/other.v1")]) == ["clip.v1", "other.v1"]
    assert names_of_paths([Path("a/clip.v1"), Path("b/clip.v1")]) == ["a", "b"]
    monkeypatch.chdir("a/clip.v1")
    assert names_of_paths([Path("."), Path("../../b/clip.v1")]) == ["a", "b"]


def test_a_file_that_is_given_twice_is_said_so(tmp_path):
    file, link = tmp_path / "m.pt", tmp_path / "n.pt"
    file.touch()
    link.symlink_to(file)
    for again in (file, tmp_path / "x" / ".." / "m.pt", link):
        with pytest.raises(MergelibError, match="is given twice"):
            names_of_paths([file, again])


def fewest(paths: list[Path]) -> int:
    """How few parts tell paths of one depth apart, by trying all."""
    rows = [(*path.parts[:-1], path.stem) for path in paths]
    columns = range(len(rows[0]))
    for size in columns:
        for some in itertools.combinations(columns, size + 1):
            if len({tuple(row[k] for k in some) for row in rows}) == len(rows):
                return size + 1
    raise AssertionError("equal paths")


@pytest.mark.parametrize("seed", range(40))
def test_names_of_random_trees(seed):
    """Each name is one of its own, made of parts of its path in their order, as few as do."""
    draw = random.Random(seed)
    depth, count = draw.randint(1, 6), draw.randint(2, 12)
    every = list(itertools.product("ab", repeat=depth))
    paths = [Path("/", *parts[:-1], f"{parts[-1]}.pt") for parts in every]
    paths = draw.sample(paths, min(count, len(paths)))
    names = names_of_paths(paths)
    assert len(set(names)) == len(paths)
    for name, path in zip(names, paths, strict=True):
        rest = iter((*path.parts[1:-1], path.stem))
        assert all(part in rest for part in name.split("/"))
        if len({p.stem for p in paths}) == len(paths):
            assert name == path.stem
        else:
            assert len(name.split("/")) == fewest(paths)


@pytest.mark.parametrize("seed", range(20))
def test_names_of_random_trees_of_any_depth(seed):
    draw = random.Random(seed)
    found = {
        Path(
            "/", *draw.choices("abc", k=draw.randint(0, 7)), draw.choice(["m.pt", "m.bin", "n.pt"])
        )
        for _ in range(20)
    }
    paths = sorted(found)
    names = names_of_paths(paths)
    assert len(set(names)) == len(paths) and all(names)
