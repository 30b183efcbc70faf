"""Where to compute: a device by name."""

import torch

from mergelib.core.errors import MergelibError
from mergelib.core.registry import unknown

DEVICES = ("auto", "cpu", "cuda")


def find_device(name: str) -> str:
    """`cpu` or `cuda`; `auto` takes a GPU where there is one.

    Raises MergelibError for an unknown name, and if `cuda` is asked for and absent.
    """
    if name not in DEVICES:
        raise MergelibError(unknown("device", name, DEVICES))
    if name == "cuda" and not torch.cuda.is_available():
        raise MergelibError("device: cuda was asked for, but torch sees no GPU: give auto or cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
