"""The pretrained image encoder that task vectors are taken from."""

from pathlib import Path

from mergelib.core.store import save_tensors
from mergelib.pipeline.keys import path
from mergelib.pipeline.loaded import backbone
from mergelib.pipeline.params import Run


def make(store: Path, run: Run) -> Path:
    """Store the pretrained image encoder."""
    file = path(store, run, "base")
    if not file.is_file():
        save_tensors(file, backbone(run).visual_state())
    return file
