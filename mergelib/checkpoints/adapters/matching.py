"""Names of one model found among those of another that only a prefix, or a wrapper, sets apart."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from mergelib.core.errors import MergelibError

WRAPPER = "vision_model."  # of a vision tower: transformers 4 writes it where 5 may not


@dataclass(frozen=True)
class Matched:
    """The base's name for every name asked for, and what had to be done to find them."""

    names: dict[str, str]
    notes: tuple[str, ...] = ()


def matched(
    wanted: Collection[str], base: Iterable[str], label: str, base_label: str, flat: bool = False
) -> Matched:
    """The base's name for every wanted tensor name: the same one, or all of them differ by one
    prefix that either side lacks, or that and the wrapper `vision_model.`.

    A wanted `x.weight` may be `x.in_proj_weight`, of a multi-head attention. `flat` names have
    underscores for dots, as kohya's. Raises MergelibError, naming the tensor, for one that the base
    lacks or that may be several.
    """
    held = list(base)
    if not wanted:
        return Matched({})
    dot = "_" if flat else "."
    for form in (_flattened,) if flat else (str, _unwrapped):
        forms = _by_form(held, form)
        if found := _shifted({form(name) for name in wanted}, forms, dot, label, base_label):
            passed = f"{label}: the wrapper {WRAPPER!r} is passed over in names"
            notes = (*found.notes, passed) if form is _unwrapped else found.notes
            return Matched({name: found.names[form(name)] for name in wanted}, notes)
    raise MergelibError(_lacking(wanted, held, label, base_label, flat))


def _flattened(name: str) -> str:
    return name.replace(".", "_")


def _unwrapped(name: str) -> str:
    return name.replace(WRAPPER, "")


def _by_form(names: Iterable[str], form: Callable[[str], str]) -> dict[str, list[str]]:
    held: dict[str, list[str]] = {}
    for name in names:
        held.setdefault(form(name), []).append(name)
    return held


def _shifts(wanted: str, forms: Iterable[str], dot: str) -> list[tuple[str, str]]:
    """The prefixes to take off and to put before a name that make it one of the base's."""
    found = {("", "")}
    for name in (wanted, _in_projection(wanted, dot)):
        for form in forms:
            if form.endswith(dot + name):
                found.add(("", form.removesuffix(name)))
            elif name.endswith(dot + form) and dot in form:  # a module's, not `weight` alone
                found.add((name.removesuffix(form), ""))
    return sorted(found)


def _in_projection(name: str, dot: str) -> str:
    """The first matrix of torch's multi-head attention, which is a parameter of the module."""
    return f"{name.removesuffix(f'{dot}weight')}{dot}in_proj_weight"


def _shifted(
    wanted: Collection[str], forms: dict[str, list[str]], dot: str, label: str, base_label: str
) -> Matched | None:
    """All wanted names after one shift; None if no shift finds all of them."""
    fits = {}
    for off, on in _shifts(min(wanted), forms, dot):
        names = {name: _lookup(name, off, on, forms, dot) for name in wanted}
        if all(names.values()):
            fits[off, on] = {name: each for name, each in names.items() if each}
    if not fits:
        return None
    shift = ("", "") if ("", "") in fits else min(fits)
    ways = [on or f"without {off}" for off, on in fits if (off, on) != ("", "")]
    if len(fits) > 1 and shift != ("", ""):
        raise MergelibError(
            f"{label}: its modules fit {base_label} in several ways (prefix {', '.join(ways)}): "
            "give the part of the base that it was trained on"
        )
    for name, each in fits[shift].items():
        if len(each) > 1:
            raise MergelibError(
                f"{label}: {name!r} may be {' or '.join(map(repr, each))} of {base_label}: save "
                "the adapter with the modules' own names"
            )
    notes = []
    if shift[1]:
        notes.append(f"{label}: its names lack the base's prefix {shift[1]!r}")
    elif shift[0]:
        notes.append(f"{label}: the prefix {shift[0]!r}, which the base lacks, is taken off")
    elif ways:
        notes.append(f"{label}: its names are the base's own; prefix {', '.join(ways)} fits too")
    return Matched({name: each[0] for name, each in fits[shift].items()}, tuple(notes))


def _lookup(
    name: str, off: str, on: str, forms: dict[str, list[str]], dot: str
) -> list[str] | None:
    if not name.startswith(off):
        return None
    here = on + name.removeprefix(off)
    return forms.get(here) or forms.get(_in_projection(here, dot))


def _lacking(
    wanted: Collection[str], held: Collection[str], label: str, base_label: str, flat: bool
) -> str:
    """What to say of names that no one prefix finds: the first that the base lacks."""
    forms = _by_form(held, _flattened if flat else _unwrapped)
    dot = "_" if flat else "."
    names = sorted(wanted if flat else map(_unwrapped, wanted))
    shifts = {shift for name in names for shift in _shifts(name, forms, dot)}

    def missing(shift: tuple[str, str]) -> list[str]:
        return [name for name in names if not _lookup(name, *shift, forms, dot)]

    worst = min((missing(shift) for shift in sorted(shifts)), key=len)
    some = f", and {len(worst) - 1} more" if len(worst) > 1 else ""
    return (
        f"{label} changes {worst[0]!r}, which {base_label} lacks{some}: give the base that the "
        "adapter was trained on, with its head if that was trained too"
    )
