"""Registries: what notebooks, modules and installed packages may register, and how they print."""

import subprocess
import sys
import types
from dataclasses import dataclass
from importlib import import_module, invalidate_caches

import pytest

from mergelib.core import registry
from mergelib.core.errors import MergelibError
from mergelib.core.registry import Redefined, Registry


@dataclass(frozen=True)
class Row:
    name: str
    note: str
    function: object


def row(name: str, module: str, qualname: str = "f", note: str = "") -> Row:
    """A row whose function claims to come from a module."""

    def function():
        return note

    function.__module__, function.__qualname__ = module, qualname
    return Row(name, note, function)


def test_rows_keep_their_order_and_unknown_names_are_answered():
    rows = Registry("thing")
    for name in ("gamma", "alpha", "beta"):
        rows.add(row(name, "one"))
    assert list(rows) == ["gamma", "alpha", "beta"] and len(rows) == 3 and "beta" in rows
    with pytest.raises(MergelibError, match="unknown thing 'alhpa'; did you mean 'alpha'"):
        rows["alhpa"]


def test_a_notebook_replaces_and_is_told_both_names():
    rows = Registry("thing")
    rows.add(row("x", "__main__", "first", "old"))
    rows.add(row("y", "lib"))
    with pytest.warns(Redefined, match="thing 'x' of __main__:first gives way to __main__:second"):
        rows.add(row("x", "__main__", "second", "new"))
    assert rows["x"].note == "new" and list(rows) == ["x", "y"]
    with pytest.warns(Redefined, match="'y' of lib:f gives way to __main__:mine"):
        rows.add(row("y", "__main__", "mine", "my own"))
    assert rows["y"].note == "my own"


def test_a_module_that_is_loaded_again_replaces_its_own():
    rows = Registry("thing")
    rows.add(row("x", "lib", note="old"))
    with pytest.warns(Redefined, match="lib:f gives way to lib:f"):
        rows.add(row("x", "lib", note="new"))
    assert rows["x"].note == "new"


def test_what_a_notebook_defined_stays_when_a_package_comes_later():
    rows = Registry("thing")
    rows.add(row("x", "__main__", note="mine"))
    with pytest.warns(Redefined, match="'x' stays that of __main__:f, not of lib:f"):
        rows.add(row("x", "lib", note="theirs"))
    assert rows["x"].note == "mine"


def test_two_modules_with_one_name_are_an_error():
    rows = Registry("thing")
    rows.add(row("x", "lib.one", "f"))
    with pytest.raises(MergelibError, match="'x' is registered by lib.one:f and by lib.two:g"):
        rows.add(row("x", "lib.two", "g"))


def test_a_warning_points_at_who_registers(recwarn):
    from mergelib.metrics.registry import METRICS, metric

    held = dict(METRICS._rows)
    try:
        for _ in range(2):
            metric("own_metric_of_this_test")(lambda x: x.gram)
        assert recwarn.pop(Redefined).filename == __file__
    finally:
        METRICS._rows = held


def test_a_registry_prints_as_a_table():
    rows = Registry("thing")
    for name in ("a", "b"):
        rows.add(row(name, "one", note=f"<{name}>"))
    assert repr(rows) == "2 things: a, b"
    html = rows._repr_html_()
    assert html.startswith("<table") and "&lt;b&gt;" in html and "function" not in html
    assert list(rows.table().columns) == ["name", "note"]
    assert list(Registry("thing").table().columns) == []


# --- entry points -------------------------------------------------------------------------------

GROUP = "mergelib.test_things"


@pytest.fixture
def things(monkeypatch):
    """A registry that packages of the group register with, through a module of that name."""
    rows = Registry("thing", group=GROUP)
    module = types.ModuleType("test_things_host")
    module.register = lambda name, module: rows.add(row(name, module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return rows


def install(folder, monkeypatch, package: str, source: str) -> None:
    """A distribution in a folder: a module, and metadata that name it in the group."""
    (folder / f"{package}.py").write_text(source)
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{package} = {package}\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, package, raising=False)
    invalidate_caches()


def registering(*names: str) -> str:
    lines = [f"register({name!r}, __name__)" for name in names]
    return "\n".join(["from test_things_host import register", *lines])


def test_an_installed_package_is_loaded_when_a_name_is_missing(things, tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "mergelib_fake_one", registering("theirs"))
    things.add(row("ours", "lib"))
    assert things["ours"] and "mergelib_fake_one" not in sys.modules
    assert things["theirs"].name == "theirs" and "mergelib_fake_one" in sys.modules
    assert list(things) == ["ours", "theirs"]


def test_an_installed_package_is_loaded_once_when_the_registry_is_listed(
    things, tmp_path, monkeypatch
):
    install(tmp_path, monkeypatch, "mergelib_fake_one", registering("theirs"))
    asked = []
    found = registry.entry_points
    monkeypatch.setattr(registry, "entry_points", lambda **k: asked.append(k) or found(**k))
    assert list(things) == ["theirs"] and len(things) == 1
    assert asked == [{"group": GROUP}]


def test_two_installed_packages_with_one_name(things, tmp_path, monkeypatch):
    for package in ("mergelib_fake_one", "mergelib_fake_two"):
        install(tmp_path, monkeypatch, package, registering("theirs"))
    for _ in range(2):  # asked again, it says so again
        with pytest.raises(MergelibError, match="mergelib_fake_one:f and by mergelib_fake_two:f"):
            list(things)


def test_a_broken_package_is_left_out_with_a_warning(things, tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "mergelib_fake_one", "import no_such_module_at_all")
    install(tmp_path, monkeypatch, "mergelib_fake_two", registering("theirs"))
    with pytest.warns(UserWarning, match="mergelib_fake_one.*cannot be imported.*no_such_module"):
        assert list(things) == ["theirs"]


@pytest.mark.parametrize(
    ("module", "name", "group"),
    [
        ("mergelib.metrics.registry", "METRICS", "mergelib.metrics"),
        ("mergelib.merging.registry", "METHODS", "mergelib.methods"),
        ("mergelib.tasks.registry", "TASKS", "mergelib.tasks"),
        ("mergelib.models.rules", "RULES", "mergelib.rules"),
    ],
)
def test_each_registry_has_its_group(module, name, group):
    assert getattr(import_module(module), name).group == group


def test_a_metric_of_an_installed_package_is_measured(tmp_path):
    """In a fresh process, as an installed package would be: nothing is imported by hand."""
    (tmp_path / "fake_metrics.py").write_text(
        "import mergelib as ml\n\n\n"
        "@ml.metric('fake_sum', category='fake')\n"
        "def fake_sum(x):\n"
        "    return x.gram.diagonal()[:, None] + x.gram.diagonal()[None, :]\n"
    )
    info = tmp_path / "fake_metrics-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-metrics\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mergelib.metrics]\nfake = fake_metrics\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import torch, mergelib as ml\n"
        "base = {'w': torch.zeros(2, 2)}\n"
        "models = {'a': {'w': torch.eye(2)}, 'b': {'w': torch.ones(2, 2)}}\n"
        "print(ml.measure(base, models, ['fake_sum'])['fake_sum'][0])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "6.0", done.stderr
