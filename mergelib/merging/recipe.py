"""A merge as data, read from YAML and written to it.

    base: vit-base
    models:
      - model: vit-cars
        weight: 0.4
      - vit-sun
    method: arithmetic
    parameters: {alpha: 0.5}

Further keys: edition, seed, normalize, dtype (to write in), only and exclude (patterns of the names
of tensors to merge, or not to), shared_rows, canonicalize. Weights, numbers or finer (`weighting`),
multiply the task vectors. Files with mergekit's keys (`merge_method`) are read too (`mergekit`). No
key is passed over in silence.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import yaml

from mergelib.core.errors import MergelibError
from mergelib.core.registry import unknown
from mergelib.core.yaml_files import parse_yaml
from mergelib.merging.mergekit import translated
from mergelib.merging.registry import METHODS, preset
from mergelib.merging.weighting import Weight, checked, weights_by_name

DTYPES = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
AVERAGES = ("weight_avg", "base_protecting", "dare", "ties")  # their weights are normalized


@dataclass(frozen=True)
class ModelSpec:
    """A fine-tuned model and how much of it goes in."""

    path: str
    weight: Weight = 1.0


@dataclass(frozen=True)
class Recipe:
    """One merge.

    `normalize`: the models' weights are made 1 on average, in every tensor. `canonicalize`: models
    that were reparameterised are merged as they are nearest to the base (`mergelib.lineage`).
    """

    base: str
    models: list[ModelSpec]
    method: str
    parameters: dict[str, Any] = field(default_factory=dict)
    edition: str = "corrected"
    seed: int = 0
    normalize: bool = False
    dtype: str | None = None
    only: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    shared_rows: bool = False
    canonicalize: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """The method's parameters: the edition's, and those that are given."""
        return {**preset(self.method, self.edition), **self.parameters}

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """The type to write in; None: that of the base."""
        return None if self.dtype is None else getattr(torch, self.dtype)

    @property
    def weighted(self) -> bool:
        """Whether a weight is other than 1."""
        return any(model.weight != 1 for model in self.models)


def asked(
    base: str,
    models: Sequence[str],
    method: str,
    weights: Sequence[Weight] | None = None,
    normalize: bool | None = None,
    **others: Any,
) -> Recipe:
    """The recipe of a call: without weights all are 1, and averages normalize those given.

    Raises MergelibError for another number of weights than of models.
    """
    shares = [1.0] * len(models) if weights is None else weights
    if len(shares) != len(models):
        raise MergelibError(f"{len(shares)} weights for {len(models)} models: give one a model")
    specs = [
        ModelSpec(path, checked(share, f"the weight of {path}"))
        for path, share in zip(models, shares, strict=True)
    ]
    even = weights is not None and (method in AVERAGES if normalize is None else normalize)
    return Recipe(base, specs, method, normalize=even, **others)


def read(path: Path | str) -> Recipe:
    """Read a recipe; a relative path that leads nowhere from its folder is the working folder's.

    Raises MergelibError, naming the file, if it is missing or no YAML, and the key that is unknown,
    missing, given twice or of a wrong value, or that asks of mergekit what we do not do.
    """
    path = Path(path)
    if not path.is_file():
        raise MergelibError(f"recipe {path} is missing: give the path of a YAML file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise MergelibError(f"{path} is no UTF-8 text: save it as UTF-8") from None
    return parse(text, path.parent, str(path))


def parse(text: str, folder: Path = Path(), where: str = "the recipe") -> Recipe:
    """Read a recipe's text, with paths relative to `folder`. Raises as `read` does."""
    raw = parse_yaml(text, where)
    if not isinstance(raw, Mapping):
        raise MergelibError(f"{where}: wants keys and values, got {type(raw).__name__}")
    try:
        return _recipe(translated(raw) if "merge_method" in raw else raw, folder)
    except MergelibError as error:
        raise MergelibError(f"{where}: {error}") from None


def to_yaml(recipe: Recipe) -> str:
    """The text of a recipe, from which `parse` makes the same one."""
    held = asdict(recipe)
    held["models"] = [{"model": each.path, "weight": each.weight} for each in recipe.models]
    kept = {key: value for key, value in held.items() if value not in (None, [], {})}
    return yaml.dump(kept, Dumper=_Plain, sort_keys=False, allow_unicode=True)


def weights_of(recipe: Recipe, names: Iterable[str]) -> dict[str, list[float]]:
    """What each model's task vector is multiplied by, in the recipe's order, by tensor.

    Raises MergelibError as `weighting.weights_by_name` does.
    """
    return weights_by_name([each.weight for each in recipe.models], names, recipe.normalize)


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True  # a weight that two models share is written twice


def _recipe(raw: Mapping[str, Any], folder: Path) -> Recipe:
    known = [each.name for each in fields(Recipe)]
    for key in raw:
        if key not in known:
            raise MergelibError(unknown("key", key, known))
    for key in ("base", "models", "method"):
        if raw.get(key) is None:
            raise MergelibError(f"key {key!r} is missing: add it")
    if not isinstance(raw["models"], list) or not raw["models"]:
        raise MergelibError("'models' must be a list of models")
    given = {key: value for key, value in raw.items() if value is not None}
    given["base"] = _path(given["base"], folder, "base")
    given["models"] = [_model(each, folder, f"models[{i}]") for i, each in enumerate(raw["models"])]
    given.setdefault("normalize", given["method"] in AVERAGES)
    _check(given)
    return Recipe(**given)


def _model(raw: Any, folder: Path, where: str) -> ModelSpec:
    entry = {"model": raw} if isinstance(raw, str) else raw
    if not isinstance(entry, Mapping) or not {"model"} <= set(entry) <= {"model", "weight"}:
        raise MergelibError(f"{where} must be a path, or have the keys model and weight")
    path = _path(entry["model"], folder, where)
    return ModelSpec(path, checked(entry.get("weight", 1.0), where))


def _path(raw: Any, folder: Path, where: str) -> str:
    if not isinstance(raw, str) or not raw:
        raise MergelibError(f"{where} must be a path, not {raw!r}")
    path = Path(raw).expanduser()
    return str(folder / path if (folder / path).exists() else path)


def _check(given: Mapping[str, Any]) -> None:
    """Raise MergelibError, naming the key, for a value that cannot be."""
    parameters = given.get("parameters", {})
    if not isinstance(given["method"], str) or not isinstance(parameters, Mapping):
        raise MergelibError("'method' must be a name, and 'parameters' keys and values")
    preset(given["method"], given.get("edition", "corrected"))
    METHODS[given["method"]].check(parameters)
    seed = given.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise MergelibError(f"'seed' must be a whole number, not {seed!r}")
    for key in ("normalize", "shared_rows", "canonicalize"):
        if not isinstance(given.get(key, False), bool):
            raise MergelibError(f"{key!r} must be true or false, not {given[key]!r}")
    if given.get("dtype") not in (None, *DTYPES):
        raise MergelibError(unknown("dtype", given["dtype"], DTYPES))
    for key in ("only", "exclude"):
        value = given.get(key, [])
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise MergelibError(
                f"{key!r} must be a list of patterns of tensors' names, not {value!r}"
            )
