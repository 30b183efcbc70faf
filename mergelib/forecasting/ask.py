"""The question whether models will merge, from what a user has to the forecast's evidence."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
from tqdm import tqdm

from mergelib.checkpoints.reading import Source, View, views
from mergelib.checkpoints.selection import Choice
from mergelib.core.errors import MergelibError, tell
from mergelib.forecasting import heads as heads_of
from mergelib.forecasting import known as known_of
from mergelib.forecasting.encoders import Encoder, find_encoder
from mergelib.forecasting.evidence import Evidence, Known, Probe
from mergelib.forecasting.heads import Head
from mergelib.forecasting.probe import Side, pairs_of, prepare, probe
from mergelib.forecasting.words import FOLDERS
from mergelib.lineage.canonical import of_one_lineage
from mergelib.merging.registry import METHODS
from mergelib.metrics.table import pairwise_of_views
from mergelib.models.backbones import Backbone
from mergelib.tasks.images import Images, draw, find_images, pixels
from mergelib.tasks.words import Classes, read_classes

Named = Mapping[str, Path | str]


@dataclass(frozen=True)
class Question:
    """What a user gives.

    `models`, `images`, `labels`, `heads` and `classes` go by the models' names: checkpoints; where
    images of each model's task lie; CSV files of their labels; files of heads; files of class names
    or "folders". `known` is a table or (zero_shot, fine_tuned) by name. `n` images a task are drawn
    by `seed`, which is that of random methods too. `backbone` names the encoder where its weights
    do not tell it; `cache` is a folder that spares work when many pairs are asked for;
    `canonicalize` undoes reparameterisations.
    """

    base: Source
    models: Mapping[str, Source]
    methods: tuple[str, ...]
    images: Named | None = None
    labels: Named | None = None
    heads: Named | None = None
    classes: Named | None = None
    known: Path | str | Mapping[str, Sequence[float]] | None = None
    n: int = 20
    seed: int = 0
    backbone: str = ""
    cache: Path | None = None
    canonicalize: bool = False

    @property
    def names(self) -> list[str]:
        """The models' names."""
        return list(self.models)


@dataclass(frozen=True)
class Findings:
    """Evidence of every pair by the names of its models and, of more than two, of the whole set.

    `whole` are probes of the merge of all, a side a model, by method; `heads` whether every task
    has class scores; `labelled` whether all images count with their labels.
    """

    pairs: Mapping[tuple[str, str], Evidence]
    whole: Mapping[str, tuple[Probe, ...]]
    heads: bool
    labelled: bool
    encoder: str = ""


def check(question: Question) -> None:
    """Raise MergelibError for what names alone show to be wrong."""
    if len(question.models) < 2:
        raise MergelibError(f"{len(question.models)} model: a merge wants two or more")
    if not question.methods:
        raise MergelibError("no merging method is asked for: name one, or all")
    for method in question.methods:
        METHODS[method]
    for what in ("images", "labels", "heads", "classes"):
        given = getattr(question, what)
        strangers = [name for name in given or () if name not in question.models]
        if strangers:
            raise MergelibError(
                f"--{what} is of {strangers[0]!r}, which is no model; the models are "
                f"{', '.join(question.names)}"
            )
    if question.images is None:
        for what in ("labels", "heads", "classes"):
            if getattr(question, what):
                raise MergelibError(f"--{what} says something of images: give --images as well")
        return
    absent = [name for name in question.names if name not in question.images]
    if absent:
        raise MergelibError(
            f"{len(question.models)} models and images of {len(question.images)}: --images lacks "
            f"those of {absent[0]!r}"
        )


def gather(question: Question, progress: bool = False) -> Findings:
    """All evidence: known accuracies and probes of every merge; without either, weight metrics.

    What weights say of merges does not hold in another world (chapter 15), so they are asked where
    there is nothing else. Nothing is written, but to the cache. Raises MergelibError, naming what
    is wrong, before any merge where it can be seen before.
    """
    check(question)
    known = _known(question)
    found = {} if question.images is None else _images(question)
    base, models = _given(question)
    names = question.names
    pairs = pairs_of(len(names))
    metrics = [{}] * len(pairs) if known or found else _metrics(question, base, models)
    if not found:
        held = {(names[i], names[j]): _evidence(question, metrics, known, i, j) for i, j in pairs}
        return Findings(held, {}, False, False)
    encoder, sides = _sides(question, base, found)
    sets = [*pairs] if len(names) == 2 else [*pairs, tuple(range(len(names)))]
    steps = 1 + len(names) + len(sets) * len(question.methods)
    with tqdm(total=steps, unit="model", disable=None if progress else True) as bar:
        bench = prepare(base, models, encoder, sides, bar.update)
        probes = {
            members: probe(
                bench, members, question.methods, question.seed, question.cache, bar.update
            )
            for members in sets
        }
    held = {
        (names[i], names[j]): replace(
            _evidence(question, metrics, known, i, j),
            probes={method: (two[0], two[1]) for method, two in probes[i, j].items()},
        )
        for i, j in pairs
    }
    whole = probes[sets[-1]] if len(names) > 2 else {}
    scored = all(side.head is not None for side in sides)
    labelled = all(side.labels is not None for side in sides)
    return Findings(held, whole, scored, labelled, encoder.name)


def _given(question: Question) -> tuple[View, list[View]]:
    """Base and models (or mended ones) without classifiers, which no method merges.

    Raises MergelibError for a model that a merge with this base would ruin, with `canonicalize`
    unless it can be mended.
    """
    names, sources = question.names, [*question.models.values()]
    choice = Choice(exclude=heads_of.classifier_patterns(question.base, sources))
    base, models, found = views(question.base, sources, choice)
    tell(found.notes)
    models, wrong = of_one_lineage(base, models, question.canonicalize)
    if wrong:
        raise MergelibError("; ".join(f"model {names[each.model]}: {each}" for each in wrong))
    return base, models


def _known(question: Question) -> dict[str, Known]:
    if question.known is None:
        return {}
    if isinstance(question.known, Mapping):
        return known_of.of_mapping(question.known, question.names)
    return known_of.read_known(question.known, question.names)


def _metrics(question: Question, base: View, models: Sequence[View]) -> list[dict[str, float]]:
    """The weight metrics of every pair, in the order of `pairs_of`."""
    named = dict(zip(question.names, models, strict=True))
    table = pairwise_of_views(base, named, question.cache)
    return table.drop(columns=["task_a", "task_b"]).to_dict("records")


def _evidence(
    question: Question,
    metrics: Sequence[Mapping[str, float]],
    known: Mapping[str, Known],
    i: int,
    j: int,
) -> Evidence:
    at = pairs_of(len(question.models)).index((i, j))
    a, b = question.names[i], question.names[j]
    return Evidence(metrics[at], (known[a], known[b]) if known else None)


# ---- Images and heads ---------------------------------------------------------------------------


def _images(question: Question) -> dict[str, Images]:
    """The images of every task, whose number is known to do before anything is computed."""
    labels = question.labels or {}
    found = {
        name: find_images(path, labels.get(name)) for name, path in (question.images or {}).items()
    }
    for images in found.values():
        draw(images, question.n, question.seed)
    return found


def _sides(
    question: Question, base: View, found: Mapping[str, Images]
) -> tuple[Encoder, list[Side]]:
    """The encoder, and every task's images and head; images are read here."""
    own = {
        name: heads_of.of_classifier(question.base, model, f"model {name}")
        for name, model in question.models.items()
    }
    folders = [
        Path(source)
        for source in (question.base, *question.models.values())
        if isinstance(source, str | Path) and Path(source).is_dir()
    ]
    encoder = find_encoder(base, folders, question.backbone, any(own.values()))
    tower = cache(partial(heads_of.text_of, question.base, encoder.backbone))  # one for all tasks
    sides = []
    for name in question.names:
        head = _head(question, name, tower, found[name]) or own[name]
        images = found[name]
        if head is not None:
            images = _under(images, head)
        chosen = draw(images, question.n, question.seed)
        labels = None
        if images.labels is not None and head is not None:
            labels = torch.from_numpy(images.labels[chosen])
        sides.append(Side(name, pixels(images, chosen, encoder.transform), labels, head))
    return encoder, _alike(sides)


def _alike(sides: Sequence[Side]) -> list[Side]:
    """Heads and labels count where every task has them, since tasks are judged by one measure."""
    notes = []
    without = [side.name for side in sides if side.head is None]
    if without:
        notes.append(
            f"no class head of {', '.join(without)}: the forecast is from features alone; "
            "--classes or --heads give class scores, which tell more"
        )
        sides = [replace(side, head=None, labels=None) for side in sides]
    unlabelled = [side.name for side in sides if side.labels is None]
    if unlabelled and len(unlabelled) < len(sides):
        notes.append(f"no labels of {', '.join(unlabelled)}: those of other tasks are left out")
        sides = [replace(side, labels=None) for side in sides]
    tell(notes)
    return list(sides)


def _head(
    question: Question, name: str, tower: Callable[[], Backbone], images: Images
) -> Head | None:
    """The head that is asked for, of a file or of class names."""
    if question.heads and name in question.heads:
        return heads_of.of_file(question.heads[name])
    if not question.classes or name not in question.classes:
        return None
    given = question.classes[name]
    if str(given) != FOLDERS:
        return heads_of.of_classes(tower(), read_classes(given))
    if len(images.classes) < 2:
        raise MergelibError(
            f"{images.label} has no folders of two or more classes to name a head by: give a file "
            f"of class names, --classes {name}=FILE"
        )
    return heads_of.of_classes(tower(), Classes(images.classes))


def _under(images: Images, head: Head) -> Images:
    """Images whose labels count the head's classes.

    Raises MergelibError where names do not tell which class is which row.
    """
    if head.names or not images.classes:
        return images.under(head.names)
    if len(images.classes) != len(head.weight):
        raise MergelibError(
            f"{images.label} has {len(images.classes)} classes, its head {len(head.weight)} rows "
            "without names: give --classes, or labels that are rows of the head"
        )
    tell([f"{images.label}: the head's rows are taken for the classes in order of their names"])
    return images
