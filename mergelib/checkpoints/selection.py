"""Which tensors of models are merged or measured, and what becomes of the others: all said."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from mergelib.checkpoints.layouts import Arranged, beside_images
from mergelib.checkpoints.weights import Weights
from mergelib.core.errors import MergelibError

# Names of tensors that count or number something: of no model's training, the base's are kept.
COUNTERS = ("num_batches_tracked", "position_ids", "relative_position_index", "attn_mask")
# Beside an integer or 8-bit tensor, these say how its numbers are meant.
SCALES = ("SCB", "scales", "qzeros", "absmax", "weight_scale", "weight_scale_inv", "quant_map")
STATISTICS = ("running_mean", "running_var")
PROJECTIONS = ("proj", "text.text_projection")  # which a tower alone does not have


@dataclass(frozen=True)
class Choice:
    """What a user asks for: patterns of names, by `fnmatch`; and whether rows may be missing.

    `only` these are merged, `exclude`d ones are not: the merge has the base's, and what the base
    lacks is left out. `shared_rows`: tensors that differ in their first axis (a resized vocabulary)
    are merged over the rows that all have.
    """

    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    shared_rows: bool = False

    def takes(self, *names: str) -> bool:
        """Whether a tensor of these names, ours and the file's, is asked for."""
        return not matches(self.exclude, names) and (not self.only or matches(self.only, names))


@dataclass(frozen=True)
class Selection:
    """`taken`: names of the tensors that all models have, with how many rows of them (None: all).

    `notes`: what a user should know, a line each.
    """

    taken: Mapping[str, int | None]
    notes: tuple[str, ...]


def matches(patterns: Collection[str], names: Collection[str]) -> bool:
    """Whether any of the names matches any of the patterns."""
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def is_statistic(name: str) -> bool:
    """Whether a tensor holds statistics of activations, which are averaged, never extrapolated."""
    return name.rpartition(".")[2] in STATISTICS


def select(origin: Arranged, others: Sequence[Arranged], choice: Choice) -> Selection:
    """The tensors that a base and its models share, and what is done with each of the others.

    Raises MergelibError, naming tensor and file, for what cannot be merged and was not excluded:
    tensors that one lacks, other shapes, integers that differ, quantized and complex weights.
    """
    for weights in (origin, *others):
        _refuse_quantized(weights, choice)
    notes = [note for weights in (origin, *others) for note in weights.notes]
    taken: dict[str, int | None] = {}
    left: list[str] = []
    for name in origin.shapes:
        if not choice.takes(name, *origin.layout[name].names):
            left.append(name)
        elif name in origin.floating:
            if _all_have(name, origin, others, notes):
                taken[name] = _rows(name, origin, others, choice)
        elif origin.dtypes[name].is_complex:
            raise MergelibError(
                f"{origin.label}: tensor {name!r} is complex, which no method merges: leave it as "
                f"the base has it by --exclude '{name}'"
            )
        else:
            _check_integers(name, origin, others)
    _refuse_strangers(origin, others, choice)
    _check_patterns(origin, others, choice)
    if left:
        notes.append(f"as the base has them, by --only or --exclude: {_listed(left)}")
    taken = {name: rows for name, rows in taken.items() if 0 not in origin.shapes[name]}
    for name, rows in taken.items():
        if rows is not None:
            notes.append(f"{name}: the first {rows} rows, which all have; others as the base's")
    if not taken:
        raise MergelibError(
            f"{origin.label} holds no floating point tensor that is asked for and that all models "
            "have: check the files, and --only and --exclude"
        )
    return Selection(taken, tuple(notes))


def _all_have(name: str, origin: Arranged, others: Sequence[Arranged], notes: list[str]) -> bool:
    """Whether all models have a tensor; none of them needs to where a tower may do without it."""
    lacking = [other for other in others if name not in other.shapes]
    if not lacking:
        wrong = [other for other in others if name not in other.floating]
        if wrong:
            raise MergelibError(
                f"tensor {name!r} holds integers in one of {origin.label} and {wrong[0].label} and "
                "floating point numbers in the other: save both with one type"
            )
        return True
    if len(lacking) == len(others) and _dispensable(name, others):
        part = "text tower" if name.startswith("text.") else name
        note = f"no model has the base's {part}: as the base has it"
        if note not in notes:
            notes.append(note)
        return False
    raise MergelibError(
        f"{lacking[0].label} lacks tensor {name!r}, which {origin.label} has with shape "
        f"{origin.shapes[name]}: give models of one architecture, or leave it as the base has it "
        f"by --exclude '{name}'"
    )


def _dispensable(name: str, others: Sequence[Arranged]) -> bool:
    """A projection, a temperature, or a tensor of the text side, of which no model has any."""
    if name in PROJECTIONS or beside_images(name) and not name.startswith("text."):
        return True
    return name.startswith("text.") and not any(
        each.startswith("text.") for other in others for each in other.shapes
    )


def _rows(name: str, origin: Weights, others: Sequence[Weights], choice: Choice) -> int | None:
    """How many rows all have, None for all of them."""
    shape = origin.shapes[name]
    for other in others:
        theirs = other.shapes[name]
        if theirs != shape and not (choice.shared_rows and shape and theirs[1:] == shape[1:]):
            rows = theirs[1:] == shape[1:] and len(shape) == 2
            mend = " (--shared-rows merges the rows that all have)" if rows else ""
            raise MergelibError(
                f"tensor {name!r} has shape {theirs} in {other.label} but {shape} in "
                f"{origin.label}: give models of one architecture{mend}"
            )
    least = min([shape[:1], *(other.shapes[name][:1] for other in others)])
    most = max([shape[:1], *(other.shapes[name][:1] for other in others)])
    return None if least == most else least[0]


def _check_integers(name: str, origin: Weights, others: Sequence[Weights]) -> None:
    """Raise MergelibError if whole numbers that are no counter differ between base and models."""
    if name.rpartition(".")[2] in COUNTERS or origin.shapes[name] in ((), (1,)):
        return
    for other in others:
        if name not in other.shapes:
            continue
        if other.dtypes[name].is_floating_point:
            raise MergelibError(
                f"tensor {name!r} holds integers in one of {origin.label} and {other.label} and "
                "floating point numbers in the other: save both with one type"
            )
        if not _equal(origin.get(name), other.get(name)):
            raise MergelibError(
                f"tensor {name!r} holds whole numbers ({str(origin.dtypes[name])[6:]}) that differ "
                f"between {origin.label} and {other.label}, which no method merges: keep the "
                f"base's by --exclude '{name}'"
            )


def _equal(one: Tensor, two: Tensor) -> bool:
    same = one.dtype == two.dtype and one.shape == two.shape
    return same and torch.equal(*(t.contiguous().flatten().view(torch.uint8) for t in (one, two)))


def _refuse_quantized(weights: Arranged, choice: Choice) -> None:
    for name in _narrow(weights):
        module = name.rpartition(".")[0]
        beside = [
            s
            for s in SCALES
            if f"{module}.{s}" in weights.shapes or f"{name}.{s}" in weights.shapes
        ]
        whole = not weights.dtypes[name].is_floating_point
        if (beside or (whole and name.endswith("weight"))) and choice.takes(name):
            kind = str(weights.dtypes[name])[6:]
            with_it = f", beside it {beside[0]}" if beside else ""
            raise MergelibError(
                f"{weights.label} is quantized ({name} is {kind}{with_it}): merge the models that "
                "it was made from, and quantize the merge"
            )


def _narrow(weights: Weights) -> Iterator[str]:
    """Matrices of 8 bits and packed integers, which quantized weights are kept in."""
    for name, dtype in weights.dtypes.items():
        packed = dtype in (torch.int8, torch.uint8, torch.int32) and dtype != torch.bool
        eight = dtype.is_floating_point and dtype.itemsize == 1
        if (packed or eight) and len(weights.shapes[name]) >= 2:
            yield name


def _refuse_strangers(origin: Weights, others: Sequence[Arranged], choice: Choice) -> None:
    """Raise MergelibError for tensors that are asked for and that the base lacks."""
    for other in others:
        own = [n for n, parts in other.layout.items() if choice.takes(n, *parts.names)]
        own = [n for n in own if n not in origin.shapes]
        own = [n for n in own if n.rpartition(".")[2] not in COUNTERS]
        if own:
            raise MergelibError(
                f"{origin.label} lacks tensor {own[0]!r}, which {other.label} has with shape "
                f"{other.shapes[own[0]]}: give models of one architecture, or leave out what the "
                f"base lacks ({_listed(own)}) by --exclude"
            )


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest


def _check_patterns(origin: Arranged, others: Sequence[Arranged], choice: Choice) -> None:
    """Raise MergelibError for a pattern that fits no tensor of any checkpoint."""
    names = [{*weights.shapes, *weights.own.shapes} for weights in (origin, *others)]
    for pattern in (*choice.only, *choice.exclude):
        if not any(matches([pattern], each) for each in names):
            raise MergelibError(f"pattern {pattern!r} fits the name of no tensor: mend it")
