"""Gradient checkpointing: a tower's blocks keep their inputs only, and are computed once more."""

import copy
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from mergelib.core.errors import MergelibError


def recompute_blocks(visual: nn.Module) -> None:
    """Change a tower so that its blocks are computed again on the way back; same names, same bits.

    A block computed again takes the weights that it had, which under `functional_call` are no
    longer the module's own by then. Raises MergelibError for a tower without blocks of a
    transformer.
    """
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", None)
    if blocks is None:
        raise MergelibError(
            f"{type(visual).__name__} has no blocks of a transformer to compute again: leave out "
            "finetune.checkpointing"
        )
    for block in blocks:
        block.forward = _twice(block)


def _twice(block: nn.Module) -> Any:
    plain = copy.copy(block)  # with the same parts, and the forward pass of its class

    def forward(*given: Any, **named: Any) -> Tensor:
        weights: dict[str, Tensor] = dict(block.named_parameters())

        def compute(*inputs: Any) -> Tensor:
            return functional_call(plain, weights, inputs, named)

        return checkpoint(compute, *given, use_reentrant=False, preserve_rng_state=False)

    return forward
