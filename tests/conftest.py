"""Fixtures every test may use: the data beside the repository, and a blocked network."""

import os
from pathlib import Path

import matplotlib
import pytest
import torch

matplotlib.use("agg")  # here only: the environment of the chapters' kernels stays as it is
# One, so that tests beside each other do not fight; `make test-portable` asks for more.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "").split(",")[0] or 1))

ROOT = Path(__file__).resolve().parents[1]

# Runs at the start of every Python process below: only this machine can be connected to, and
# each attempt at anything else is written down, so that a library cannot swallow the error.
BLOCK = r"""
import os
import socket


def _guard(name):
    original = getattr(socket.socket, name)

    def guarded(self, address, *rest):
        host = address[0] if isinstance(address, tuple) else "localhost"
        if host not in ("localhost", "::1", "") and not str(host).startswith("127."):
            with open(os.environ["MERGELIB_TEST_NETWORK_LOG"], "a") as log:
                log.write(f"{name} {address}\n")
            raise OSError(f"the network is blocked in this test: {address}")
        return original(self, address, *rest)

    setattr(socket.socket, name, guarded)


def _resolve(host, *rest, _original=socket.getaddrinfo, **named):
    if host not in (None, "localhost", "::1", "") and not str(host).startswith("127."):
        with open(os.environ["MERGELIB_TEST_NETWORK_LOG"], "a") as log:
            log.write(f"getaddrinfo {host}\n")
        raise OSError(f"the network is blocked in this test: {host}")
    return _original(host, *rest, **named)


for _name in ("connect", "connect_ex"):
    _guard(_name)
socket.getaddrinfo = _resolve
"""


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of released tables and specifications beside the repository."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no folder `shared` beside the repository: the released tables are not here")
    return folder


@pytest.fixture(scope="session")
def released(shared) -> Path:
    """The checkout of the released tables in that folder."""
    source = shared / "published"
    if not (source / "results").is_dir():
        pytest.skip("the released tables are not beside the repository (shared/published)")
    return source


@pytest.fixture
def no_network(tmp_path_factory, monkeypatch) -> Path:
    """Block every connection off this machine, here and in child processes; fail on an attempt.

    Returns the log of attempts.
    """
    import socket

    folder = tmp_path_factory.mktemp("no_network")
    (folder / "sitecustomize.py").write_text(BLOCK)
    log = folder / "attempts.log"
    log.touch()
    monkeypatch.setenv("MERGELIB_TEST_NETWORK_LOG", str(log))
    path = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *([path] if path else [])]))
    for owner, name in (
        (socket.socket, "connect"),
        (socket.socket, "connect_ex"),
        (socket, "getaddrinfo"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # put back at the end
    exec(compile(BLOCK, "sitecustomize.py", "exec"), {})
    yield log
    attempts = log.read_text()
    assert not attempts, f"something asked for the network:\n{attempts}"
