"""The command line ends with a result or one clear line, and leaves nothing half-written."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mergelib import cli
from mergelib.core.store import load_tensors, read_table, save_tensors
from mergelib.metrics import table

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A base and two models in the folder that the test runs in."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    for name in ("base", "a", "b"):
        tensors = {"w": torch.randn(6, 5, generator=generator), "v": torch.ones(3)}
        save_tensors(Path(f"{name}.safetensors"), tensors)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").touch()
    return tmp_path


METRICS = "metrics --base base.safetensors --models a.safetensors b.safetensors"
MERGE = "merge --base base.safetensors --models a.safetensors b.safetensors --method weight_avg"


def held(folder):
    """Every file below a folder with what is in it."""
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def refused(words, capsys, says, folder):
    """The command fails with one line, and no file has changed."""
    before = held(folder)
    assert cli.main(words.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("mergelib: error: ") and err.count("\n") == 1
    assert says in err, err
    assert held(folder) == before


def process(*words, code=None, **named):
    """The command line in a process of its own; `code` runs before."""
    start = f"{code or ''}\nimport sys\nfrom mergelib.cli import main\nsys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", start, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        **named,
    )


# --- what cannot be written -----------------------------------------------------------------------

OUTPUTS = {
    "folder": "is a folder",
    "base.safetensors": "is one of the inputs",
    "./folder/../a.safetensors": "is one of the inputs, a.safetensors",
    "a.safetensors/t.csv": "is no folder",
    "/proc/t.csv": "cannot be written",
    "/proc/nowhere/t.csv": "cannot be written",
    "/dev/null": "is a device",
    "t.txt": "ends in .csv or .parquet",
    "t": "ends in .csv or .parquet",
    f"{'t' * 300}.csv": "give a shorter name",
    f"new/{'t' * 300}/t.csv": "give a shorter name",
}


@pytest.mark.parametrize("out", OUTPUTS)
def test_an_output_that_cannot_be_is_refused_before_any_work(models, capsys, monkeypatch, out):
    monkeypatch.setattr(table, "pairwise_of_checkpoints", None)  # a call would fail otherwise
    refused(f"{METRICS} --out {out}", capsys, OUTPUTS[out], models)
    assert not (models / "new").exists()


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_an_input_by_another_name_is_not_written_over(models, capsys, link):
    link("a.safetensors", "t.csv")
    refused(f"{METRICS} --out t.csv", capsys, "one of the inputs, a.safetensors", models)


def test_nothing_is_put_into_a_model_that_is_a_folder(models, capsys):
    words = "metrics --base base.safetensors --models a.safetensors folder --out folder/t.csv"
    refused(words, capsys, "is a part of the input folder", models)


CACHES = {
    "a.safetensors": "one of the inputs",
    "folder/inside": "is a file, and a folder is wanted",
    "folder/inside/deep": "is no folder",
    "/proc/c": "cannot be written",
}


@pytest.mark.parametrize("cache", CACHES)
def test_a_cache_that_cannot_be_is_refused(models, capsys, cache):
    refused(f"{METRICS} --out t.csv --cache {cache}", capsys, CACHES[cache], models)


def test_the_other_verbs_ask_too(models, capsys):
    Path("p.yaml").write_text("name: x\n")
    refused("run --params p.yaml --store p.yaml", capsys, "one of the inputs", models)
    refused("run --params p.yaml --store /proc/s", capsys, "cannot be written", models)
    refused("published --from folder --to a.safetensors", capsys, "is no folder", models)
    Path("_toc.yml").write_text("root: x\n")
    refused("book --out folder", capsys, "holds files already", models)
    refused("book --out .", capsys, "holds files already", models)
    refused("book -p n [1", capsys, "-p n cannot be used as YAML", models)


def test_a_table_that_was_there_is_replaced_and_nothing_else_is_left(models, capsys):
    Path("t.csv").write_text("before")
    assert cli.main(f"{METRICS} --out t.csv --cache c".split()) == 0
    assert len(read_table(Path("t.csv"))) == 1
    assert Path("t.csv").stat().st_mode & 0o777 == 0o644
    assert not [file for file in models.rglob("*") if file.name.startswith(".")]


@pytest.mark.parametrize("words", [f"{METRICS} --out t.csv", f"{MERGE} --out m.safetensors"])
def test_a_full_disk_leaves_what_was_there(models, words):
    out = Path(words.split()[-1])
    out.write_bytes(b"before")
    before = held(models)
    code = (
        "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50, resource.RLIM_INFINITY))"
    )
    running = process(*words.split(), code=code)
    _, err = running.communicate()
    assert running.returncode == 2, err
    assert err == (
        f"mergelib: error: {out} cannot be written ({os.strerror(errno.EFBIG)}): free some space, "
        "or write elsewhere\n"
    )
    assert held(models) == before


def test_output_that_cannot_be_printed_is_one_line_too(models):
    with open("/dev/full", "w") as full:
        running = subprocess.run(
            [sys.executable, "-m", "mergelib.cli", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""},  # argparse hides it
        )
    assert running.returncode == 2
    assert running.stderr.startswith("mergelib: error: ") and running.stderr.count("\n") == 1
    assert os.strerror(errno.ENOSPC) in running.stderr


def test_names_that_no_terminal_can_spell(models):
    name = os.fsdecode(b"m\xff.csv")
    running = process(*METRICS.split(), "--out", name, code="")
    out, err = running.communicate()
    assert running.returncode == 0 and err == "" and "m\\udcff.csv" in out
    assert (models / name).is_file()


# --- what goes wrong inside -----------------------------------------------------------------------

FAULTS = {
    "nowhere: No such file": FileNotFoundError(errno.ENOENT, "No such file", "nowhere"),
    "the memory is not enough (MemoryError)": MemoryError(),
    "the memory is not enough (CUDA out of memory.": RuntimeError("CUDA out of memory.\nTried"),
    "nested too deeply": RecursionError("maximum recursion depth exceeded"),
    "no UTF-8 text": UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    "KeyError: 'x'; not foreseen": KeyError("x"),
}


@pytest.mark.parametrize("says", FAULTS)
def test_faults_are_one_line(models, capsys, monkeypatch, says):
    def fail(*given, **named):
        raise FAULTS[says]

    monkeypatch.setattr("mergelib.face.measure", fail)
    refused(f"{METRICS} --out t.csv", capsys, says, models)


def test_an_interrupt_says_that_work_goes_on_only_where_it_does(models, capsys, monkeypatch):
    def stop(*given, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr("mergelib.face.measure", stop)
    assert cli.main(f"{METRICS} --out t.csv".split()) == 130
    assert capsys.readouterr().err == "mergelib: interrupted\n"
    Path("p.yaml").write_text("name: x\n")
    monkeypatch.setattr("mergelib.pipeline.params.load", stop)
    assert cli.main(["run", "--params", "p.yaml", "--store", "s"]) == 130
    assert "the same command goes on from here" in capsys.readouterr().err


# --- signals --------------------------------------------------------------------------------------

# The signal comes from a thread of the process itself, once a module is there or a call is made.
AT_IMPORT = """
import os, sys, threading, time
def wait():
    while {module!r} not in sys.modules: time.sleep(0.001)
    os.kill(os.getpid(), {number})
threading.Thread(target=wait, daemon=True).start()
"""
AT_WORK = """
import os, time, mergelib.core.atomic as atomic
def stopped(path, *given, original=atomic.{way}):
    def write(temporary):
        temporary.write_bytes(b"half")
        print("writing", flush=True)
        {act}
    original(path, write, *given[1:])
atomic.{way} = stopped
"""
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.mark.parametrize("number", STATUS)
@pytest.mark.parametrize("module", ["torch", "torch.nn", "mergelib.core.store", "scipy.linalg"])
def test_a_signal_while_things_are_imported(models, number, module):
    before = held(models)
    code = AT_IMPORT.format(module=module, number=int(number))
    running = process(*METRICS.split(), "--out", "t.csv", code=code)
    _, err = running.communicate()
    assert (running.returncode, err) == (STATUS[number], "mergelib: interrupted\n")
    assert held(models) == before


@pytest.mark.parametrize("number", STATUS)
@pytest.mark.parametrize("way", ["_without_name", "_by_name"])
def test_a_signal_while_a_file_is_written(models, number, way):
    Path("t.csv").write_text("before")
    before = held(models)
    code = AT_WORK.format(way=way, act="time.sleep(600)")
    if way == "_by_name":
        code += "atomic._unnamed = lambda folder: None\n"
    running = process(*METRICS.split(), "--out", "t.csv", code=code)
    assert running.stdout.readline() == "writing\n"
    running.send_signal(number)
    _, err = running.communicate()
    assert (running.returncode, err) == (STATUS[number], "mergelib: interrupted\n")
    assert held(models) == before


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="files without a name are Linux's")
def test_killed_while_it_writes_it_leaves_nothing(models):
    before = held(models)
    code = AT_WORK.format(way="_without_name", act="os.kill(os.getpid(), 9)")
    running = process(*METRICS.split(), "--out", "new/t.csv", code=code)
    running.communicate()
    assert running.returncode == -signal.SIGKILL
    assert held(models) == before


def test_what_a_killed_merge_leaves_goes_with_the_next_one(models):
    code = """
import os, sys
import mergelib.checkpoints.output.writing as writing
def finish(*given):
    print("writing", flush=True)
    sys.stdin.read()
writing._finish = finish
"""
    before = held(models)
    words = [*MERGE.split(), "--out", "new.safetensors"]
    first, second = (process(*words, code=code, stdin=subprocess.PIPE) for _ in "ab")
    for running in (first, second):
        assert running.stdout.readline() == "writing\n"
    left = [path for path in Path().glob(".*.tmp") if path.is_dir()]
    assert len(left) == 2  # the second one does not take the first one's for a dead one's
    for running in (first, second):
        running.kill()
        running.communicate()
    running = process(*words)
    _, err = running.communicate()
    assert running.returncode == 0, err
    assert not list(Path().glob(".*.tmp"))
    new = {path.name for path in held(models)} - {path.name for path in before}
    assert new == {"new.safetensors", "new.recipe.yaml"}


def test_an_interrupt_that_becomes_another_error_is_an_interrupt(models):
    code = """
import os, mergelib.core.outputs as outputs
def check(*given):
    try:
        os.kill(os.getpid(), 2)
        while True: pass
    except KeyboardInterrupt:
        raise SystemError("no result, and an error set") from None
outputs.check_output = check
"""
    running = process(*METRICS.split(), "--out", "t.csv", code=code)
    _, err = running.communicate()
    assert (running.returncode, err) == (130, "mergelib: interrupted\n")


RUN = """
name: small
tasks: [digits, braille]
methods: {weight_avg: {}}
sizes: {train: 60, calibration: 20, test: 20}
pool_per_task: 2
finetune: {steps: 100000, batch: 16}
"""


@pytest.mark.slow
def test_workers_are_silent_when_interrupted(models):
    """Ctrl-C at a terminal reaches every process of the group."""
    Path("p.yaml").write_text(RUN)
    words = ["run", "--params", "p.yaml", "--store", "s", "--tables", "t", "--jobs", "2"]
    running = process(*words, start_new_session=True)
    while len(list(Path("s").glob("data/*"))) < 2 and running.poll() is None:
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)
    _, err = running.communicate()
    assert running.returncode == 130, err
    assert "Traceback" not in err and "Error" not in err
    assert err.endswith("mergelib: interrupted; the same command goes on from here\n")
    assert not list(Path("s").glob("*/.*"))


# --- what is imported -----------------------------------------------------------------------------

IMPORTED = "import atexit, sys\natexit.register(lambda: print(*sys.modules, file=sys.stderr))"
HEAVY = {"torch", "numpy", "pandas", "scipy", "sklearn", "joblib", "matplotlib", "yaml"}
NOT_FOR = {  # pandas is what a table of metrics is
    f"{MERGE} --out m.safetensors": HEAVY - {"torch", "numpy", "scipy", "yaml"},
    f"{METRICS} --out t.csv": {"sklearn", "scipy.stats", "joblib", "open_clip", "matplotlib"},
}


@pytest.mark.parametrize("words", ["--version", "--help", *(f"{v} --help" for v in cli.VERBS)])
def test_help_is_light(words):
    running = process(*words.split(), code=IMPORTED)
    out, err = running.communicate()
    assert running.returncode == 0 and "mergelib" in out
    if not words.startswith(("fit", "published", "book")):  # whose help lists what is registered
        assert not HEAVY & set(err.split())


@pytest.mark.parametrize("words", NOT_FOR)
def test_a_command_imports_what_it_uses(models, words):
    running = process(*words.split(), code=IMPORTED)
    _, err = running.communicate()
    assert running.returncode == 0
    assert "torch" in err.split() and not NOT_FOR[words] & set(err.split())


# --- names of models ------------------------------------------------------------------------------


def test_models_of_one_file_name_are_told_apart(models, capsys):
    for name, task in (("a", "Cars"), ("b", "DTD")):
        Path(task).mkdir()
        torch.save(load_tensors(Path(f"{name}.safetensors")), f"{task}/finetuned.pt")
    words = "metrics --base base.safetensors --models Cars/finetuned.pt DTD/finetuned.pt"
    assert cli.main([*words.split(), "--out", "t.csv"]) == 0
    assert read_table(Path("t.csv")).loc[0, ["task_a", "task_b"]].tolist() == ["Cars", "DTD"]
    capsys.readouterr()
    words = "metrics --base base.safetensors --models a.safetensors ./folder/../a.safetensors"
    refused(f"{words} --out n.csv", capsys, "is given twice, also as a.safetensors", models)
