"""Checkpoints opened: a file of any format, or tensors that are in memory."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from mergelib.checkpoints.formats import open_file
from mergelib.checkpoints.layouts import image_tower
from mergelib.checkpoints.weights import Source, Weights, check_same, of_mapping
from mergelib.core.errors import MergelibError


@contextmanager
def opened(source: Source, label: str = "") -> Iterator[Weights]:
    """Open a checkpoint (or wrap a mapping) for reading its image tower tensor by tensor.

    Formats and names: `mergelib.checkpoints.formats`; `label` is what an error calls a mapping.
    Raises MergelibError, naming the file, if it is missing, truncated or of an unknown format.
    """
    if isinstance(source, Mapping):
        yield image_tower(of_mapping(source, label or "the given tensors"))
        return
    with open_file(source) as weights:
        yield weights


@contextmanager
def opened_models(base: Source, tuned: Sequence[Source]) -> Iterator[tuple[Weights, list[Weights]]]:
    """Open a base and T models of its architecture.

    Raises MergelibError for other names or shapes, no model, or a file that cannot be read.
    """
    if not tuned:
        raise MergelibError("no fine-tuned model is given: give at least one checkpoint")
    with ExitStack() as stack:
        origin = stack.enter_context(opened(base, "the base"))
        others = [stack.enter_context(opened(s, f"model {t}")) for t, s in enumerate(tuned)]
        for other in others:
            check_same(origin, other)
        if not origin.floating:
            raise MergelibError(f"{origin.label} holds no floating point tensor: check the file")
        yield origin, others
