"""An adapter's folder written as PEFT reads it, all of it or nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mergelib.checkpoints.adapters.files import CONFIG, WEIGHTS
from mergelib.core.atomic import temporary_folder, unwritten
from mergelib.core.errors import MergelibError
from mergelib.core.store import save_tensors, write_json


def check_free(folder: Path) -> None:
    """Raise MergelibError if something lies there already."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise MergelibError(f"{folder} is there already: give another one, or remove it")


def write_adapter(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write a temporary folder beside it, which takes its name at the end.

    Raises MergelibError if something lies there, or if it cannot be written.
    """
    check_free(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder.parent) as temporary:
            save_tensors(temporary / WEIGHTS[0], tensors, {"format": "pt"})
            write_json(temporary / CONFIG, dict(config))
            temporary.replace(folder)
    except OSError as error:
        raise unwritten(folder, error) from None
