"""What a notebook asks for: models measured, merged and evaluated, wherever they are.

A model is a path (formats: `mergelib.checkpoints.formats`), a state dict, or a `torch.nn.Module`.
Metrics of a whole CLIP are those of its image tower; merged is all of it.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from mergelib.checkpoints.reading import Source, opened
from mergelib.checkpoints.selection import Choice
from mergelib.core.devices import find_device
from mergelib.core.errors import MergelibError

if TYPE_CHECKING:  # what measuring, merging and evaluating ask for is imported where they do
    import pandas as pd

    from mergelib.forecasting.answer import Answer
    from mergelib.merging.weighting import Weight
    from mergelib.models.backbones import Backbone

Model = Source | nn.Module


def measure(
    base: Model,
    models: Mapping[str, Model] | Sequence[Path | str],
    metrics: Iterable[str] | None = None,
    edition: str = "corrected",
    cache: Path | str | None = None,
    device: str = "cpu",
    *,
    only: Sequence[str] = (),
    exclude: Sequence[str] = (),
    whole: bool = False,
) -> "pd.DataFrame":
    """The metrics of every pair of models that their weights give: a row a pair, a column a metric.

    `base` is the pretrained model of all. `models` are models by name, or paths, which are named by
    what tells them apart. `metrics` are names of `METRICS` (default: the published ones of
    categories task vector, effective rank and subspace); columns come in the registry's order.
    `edition` is "corrected" or "paper". `cache` is a folder that keeps what one more model needs,
    `device` where to compute (cpu, cuda, auto). Of a CLIP the image tower is measured, or the
    `whole`; `only` and `exclude` are patterns of tensors' names.
    Raises MergelibError for fewer than two models, other names or shapes than the base's, NaN, an
    unknown metric, edition or device, and a metric that wants data (activations, gradients).

    >>> import torch
    >>> import mergelib as ml
    >>> base = {"w": torch.zeros(2, 2)}
    >>> models = {"a": {"w": torch.eye(2)}, "b": {"w": torch.ones(2, 2)}}
    >>> names = ["task_vector_dot_product", "task_vector_magnitude_ratio"]
    >>> ml.measure(base, models, names).round(3)
      task_a task_b  task_vector_dot_product  task_vector_magnitude_ratio
    0      a      b                      2.0                        0.707
    """
    from mergelib.metrics.table import pairwise_of_checkpoints

    return pairwise_of_checkpoints(
        _weights(base),
        _by_name(models),
        metrics,
        edition,
        None if cache is None else Path(cache),
        find_device(device),
        Choice(tuple(only), tuple(exclude)),
        whole,
    )


def merge(
    base: Model,
    models: Sequence[Model],
    method: str = "tsv",
    out: Path | str | None = None,
    edition: str = "corrected",
    seed: int = 0,
    cache: Path | str | None = None,
    device: str | None = None,
    *,
    weights: "Sequence[Weight] | None" = None,
    normalize: bool | None = None,
    only: Sequence[str] = (),
    exclude: Sequence[str] = (),
    shared_rows: bool = False,
    canonicalize: bool = False,
    dtype: str | None = None,
    max_shard_size: int | str | None = None,
    **params: Any,
) -> Any:
    """Models merged into one by a method of `METHODS`: its state dict, or where it was written.

    All that the base holds comes back, under its names and in its types (or `dtype`). With `out` it
    is written there, all of it or nothing, as the name says: `.safetensors`, `.pt`, or a model
    folder (`mergelib.checkpoints.output.writing`; shards of `max_shard_size`, say "5GB"), with the
    recipe. `edition` sets the method's parameters: "corrected" (ours), "paper" (behind the
    published numbers) or "original" (of the method's authors); `params` stand above it. `seed` is
    of random methods, `cache` a folder of factors that spare tsv work, `device` cpu, cuda or auto.
    `weights` multiply the task vectors, a number a model or finer (`mergelib.merging.weighting`);
    with `normalize` (default: for averages) they are made 1 on average. `only` and `exclude` are
    patterns of tensors to merge, or to leave as the base's; `shared_rows` merges resized tensors
    over the rows that all have. What may surprise is told by `MergelibNote` warnings: a model of
    another base, an equal one, one whose heads or neurons were permuted or rescaled, which
    `canonicalize` merges as it is nearest to the base (its owner may not want it merged).
    Raises MergelibError for an unknown method, edition, parameter or device, no model, tensors that
    do not fit or cannot be merged, NaN, a file that cannot be read and one that cannot be written.

    >>> import torch
    >>> import mergelib as ml
    >>> base = {"w": torch.zeros(2, 2)}
    >>> models = [{"w": torch.eye(2)}, {"w": torch.ones(2, 2)}]
    >>> ml.merge(base, models, method="arithmetic", alpha=0.5)["w"]
    tensor([[1.0000, 0.5000],
            [0.5000, 1.0000]])
    """
    from mergelib.merging import job
    from mergelib.merging.recipe import asked

    if isinstance(models, (Mapping, str, Path, nn.Module)):
        raise MergelibError("the models must come as a list, even one alone: give [model]")
    chosen = {"only": list(only), "exclude": list(exclude), "shared_rows": shared_rows}
    chosen["canonicalize"] = canonicalize
    set_to = {"parameters": params, "edition": edition, "seed": seed, "dtype": dtype}
    paths = [job.path_of(model) for model in models]
    recipe = asked(job.path_of(base), paths, method, weights, normalize, **set_to, **chosen)
    sources = (_weights(base), [_weights(model) for model in models])
    return job.merge(recipe, sources, out, cache, device, max_shard_size)


def evaluate(
    model: Model,
    images: Tensor,
    labels: Tensor,
    head: Tensor,
    backbone: "Backbone | str | None" = None,
    batch_size: int = 0,
) -> float:
    """Top-1 accuracy, a fraction, of an image encoder under a frozen head.

    `images` are (N, 3, H, W) of the encoder's size: normalized, or uint8, which `backbone`
    normalizes. `labels` (N,) are
    the right rows of `head` (C, d); class scores are normalize(features) · headᵀ. A path or state
    dict is loaded into a copy of `backbone`'s image tower (`mergelib.models.backbones.load`, or its
    name there); a module is evaluated as it is, in eval mode and where it is, and left as it was.
    Raises MergelibError where a backbone is wanted and absent, or does not fit, and where images
    and labels differ in number.

    >>> import torch
    >>> import mergelib as ml
    >>> images = torch.eye(3).reshape(3, 1, 1, 3).expand(3, 3, 1, 3)  # one bright column each
    >>> head = torch.eye(3).repeat(1, 3)  # a class a column
    >>> ml.evaluate(torch.nn.Flatten(), images, torch.tensor([0, 1, 1]), head).__round__(3)
    0.667
    """
    from mergelib.metrics.encoder import evaluating
    from mergelib.models.accuracy import accuracy

    if isinstance(backbone, str):
        from mergelib.models.backbones import load

        backbone = load(backbone)
    if len(images) != len(labels) or not len(labels):
        raise MergelibError(f"{len(images)} images and {len(labels)} labels: give one a piece")
    visual = _encoder(model, backbone)
    first = next(visual.parameters(), None)
    on = images.device if first is None else first.device
    normalize = None if images.is_floating_point() else _known(backbone).normalize
    with evaluating(visual):
        return accuracy(
            visual, images.to(on), labels.to(on), head.to(on), batch_size, normalize=normalize
        )


def forecast(
    base: Model,
    models: Mapping[str, Model] | Sequence[Path | str],
    methods: str | Sequence[str] = "all",
    images: Mapping[str, Path | str] | None = None,
    labels: Mapping[str, Path | str] | None = None,
    heads: Mapping[str, Path | str] | None = None,
    classes: Mapping[str, Path | str] | None = None,
    known: Path | str | Mapping[str, Sequence[float]] | None = None,
    n: int = 20,
    seed: int = 0,
    backbone: str = "",
    cache: Path | str | None = None,
    report: Path | str | None = None,
    *,
    canonicalize: bool = False,
    progress: bool = False,
) -> "Answer":
    """Will these models merge: what every method leaves of each skill, how sure, which to take.

    Shown as a table; `as_json()` has the keys of `mergelib.forecasting.answer`. `models` are
    models by name, or paths; `methods` names of `METHODS`, or "all" that the bank of reference
    merges has. By the models' names: `images`, a folder (a folder a class, or flat) or .npz or
    .safetensors; `labels`, CSV files of file and label; `heads`, safetensors (C, d); `classes`,
    files of class names for zero-shot heads, or "folders". `known`: a table of model (or task),
    zero_shot, fine_tuned, or (zero_shot, fine_tuned) by name. `n` images a task are drawn by
    `seed`. `backbone` names the encoder where weights do not tell it, `cache` a folder that spares
    work of many pairs. `report`: an HTML file, the book's chapter on these models, which must be
    paths. Accuracies are shares of the fine-tuned models' own. A model that is the base, equals
    another, does not come from this base or was reparameterised (unless `canonicalize` undoes it)
    raises MergelibError before any merge; so does what does not fit.
    """
    from mergelib.forecasting.ask import Question
    from mergelib.forecasting.judging import answer

    asked = [methods] if isinstance(methods, str) else list(methods)
    question = Question(
        _weights(base),
        _by_name(models),
        tuple(asked),
        images,
        labels,
        heads,
        classes,
        known,
        n,
        seed,
        backbone,
        None if cache is None else Path(cache),
        canonicalize,
    )
    if report is None:
        return answer(question, progress)
    from mergelib.book.report import values_of, write_report

    values_of(question)  # what cannot be reported is said before the work
    write_report(question, found := answer(question, progress), Path(report))
    return found


def _by_name(models: "Mapping[str, Model] | Sequence[Path | str]") -> Mapping[str, Source]:
    """Models by name; paths are named by what tells them apart.

    Raises MergelibError for models in memory without names.
    """
    from mergelib.checkpoints.names import names_of_paths

    if isinstance(models, Mapping):
        return {name: _weights(model) for name, model in models.items()}
    if isinstance(models, str | Path) or not all(isinstance(m, str | Path) for m in models):
        raise MergelibError("give the models by name, {'a': model, …}, or a list of paths")
    paths = [Path(model) for model in models]
    return dict(zip(names_of_paths(paths), paths, strict=True))


def _weights(model: Model) -> Source:
    """A model as the library reads it: a path, or tensors by name."""
    return model.state_dict() if isinstance(model, nn.Module) else model


def _known(backbone: "Backbone | None") -> "Backbone":
    if backbone is None:
        raise MergelibError(
            "weights alone, and images of whole numbers, want a backbone: give its name, such as "
            "backbone='glyph-vit', or what mergelib.models.backbones.load returns"
        )
    return backbone


def _encoder(model: Model, backbone: "Backbone | None") -> nn.Module:
    """The image encoder of a module, or the backbone's with these weights."""
    if isinstance(model, nn.Module):
        inner = getattr(model, "visual", model)
        return inner if isinstance(inner, nn.Module) else model
    visual = copy.deepcopy(_known(backbone).model.visual)
    from mergelib.models.states import load_state

    with opened(model, "the given weights") as weights:
        load_state(visual, {name: weights.get(name) for name in weights.shapes}, weights.label)
    return visual
