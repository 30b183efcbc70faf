"""Weights put into a module, checked tensor by tensor."""

from pathlib import Path

import torch
from torch import Tensor, nn

from mergelib.core.errors import MergelibError


def load_state(module: nn.Module, state: dict[str, Tensor], path: Path | str) -> None:
    """Load a state dict into a module, in float32.

    Raises MergelibError naming the file and the first tensor that is missing, left over, of
    another shape, or not finite.
    """
    own = module.state_dict()
    for name in sorted(own.keys() | state.keys()):
        if name not in state or name not in own:
            side = "missing from" if name not in state else "left over in"
            raise MergelibError(
                f"{path}: tensor {name!r} is {side} the file; it belongs to another architecture, "
                f"give weights of {type(module).__name__}"
            )
        if own[name].shape != state[name].shape:
            raise MergelibError(
                f"{path}: tensor {name!r} has shape {tuple(state[name].shape)}, the model wants "
                f"{tuple(own[name].shape)}; give weights of the same architecture"
            )
        if not torch.isfinite(state[name]).all():
            raise MergelibError(f"{path}: tensor {name!r} holds NaN or infinity; train it again")
    module.load_state_dict({name: value.float() for name, value in state.items()})
