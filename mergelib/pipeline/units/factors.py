"""The factors that the merges of one model share."""

from pathlib import Path

from mergelib.merging.cache import write_factors
from mergelib.pipeline.keys import path
from mergelib.pipeline.loaded import one_thread
from mergelib.pipeline.params import Run


def make(store: Path, run: Run, task: str) -> Path:
    """Store the factors of a task's model."""
    file = path(store, run, "factors", task)
    if not file.is_file():
        with one_thread():
            write_factors(file, path(store, run, "base"), path(store, run, "tuned", task))
    return file
