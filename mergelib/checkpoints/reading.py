"""Checkpoints opened: files, folders and state dicts, alone or as a base and its models."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from mergelib.checkpoints.adapters.applying import applied
from mergelib.checkpoints.adapters.files import is_adapter, is_adapter_folder, read_adapter
from mergelib.checkpoints.folders import open_folder, open_shards
from mergelib.checkpoints.formats import open_weights
from mergelib.checkpoints.layouts import BESIDE, Arranged, Layout, named, rearranged
from mergelib.checkpoints.selection import Choice, Selection, matches, select
from mergelib.checkpoints.weights import Weights, of_mapping
from mergelib.checkpoints.wrappers import like, plain
from mergelib.core.errors import MergelibError

TEXT_MATRICES = ("text.token_embedding.weight", "text.positional_embedding", "text.text_projection")


@dataclass(frozen=True)
class View:
    """A checkpoint as a merge or a metric sees it: some of its tensors, under given names."""

    origin: Path | Mapping[str, Tensor]
    label: str
    layout: Layout
    base: "View | None" = None  # of an adapter


Source = Path | str | Mapping[str, Tensor] | View  # a checkpoint, tensors, or a view of either


def raw(source: Source, label: str, stack: ExitStack, base: Weights | None = None) -> Weights:
    """A checkpoint under the names in its file, open as long as `stack`; `label` names a mapping.

    An adapter is put on its `base`. Raises MergelibError, naming the file, if it is missing,
    truncated or of an unknown format, and for an adapter without a base.
    """
    if isinstance(source, View):
        base = None if source.base is None else raw(source.base, source.base.label, stack)
        return raw(source.origin, source.label, stack, base)
    if isinstance(source, Mapping):
        return of_mapping(source, label or "the given tensors")
    path = Path(source)
    weights = None
    if path.name.endswith(".index.json") and path.is_file():
        weights = open_shards(path, stack)
    elif not path.is_dir():
        weights = open_weights(path, stack)
    elif not is_adapter_folder(path):
        weights = open_folder(path, stack)
    if weights is not None and not is_adapter(weights.shapes):
        return weights
    if base is None:
        raise MergelibError(
            f"{path} is an adapter, which is no model without its base: give it as one of the "
            "models, and the base as base"
        )
    return applied(read_adapter(path), base)


@contextmanager
def opened(source: Source, label: str = "", whole: bool = False) -> Iterator[Arranged]:
    """Open a checkpoint (or wrap a mapping) for reading tensor by tensor, under open_clip's names.

    Of a CLIP the image tower, or the `whole`; of other models all tensors; of a view what it shows.
    Raises MergelibError, naming the file, if it is missing, truncated or of an unknown format.
    """
    with ExitStack() as stack:
        weights = raw(source, label, stack)
        layout = source.layout if isinstance(source, View) else named(plain(weights), whole)
        yield rearranged(weights, layout)


def views(
    base: Source, tuned: Sequence[Source], choice: Choice | None = None, whole: bool = False
) -> tuple[View, list[View], Selection]:
    """A base and its models as views of the tensors that they share, under the same names.

    Of a CLIP the image tower, or the `whole`. Raises MergelibError, naming tensor and file, for no
    model and for what does not fit and was not excluded (`selection.select`).
    """
    if not tuned:
        raise MergelibError("no fine-tuned model is given: give at least one checkpoint")
    choice = choice or Choice()
    with ExitStack() as stack:
        held = raw(base, "the base", stack)
        origin = rearranged(held, named(plain(held), whole))
        models = [
            _model(raw(source, f"model {t}", stack, held), origin, choice, whole)
            for t, source in enumerate(tuned)
        ]
        found = select(origin, models, choice)
    first = _view(base, origin, found)
    shown = [_view(each, model, found, first) for each, model in zip(tuned, models, strict=True)]
    return first, shown, found


def _model(weights: Weights, origin: Arranged, choice: Choice, whole: bool) -> Arranged:
    """A model under the base's names, without what is excluded."""
    names = plain(weights)
    names = {n: own for n, own in names.items() if not matches(choice.exclude, (n, own))}
    names, note = like(names, origin.shapes, weights.label)
    layout = {
        name: parts
        for name, parts in named(names, whole).items()
        if name not in origin.shapes or choice.takes(name, *origin.layout[name].names)
    }
    if note:
        weights = replace(weights, notes=(*weights.notes, note))
    return rearranged(weights, layout)


def _view(source: Source, weights: Arranged, found: Selection, base: View | None = None) -> View:
    layout = {n: weights.layout[n]._replace(rows=rows) for n, rows in found.taken.items()}
    origin = source.origin if isinstance(source, View) else source
    origin = Path(origin) if isinstance(origin, str) else origin
    return View(origin, weights.label, layout, None if weights.own.low_rank is None else base)


@contextmanager
def opened_models(
    base: Source, tuned: Sequence[Source]
) -> Iterator[tuple[Arranged, list[Arranged]]]:
    """Open a base and T models of its architecture: the image towers, or what views show.

    Raises MergelibError as `views` does, and for a file that cannot be read.
    """
    if not all(isinstance(source, View) for source in (base, *tuned)):
        base, tuned, _ = views(base, tuned)
    with ExitStack() as stack:
        origin, *others = (stack.enter_context(opened(each)) for each in (base, *tuned))
        yield origin, others


def whole_clip(path: Path | str) -> dict[str, Tensor]:
    """All tensors of a CLIP (both towers) as an open_clip state dict.

    Raises MergelibError as `opened` does, or if a tower is absent.
    """
    with opened(path, whole=True) as weights:
        text = [name for name in weights.shapes if name.startswith("text.")]
        if not text or "class_embedding" not in weights.shapes:
            raise MergelibError(f"{path} is no CLIP: it lacks an image or a text tower")
        names = {n: n.removeprefix("text.") if n in text else f"visual.{n}" for n in weights.shapes}
        beside = [n for n, parts in weights.layout.items() if parts.names == (n,)]
        names = {n: theirs for n, theirs in names.items() if n not in beside}
        names |= {n: n for n in BESIDE if n in beside}
        return {theirs: weights.read(ours) for ours, theirs in names.items()}


def text_matrices(source: Source) -> int:
    """How many matrices of the text side, short of its transformer, lie beside the image tower.

    The published checkpoints keep three such, which fine-tuning of the image tower leaves as they
    were; the paper edition of the subspace metrics counts them.
    """
    with opened(source, whole=True) as weights:
        return len(set(TEXT_MATRICES).intersection(weights.shapes))
