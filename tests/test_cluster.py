"""Units of work on a cluster: a worker killed in the middle, and what is refused."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures.process import BrokenProcessPool

import pytest
import yaml

from mergelib.cli import main
from mergelib.core.errors import MergelibError
from mergelib.pipeline import cluster, params
from mergelib.pipeline.run import artifacts, execute, on_a_worker
from mergelib.pipeline.units import base, data

distributed = pytest.importorskip("distributed", reason="the extra `dask` is not installed")

FILES = ("metrics.csv", "merges.csv", "tasks.csv", "meta.json")
RUN = {
    "name": "spread",
    "tasks": ["digits", "braille", "animals", "games"],
    "methods": {"weight_avg": {}, "ties": {}, "tsv": {}},
    "sizes": {"train": 60, "calibration": 20, "test": 40},
    "pool_per_task": 2,
    "finetune": {"steps": 4, "batch": 16, "learning_rate": 1.0e-3},
}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A parameter file, and the folder of its tables as one process makes them."""
    folder = tmp_path_factory.mktemp("spread")
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(RUN))
    execute(params.load(file), folder / "store", folder / "tables", jobs=1)
    return file, folder / "tables"


def command(file, folder, address):
    return [
        *(sys.executable, "-m", "mergelib.cli", "run", "--params", str(file)),
        *("--store", str(folder / "store"), "--tables", str(folder / "tables")),
        *("--cluster", address),
    ]


def places(store):
    """The files of a store: one that is written again is another file."""
    return {f: f.stat().st_ino for f in store.glob("*/*") if not f.name.startswith(".")}


def bars(err):
    """The last state of every station's bar."""
    found = re.findall(r"([\w-]+): +\d+%\|[^|]*\| (\d+)/(\d+)", err)
    return {label: (int(done), int(total)) for label, done, total in found}


@pytest.mark.slow
def test_a_killed_worker_changes_no_byte_and_costs_no_finished_unit(given, tmp_path):
    file, expected = given
    options = {"threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50}
    with distributed.LocalCluster(n_workers=3, memory_limit=None, **options) as workers:
        address = workers.scheduler_address.replace("tcp://", "dask://")
        words = command(file, tmp_path, address)
        running = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        merged, seen = tmp_path / "store" / "merged", {}
        while running.poll() is None and len(list(merged.glob("*.json"))) < 4:
            time.sleep(0.02)
        seen = places(tmp_path / "store")
        busy = next(w for w in workers.scheduler.workers.values() if w.processing)
        victim = workers.workers[busy.name].process.pid
        os.kill(victim, signal.SIGKILL)
        err = running.communicate(timeout=600)[1]
    assert running.returncode == 0, err
    for name in FILES:
        assert (tmp_path / "tables" / name).read_bytes() == (expected / name).read_bytes()
    after = places(tmp_path / "store")
    assert len(seen) >= 4 and {f: after[f] for f in seen} == seen
    ends = {"tasks": 4, "fine-tuning": 4, "summaries": 4, "factors": 4, "merges": 6}
    assert bars(err) == {label: (total, total) for label, total in ends.items()}


@pytest.mark.slow
def test_an_interrupt_ends_all_with_one_line(given, tmp_path):
    """Ctrl-C at a terminal reaches every process of the group."""
    words = command(given[0], tmp_path, "local:2")
    running = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while running.poll() is None and not list((tmp_path / "store").glob("data/*")):
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGINT)
    err = running.communicate(timeout=300)[1]
    assert running.returncode == 130, err
    assert "Traceback" not in err and "Error" not in err
    assert err.endswith("mergelib: interrupted; the same command goes on from here\n")


@pytest.fixture(scope="module")
def two():
    """Two worker processes of this machine."""
    with cluster.spread("local:2", 0, gpus=False) as over:
        yield over


@pytest.mark.slow
def test_a_unit_that_kills_each_of_its_workers_ends_the_run(two):
    with pytest.raises(BrokenProcessPool):
        list(two([(os._exit, (1,))]))


@pytest.mark.slow
def test_an_error_of_a_unit_comes_back_as_it_is(two, tmp_path, given):
    run = params.load(given[0])
    units = [(on_a_worker, (tmp_path, run, data.__name__, ("digits",), []))]
    with pytest.raises(MergelibError, match="does not see what the run stored"):
        list(two(units))
    base.make(tmp_path, run)
    with pytest.raises(MergelibError, match="digits otherwise than the run asks"):
        list(two(units))
    wanted = artifacts(tmp_path, run, data, ("digits",))
    assert len(list(two([(on_a_worker, (tmp_path, run, data.__name__, ("digits",), wanted))]))) == 1
    assert [f.is_file() for f in wanted] == [True]


def test_units_of_one_process_wait_for_each_other():
    at_once, most = [], []

    def unit():
        at_once.append(1)
        most.append(len(at_once))
        time.sleep(0.01)
        at_once.pop()

    threads = [threading.Thread(target=cluster.alone, args=(unit,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]


def test_processes_share_out_the_gpus_that_are_shown(monkeypatch):
    def names():
        return [each.get("env", {}).get("CUDA_VISIBLE_DEVICES") for each in cluster._gpus()]

    for count, shown, expected in (
        (0, None, [None]),
        (1, "3", [None]),
        (2, None, ["0", "1"]),
        (2, "4,6", ["4", "6"]),
    ):
        monkeypatch.setattr(cluster.torch.cuda, "device_count", lambda count=count: count)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if shown:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
        assert names() == expected


@pytest.mark.slow
def test_a_scheduler_that_goes_is_named(given, tmp_path):
    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    workers = distributed.LocalCluster(memory_limit=None, silence_logs=50, **options)
    address = workers.scheduler_address.replace("tcp://", "dask://")
    with (
        pytest.raises(MergelibError, match="scheduler has gone"),
        cluster.spread(address, 0, gpus=False) as over,
    ):
        results = over([(time.sleep, (seconds,)) for seconds in (0, 60)])
        next(results)
        workers.close()
        list(results)


REFUSED = {
    "slurm://here": "is no address: give local:N",
    "local:": "is no address",
    "local:0": "is no address",
    "dask://": "is no address",
    "dask://127.0.0.1:1": "no scheduler answers",
    "dask://127.0.0.1": "no scheduler answers",
}


@pytest.mark.parametrize("address", REFUSED)
def test_clusters_that_are_none(given, tmp_path, capsys, monkeypatch, address):
    monkeypatch.setattr(cluster, "SECONDS", 0.5)
    words = command(given[0], tmp_path, address)[3:]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("mergelib: error: ") and said.count("\n") == 1
    assert REFUSED[address] in said
    assert not (tmp_path / "tables").exists() and not places(tmp_path / "store")


def test_jobs_and_a_cluster_are_not_asked_for_together(given, tmp_path, capsys):
    words = command(given[0], tmp_path, "local:2")[3:]
    assert main([*words, "--jobs", "2"]) == 2
    assert "leave out --jobs" in capsys.readouterr().err


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(MergelibError, match=r"pip install 'mergelib\[dask\]'"),
        cluster.spread("local:2", 0, gpus=False),
    ):
        pass
