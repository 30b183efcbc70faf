"""Files put in place whole: whoever looks meets the old one or the new one, never a part."""

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from socket import gethostname

from mergelib.core.errors import MergelibError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file (mode 0644), then put it at `path` in one step.

    Where the file system can, the file has no name until it is whole, so that even a killed
    process leaves nothing; `write` gets a path that leads to it, to open and fill, not to replace.
    Raises MergelibError, naming the path, the reason and the mend, where it cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # root could put a file in a device's place
            raise MergelibError(f"{path} is there and no file: give another path")
        unnamed = _unnamed(path.parent)
        if unnamed is None:
            _by_name(path, write)
        else:
            _without_name(path, write, unnamed)
    except OSError as error:
        raise unwritten(path, error) from None


def write_atomic(path: Path, data: bytes) -> None:
    """Write bytes so that `path` holds all of them or what it held before."""
    atomic(path, lambda temporary: temporary.write_bytes(data))


@contextmanager
def temporary_folder(home: Path) -> Iterator[Path]:
    """A new hidden folder in `home`, to fill and to move from, which is gone at the end.

    What killed processes of this machine left of theirs in `home` is removed: a live one holds a
    lock on its own. Raises OSError where there can be none.
    """
    ours = f".{sha256(gethostname().encode()).hexdigest()[:8]}"  # locks may end at the machine
    for stale in home.glob(f"{ours}????????.tmp"):
        with _locked(stale) as dead:
            if dead:
                shutil.rmtree(stale, ignore_errors=True)
    folder = home / f"{ours}{secrets.token_hex(4)}"
    folder.mkdir()
    try:
        with _locked(folder):
            folder = folder.rename(folder.with_suffix(".tmp"))  # locked before others look at it
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Whether the folder could be locked, as a file system may know no locks."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # it is gone, or another's
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def unwritten(path: Path, error: OSError) -> MergelibError:
    """The error of a path that cannot be written, with its reason and mend."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in FULL:
        mend = "free some space, or write elsewhere"
    elif error.errno == errno.ENAMETOOLONG:
        mend = "give a shorter name"
    else:
        mend = "give a path in a folder that can be written to"
    return MergelibError(f"{path} cannot be written ({reason}): {mend}")


def _unnamed(folder: Path) -> int | None:
    """A descriptor of a new file without a name; None where there is no such thing."""
    flag = getattr(os, "O_TMPFILE", None)  # Linux
    if flag is None or not os.path.isdir("/proc/self/fd"):
        return None
    try:
        return os.open(folder, flag | os.O_RDWR, 0o644)
    except OSError:
        return None  # if more is wrong than that, the other way says what


def _without_name(path: Path, write: Callable[[Path], object], unnamed: int) -> None:
    held = f"/proc/self/fd/{unnamed}"
    hidden = _hidden(path)
    try:
        write(Path(held))
        os.fchmod(unnamed, 0o644)
        os.fsync(unnamed)
        try:  # with a descriptor given, the link that /proc shows is followed
            os.link(held, path, src_dir_fd=unnamed)
        except FileExistsError:
            os.link(held, hidden, src_dir_fd=unnamed)
            hidden.replace(path)
    finally:
        os.close(unnamed)
        hidden.unlink(missing_ok=True)


def _by_name(path: Path, write: Callable[[Path], object]) -> None:
    hidden = _hidden(path)
    try:
        hidden.touch(0o600)
        write(hidden)
        with hidden.open("rb+") as file:
            os.fsync(file.fileno())
        hidden.chmod(0o644)
        hidden.replace(path)
    finally:
        hidden.unlink(missing_ok=True)


def _hidden(path: Path) -> Path:
    """A free name beside `path`; short, as the name of `path` may be as long as can be."""
    return path.with_name(f".{secrets.token_hex(8)}.tmp")
