"""Keys follow the code behind an artifact: found in the import graph, complete, and no wider."""

import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

import mergelib
from mergelib.core.errors import MergelibError
from mergelib.merging.registry import METHODS
from mergelib.models.finetune import Recipe
from mergelib.models.rules import RULES
from mergelib.pipeline import loaded, sources, task_data
from mergelib.pipeline.params import Run, Sizes
from mergelib.pipeline.units import base, data, factors, gradients, merged, summary, tuned
from mergelib.tasks import TASKS

pytestmark = pytest.mark.slow

PACKAGE = Path(mergelib.__file__).parent
TASK, OTHER = "braille", "digits"  # of two files: tasks/rendered.py and tasks/shipped.py

# In a process that imports the package of its working folder: the keys of every station as the
# files are, then after an edit of each file alone.
PRINT_KEYS = f"""
import json, sys
from pathlib import Path
from mergelib.pipeline import sources
from mergelib.pipeline.keys import key
from mergelib.pipeline.params import Run

run = Run(name="r", tasks=["{TASK}", "{OTHER}"], methods={{"ties": {{}}, "emr": {{}}, "tsv": {{}}}})
pair = run.tasks
stations = {{
    "base": (), "data {TASK}": pair[:1], "data {OTHER}": pair[1:], "tuned": pair[:1],
    "summary": pair[:1], "gradients": pair, "factors": pair[:1],
    **{{f"merged {{method}}": (*pair, method) for method in run.methods}},
}}

def keys():
    for kept in (sources._graph, sources.modules_behind, sources.code_behind, sources._file_digest):
        kept.cache_clear()
    return {{name: key(run, name.split()[0], *given) for name, given in stations.items()}}

found = {{"": keys()}}
for name in sys.argv[1:]:
    file = Path("mergelib", name)
    text = file.read_text()
    file.write_text(text + chr(10) + "_EPS = 1e-12" + chr(10))
    found[name] = keys()
    file.write_text(text)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Keys of a copy of the package as it is (""), and by the file that was edited."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(PACKAGE, folder / "mergelib", ignore=shutil.ignore_patterns("__pycache__"))
    ended = subprocess.run(
        [sys.executable, "-c", PRINT_KEYS, *EDITS],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


# What is edited, and the keys that change: they, and those of what is made from them.
MERGED = {"merged ties", "merged emr", "merged tsv"}
MADE_FROM_TUNED = {"summary", "gradients", "factors", *MERGED}
EDITS = {
    # merged.py → engine → layer → polar → lapack; summary.py → metrics.weights → svd → lapack
    "linalg/lapack.py": {"summary", "gradients", "factors", *MERGED},
    # merged.py → engine → layer → polar; nothing of the metrics
    "linalg/polar.py": {"factors", *MERGED},
    # gradients.py → published_gradients → encoder
    "metrics/encoder.py": {"summary", "gradients"},
    "merging/methods/ties.py": {"merged ties"},
    "models/finetune.py": {"tuned", *MADE_FROM_TUNED},
    # the summary of the first task's model sees images of both
    "tasks/shipped.py": {f"data {OTHER}", "summary", "gradients", *MERGED},
    "predict/baselines.py": set(),
}


@pytest.mark.parametrize("file", EDITS)
def test_a_changed_formula_changes_the_keys_of_what_it_computes_and_no_other(keys, file):
    before, after = keys[""], keys[file]
    assert {name for name in before if before[name] != after[name]} == EDITS[file]


def test_a_method_s_key_holds_its_own_file_and_no_other_method_s():
    engine = sources.modules_behind(merged.__name__)
    for row in METHODS.rows():
        behind = {*engine, *sources.modules_behind(row.function.__module__)}
        methods = [m for m in behind if m.startswith("mergelib.merging.methods.")]
        assert methods == [row.function.__module__]


def test_a_plug_in_s_code_counts_wherever_it_stands(tmp_path, monkeypatch):
    package = tmp_path / "a_plug_in"
    package.mkdir()
    (package / "__init__.py").write_text("from a_plug_in.maker import make\n")
    (package / "maker.py").write_text("from a_plug_in.deep import f\n\ndef make(): return f()\n")
    (package / "deep.py").write_text("def f(): return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    import a_plug_in

    before = sources.code_of(a_plug_in.make)
    sources._tree_digest.cache_clear()
    assert sources.code_of(partial(a_plug_in.make)) == before
    (package / "deep.py").write_text("def f(): return 2\n")
    sources._tree_digest.cache_clear()
    assert sources.code_of(a_plug_in.make) != before

    typed = {"__name__": "__main__"}
    exec("def f(): return 1", typed)
    with pytest.raises(MergelibError, match="define it in a file"):
        sources.code_of(typed["f"])


# --- what runs is behind the key ------------------------------------------------------------


# What finds the key itself, called by every unit through `path`; results do not come from it.
KEYS_ASK = frozenset({"mergelib.core.devices", "mergelib.merging.registry"})


class Trace:
    """The modules of mergelib whose functions run, in any thread; not what imports execute."""

    def __enter__(self):
        self.ran = set()
        threading.setprofile(self.see)
        sys.setprofile(self.see)
        return self

    def __exit__(self, *error):
        sys.setprofile(None)
        threading.setprofile(None)

    def see(self, frame, event, argument):
        if event == "call" and frame.f_code.co_name != "<module>":
            name = frame.f_globals.get("__name__", "")
            if name.startswith("mergelib."):
                self.ran.add(name)


@pytest.fixture(scope="module")
def run():
    return Run(
        name="traced",
        tasks=[TASK, OTHER],
        methods={"tsv": {}, "emr": {}, "iso_cts": {}, "dare": {}, "base_protecting": {}},
        metrics=["cross_task_accuracy_of_a"],
        sizes=Sizes(train=8, calibration=20, test=4),
        pool_per_task=2,
        # a step that moves next to nothing: what the base knows is still known
        finetune=Recipe(1, 4, learning_rate=1e-7, rule="gradient_norm", strength=0.1),
    )


def test_all_that_a_unit_runs_is_behind_its_key(run, tmp_path):
    registered = {
        data: {TASKS[task].make.__module__ for task in run.tasks},
        tuned: {RULES["gradient_norm"].function.__module__},
        merged: {METHODS[method].function.__module__ for method in run.methods},
    }
    singles, pair = [(task,) for task in run.tasks], [tuple(run.tasks)]
    paper = replace(run, edition="paper", metrics=[])
    for kept in (loaded.backbone_of, loaded._scratch, task_data._head):
        kept.cache_clear()  # so that loading is seen
    for each, unit, work in (
        (run, base, [()]),
        *((run, unit, singles) for unit in (data, tuned, summary, factors)),
        (run, merged, pair),
        (paper, summary, singles),
        (paper, gradients, pair),
    ):
        with Trace() as trace:
            for names in work:
                unit.make(tmp_path, each, *names)
        behind = {*sources.modules_behind(unit.__name__, *registered.get(unit, ()))}
        beyond = trace.ran - behind - sources.PLUMBING - KEYS_ASK
        assert unit.__name__ in trace.ran and not beyond, f"{unit.__name__} runs {sorted(beyond)}"


def test_no_code_behind_a_key_is_imported_by_a_name_that_the_graph_does_not_see():
    units = [unit.__name__ for unit in (base, data, tuned, summary, gradients, factors, merged)]
    makers = {TASKS[task].make.__module__ for task in TASKS}
    for module in sources.modules_behind(*units, *makers):
        if module.endswith(".registry"):
            continue  # imports to register; what is registered counts by `code_of`
        text = PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".py").read_text()
        assert "import_module(" not in text and "__import__(" not in text, module
