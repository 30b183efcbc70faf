"""A merge as a recipe says, from checkpoints to what is written: checked first, then done."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from mergelib.checkpoints.output.companions import library
from mergelib.checkpoints.output.writing import is_folder, writer
from mergelib.checkpoints.reading import Source, opened
from mergelib.checkpoints.selection import Choice
from mergelib.core.devices import find_device
from mergelib.core.errors import MergelibError, tell
from mergelib.core.outputs import check_output
from mergelib.core.registry import unknown
from mergelib.core.store import write_atomic
from mergelib.lineage.canonical import of_one_lineage
from mergelib.merging import engine
from mergelib.merging.cache import cached_factors
from mergelib.merging.card import texts
from mergelib.merging.engine import Plan, Shares
from mergelib.merging.recipe import DTYPES, Recipe, to_yaml, weights_of
from mergelib.merging.registry import METHODS

UNNAMED = "in memory"  # a model that no path leads to: such a recipe is not written


def path_of(model: object) -> str:
    """The path of a model as a recipe has it."""
    return str(model) if isinstance(model, str | Path) else UNNAMED


def prepare(
    recipe: Recipe,
    out: Path | None = None,
    sources: tuple[Source, Sequence[Source]] | None = None,
    device: str | None = None,
) -> Plan:
    """Check all that can be checked before a merge, and tell what a user may not expect.

    `sources` are the base and the models themselves (none: the recipe's paths). Raises
    MergelibError for settings, checkpoints and places that will not do: an input is never written
    over, nor is a folder that holds files; nor can every reparameterisation be undone.
    """
    METHODS[recipe.method].check(recipe.settings)
    if recipe.dtype not in (None, *DTYPES):
        raise MergelibError(unknown("dtype", str(recipe.dtype), DTYPES))
    paths = [Path(recipe.base), *(Path(model.path) for model in recipe.models)]
    if out is not None:
        check_output(out, paths, folder=is_folder(out))
    base, models = sources or (paths[0], paths[1:])
    on = None if device is None else find_device(device)
    if on == "cuda" or (on == "cpu" and isinstance(base, Mapping)):
        with opened(base, "the base", whole=True) as held:
            base = {name: held.own.get(name).to(on) for name in held.own.shapes}
    choice = Choice(tuple(recipe.only), tuple(recipe.exclude), recipe.shared_rows)
    planned = engine.plan(base, models, choice, recipe.torch_dtype)
    tell(planned.notes)
    views, wrong = of_one_lineage(planned.base, planned.models, recipe.canonicalize)
    tell(str(each) for each in wrong)
    return replace(planned, models=tuple(views))


def tensors(
    recipe: Recipe, planned: Plan, cache: Path | None = None
) -> Iterator[tuple[str, Tensor]]:
    """The merged tensors as they are made; `cache` is a folder of factors, for tsv.

    Raises MergelibError as `engine.merge` and `weighting.weights_by_name` do.
    """
    factors = None
    if cache is not None and METHODS[recipe.method].factored:
        factors = cached_factors(cache, planned.base, planned.models)
    shares = _shares(recipe, planned) if recipe.weighted else None
    return engine.merged(planned, recipe.method, recipe.seed, factors, shares, **recipe.settings)


def _shares(recipe: Recipe, planned: Plan) -> Shares:
    """What every model's task vector is times; filters are of the names in the base's file."""
    own = {name: parts.names[0] for name, parts in planned.base.layout.items()}
    found = weights_of(recipe, own.values())
    return {name: found[theirs] for name, theirs in own.items()}


def write(
    recipe: Recipe,
    planned: Plan,
    found: Iterator[tuple[str, Tensor]],
    out: Path,
    max_shard_size: int | str | None = None,
    progress: bool = False,
) -> None:
    """Write a merge as its name says (`mergelib.checkpoints.output.writing`), all or nothing.

    A folder gets what its base's folder has beside the weights, a model card and the recipe; beside
    a file lies `<name>.recipe.yaml`. A recipe of models in memory is not written.
    """
    origin = planned.base.origin
    like = None if isinstance(origin, Mapping) or not origin.is_dir() else origin
    known = UNNAMED not in (recipe.base, *(model.path for model in recipe.models))
    folder, about = is_folder(out), {}
    if known and folder:
        about = texts(recipe, out.name, None if like is None else library(like))
    bar = tqdm(found, total=len(planned.spec), unit="tensor", disable=None if progress else True)
    with writer(out, planned.spec, like=like, max_shard_size=max_shard_size, texts=about) as put:
        for name, tensor in bar:
            put(name, tensor)
    if known and not folder:
        write_atomic(out.with_name(f"{out.stem}.recipe.yaml"), to_yaml(recipe).encode())


def merge(
    recipe: Recipe,
    sources: tuple[Source, Sequence[Source]] | None = None,
    out: Path | str | None = None,
    cache: Path | str | None = None,
    device: str | None = None,
    max_shard_size: int | str | None = None,
) -> Any:
    """The merged state dict, or with `out` the path that it was written to.

    Raises MergelibError as `prepare`, `tensors` and `write` do.
    """
    planned = prepare(recipe, None if out is None else Path(out), sources, device)
    found = tensors(recipe, planned, None if cache is None else Path(cache))
    if out is None:
        state = dict(found)
        return {name: state[name] for name in planned.spec}
    write(recipe, planned, found, Path(out), max_shard_size)
    return Path(out)
