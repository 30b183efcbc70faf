"""What training scripts wrap around a state dict: entries that hold it, prefixes of its names."""

from collections import Counter
from collections.abc import Collection, Mapping
from itertools import accumulate
from typing import Any

from torch import Tensor

from mergelib.checkpoints.layouts import layout_of
from mergelib.checkpoints.weights import Weights
from mergelib.core.errors import MergelibError

# Entries of training checkpoints that hold the weights, the first that is there; then averages.
ENTRIES = (
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "net",
    "network",
    "weights",
    "params",
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "params_ema",
)
# Parts of names that wrappers put in, at any place.
INSERTED = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
PARALLEL = "module."  # of a model that was trained on several devices


def state_dict(held: Any, label: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of a state dict, bare or in an entry of a training checkpoint; and a note.

    Raises MergelibError, naming the entry, for what is no state dict.
    """
    mend = "save the state dict alone, torch.save(model.state_dict(), path)"
    if not isinstance(held, Mapping):
        raise MergelibError(f"{label} holds a {type(held).__name__}, no state dict: {mend}")
    note: tuple[str, ...] = ()
    if not any(isinstance(value, Tensor) for value in held.values()):
        there = [e for e in ENTRIES if isinstance(held.get(e), Mapping) and _of_tensors(held[e])]
        if there:
            if others := ", ".join(map(repr, there[1:])):
                note = (f"{label}: read from its entry {there[0]!r}; beside it are {others}",)
            held = held[there[0]]
    for name, value in held.items():
        if not isinstance(value, Tensor) or not isinstance(name, str):
            raise MergelibError(f"{label}: {name!r} is a {type(value).__name__}, no tensor: {mend}")
    return dict(held), note


def _of_tensors(held: Mapping) -> bool:
    return any(isinstance(value, Tensor) for value in held.values())


def plain(weights: Weights) -> dict[str, str]:
    """A checkpoint's names, without what compiling and training on several devices put into all.

    Plain names with those in the file. Raises MergelibError if two become one.
    """
    names = {name: _without(name) for name in weights.shapes}
    while names and all(name.startswith(PARALLEL) for name in names.values()):
        names = {old: _without(name.removeprefix(PARALLEL)) for old, name in names.items()}
    back = {new: old for old, new in names.items()}
    if len(back) < len(names):
        twice = next(new for old, new in names.items() if back[new] != old)
        raise MergelibError(f"{weights.label} holds {twice!r} twice: --exclude '{back[twice]}'")
    return back


def _without(name: str) -> str:
    for part in INSERTED:
        name = name.replace(part, "")
    return name


def like(
    names: Mapping[str, str], wanted: Collection[str], label: str
) -> tuple[dict[str, str], str]:
    """Names with the prefix taken off, or put on, that tells them from those wanted; and a note.

    `names` as `plain` gives them, `wanted` as `layouts.named` does. What brings most of them
    counts; no note where nothing is changed. Raises MergelibError where two prefixes do equally
    well (a model beside its moving average).
    """
    wanted = set(wanted)
    tried = {("", ""): _found(names, "", "", wanted)}
    if tried["", ""] == wanted:
        return dict(names), ""
    tried |= {(off, ""): _found(names, off, "", wanted) for off in _starts(names)}
    tried |= {("", on): _found(names, "", on, wanted) for on in _starts(wanted, depth=1)}
    most = max(map(len, tried.values()))
    best = [fix for fix, there in tried.items() if len(there) == most]
    if best[0] == ("", ""):
        return dict(names), ""
    if len(best) > 1:
        first, second = (off or on for off, on in best[:2])
        raise MergelibError(
            f"{label} holds the model under {first!r} and under {second!r}: --exclude '{second}*' "
            "or the other"
        )
    off, on = best[0]
    said = f"prefix {off!r} taken off" if off else f"prefix {on!r} put on"
    changed = {on + name.removeprefix(off): own for name, own in names.items()}
    return changed, f"{label}: {said} the names of its tensors"


def _found(names: Collection[str], off: str, on: str, wanted: Collection[str]) -> set[str]:
    """The wanted names that are there with one prefix taken off or another put on."""
    inside = [on + name.removeprefix(off) for name in names if name.startswith(off)]
    return set(layout_of(inside) or inside) & set(wanted)


def _starts(names: Collection[str], depth: int = 4) -> list[str]:
    """The dotted starts that a quarter of the names or more have, short ones first."""
    counts = Counter(
        start
        for name in names
        for start in list(accumulate(name.split(".")[:-1], "{}.{}".format))[:depth]
    )
    often = [f"{start}." for start, count in counts.items() if 4 * count >= len(names)]
    return sorted(often, key=lambda start: (start.count("."), start))
