"""Clusters that units of work run on: processes of this machine, Dask's, or Ray's.

A worker that dies loses the unit that it was doing, which another one does. The cluster's own
clients are used: joblib's Dask backend (1.6) waits for ever on a unit whose workers died each time,
and runs the units of a cluster of one worker in the process that asks for them.
"""

import itertools
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from mergelib.core.errors import MergelibError
from mergelib.core.interrupts import for_us_alone

Unit = tuple[Callable, tuple]
Units = Sequence[Unit]
Spread = Callable[[Units], Iterator[object]]
ADDRESSES = "local:N, dask://host:port or ray://host:port"
SECONDS = 20  # for a scheduler to answer, and for a first worker to be there
WAITS = 9  # times that, for a worker to come back where all have gone
TRIES = 3  # with other workers, after the one that a unit was lost with
_alone = threading.Lock()  # units of one process share its models, and its threads would mix them


@contextmanager
def spread(cluster: str, jobs: int, gpus: bool) -> Iterator[Spread]:
    """What does units of work, function and arguments, and yields whenever one is done.

    cluster: `local:N` (N processes here, which are replaced when they die, each with a GPU of its
    own where there are several), `dask://host:port` (a scheduler) or `ray://host:port` (Ray's
    client server). `jobs`: what was asked for, which has to be 0; `gpus`: a unit may use one.
    Raises MergelibError for another address, without the package, and where nobody answers; what
    it gives raises BrokenProcessPool where a unit's workers died each time.
    """
    kind, _, rest = cluster.partition(":")
    if jobs:
        raise MergelibError("a cluster has its own number of workers: leave out --jobs")
    if kind == "local" and rest.isdecimal() and int(rest) > 0:
        with _processes(int(rest), gpus) as here:
            yield lambda units: _dask(*here, units)
    elif kind == "dask" and rest.strip("/"):
        with _scheduler(f"tcp://{rest.strip('/')}", cluster) as there:
            yield lambda units: _dask(there, lambda: None, units)
    elif kind == "ray" and rest.strip("/"):
        with _ray_at(cluster, gpus) as remote:
            yield lambda units: _ray(remote, units)
    else:
        raise MergelibError(f"cluster {cluster!r} is no address: give {ADDRESSES}")


def alone(unit: Callable, *given: Any) -> None:
    """Do a unit while no other one of this process runs, whatever threads its worker has."""
    with _alone:
        unit(*given)


@contextmanager
def _processes(count: int, gpus: bool) -> Iterator[tuple[Any, Callable[[], None]]]:
    """Dask's client of processes of this machine, and what starts those anew that are missing."""
    distributed = _package("distributed", "dask")
    dask = _package("dask", "dask")
    quiet = {"silence_logs": logging.CRITICAL}  # a killed worker is no news
    options = {"nthreads": 1, "memory_limit": None, **quiet}
    workers = {}
    for i, gpu in zip(range(count), itertools.cycle(_gpus() if gpus else [{}]), strict=False):
        workers[i] = {"cls": distributed.Nanny, "options": options | gpu}
    # no fixed port of the scheduler's pages, which another run may hold
    address = {"host": "127.0.0.1", "port": 0, "dashboard_address": "127.0.0.1:0"}
    address |= {"dashboard": False}
    scheduler = {"cls": distributed.Scheduler, "options": address}
    with ExitStack() as held:
        # Processes that come back later than this are given up; 15 s are few on a busy machine.
        late = {"distributed.deploy.lost-worker-timeout": f"{WAITS * SECONDS / 2}s"}
        held.enter_context(dask.config.set(late))
        with for_us_alone():  # those started later too, by a thread that is started here
            try:
                made = held.enter_context(distributed.SpecCluster(workers, scheduler, **quiet))
            except (OSError, RuntimeError) as error:
                raise MergelibError(
                    f"cluster local:{count}: its processes do not start ({error}): give fewer"
                ) from None
            client = held.enter_context(distributed.Client(made))
        yield client, lambda: made.scale(count)


def _gpus() -> list[dict[str, Any]]:
    """What shows a process one GPU each, where there are several; nothing where there are not."""
    count = torch.cuda.device_count()
    if count < 2:
        return [{}]
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = shown.split(",") if shown else [str(i) for i in range(count)]
    return [{"env": {"CUDA_VISIBLE_DEVICES": name}} for name in names[:count]]


@contextmanager
def _scheduler(address: str, cluster: str) -> Iterator[Any]:
    """Dask's client of a scheduler that is there."""
    distributed = _package("distributed", "dask")
    try:
        client = distributed.Client(address, timeout=SECONDS)
    except (OSError, ValueError) as error:
        raise MergelibError(
            f"cluster {cluster}: no scheduler answers ({error}): start one by `dask scheduler`"
        ) from None
    with client:
        try:
            client.wait_for_workers(1, timeout=SECONDS)
        except TimeoutError:
            raise MergelibError(
                f"cluster {cluster} has no worker: start some, `dask worker HOST:PORT --nthreads 1`"
            ) from None
        yield client


def _dask(client: Any, mend: Callable[[], None], units: Units) -> Iterator[object]:
    distributed = _package("distributed", "dask")
    left = {client.submit(alone, unit, *given, pure=False) for unit, given in units}
    waited = 0  # for any worker to be there
    while left:
        try:
            ready, left = distributed.wait(left, SECONDS, "FIRST_COMPLETED")
        except TimeoutError:
            mend()
            waited = 0 if client.scheduler_info()["workers"] else waited + 1
            if waited > WAITS:
                raise BrokenProcessPool from None
            continue
        except distributed.CancelledError:
            raise MergelibError(
                "the cluster's scheduler has gone: start it, and give the same command again"
            ) from None
        for future in ready:
            try:
                yield future.result()
            except distributed.KilledWorker as error:
                raise BrokenProcessPool from error


@contextmanager
def _ray_at(cluster: str, gpus: bool) -> Iterator[Any]:
    """Units as tasks of Ray."""
    ray = _package("ray", "ray")
    try:
        ray.init(cluster, log_to_driver=False, logging_level=logging.CRITICAL)
    except (OSError, RuntimeError) as error:
        raise MergelibError(
            f"cluster {cluster}: Ray does not answer ({error}): give head:10001 of `ray start`"
        ) from None
    try:
        held = gpus and ray.cluster_resources().get("GPU", 0) > 0
        yield ray.remote(num_cpus=1, num_gpus=int(held), max_retries=TRIES)(alone)
    finally:
        ray.shutdown()


def _ray(remote: Any, units: Units) -> Iterator[object]:
    ray = _package("ray", "ray")
    asked = [remote.remote(unit, *given) for unit, given in units]
    while asked:
        ready, asked = ray.wait(asked)
        try:
            yield from ray.get(ready)
        except ray.exceptions.WorkerCrashedError as error:
            raise BrokenProcessPool from error
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None


def _package(name: str, extra: str) -> Any:
    try:
        return __import__(name)
    except ImportError:
        raise MergelibError(
            f"this kind of cluster wants the package {name}: pip install 'mergelib[{extra}]'"
        ) from None
