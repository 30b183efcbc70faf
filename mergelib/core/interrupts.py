"""Ctrl-C and SIGTERM: one line and the right exit status, whatever is being done just then."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STATUS = 128  # and the signal's number, as shells have it


class Interrupted(KeyboardInterrupt):
    """A signal that asks to stop came."""


class Signals:
    """The signals of the process, from now on: `line` is said, and work is unwound and left."""

    def __init__(self, line: str) -> None:
        self.line = line
        self.status = 0  # once a signal came, the exit status that it asks for
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    def leave(self) -> None:
        """Let signals end the process at once, without a word: its work is done."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.status = STATUS + number
        if _importing(frame):
            # An import turns an interrupt into other errors, or swallows it; nothing is written
            # yet, so that there is nothing to unwind.
            os.write(2, f"{self.line}\n".encode())
            os._exit(self.status)
        raise Interrupted


def exit_on_interrupt() -> None:
    """In a worker process: end at a Ctrl-C without a traceback, which its parent speaks of."""
    signal.signal(signal.SIGINT, lambda number, frame: sys.exit(STATUS + number))


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


@contextmanager
def for_us_alone() -> Iterator[None]:
    """Processes that are started inside never see a Ctrl-C: theirs is to be ended by us.

    One that comes meanwhile waits until the end.
    """
    # Ignored signals stay so in children; blocked ones wait, which no child need know.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    ours = threading.current_thread() is threading.main_thread()  # others may set no handler
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if ours else None
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
