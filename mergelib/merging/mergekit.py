"""Recipes with the keys of mergekit's YAML files, in our terms.

linear           Σ wt θt / Σ wt: weight_avg.
task_arithmetic  θ0 + λ Σ wt τt: arithmetic, alpha = λ; with `normalize` divided by Σ wt.
ties             for equal weights, which cancel under its `normalize`: ties, alpha = λ. Where
                 trimmed entries sum to exactly 0 it elects plus, ours the majority's sign.
dare_linear      θ0 + λ Σ wt mt τt / density: dare, drop_rate = 1 − density. The masks are our own
                 draws; newer versions of mergekit rescale to the norm that was lost instead.

λ and the density are 1 where they are not given, as there, whatever our defaults. Methods that it
has no name for, `tsv` say, are ours with our parameters.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergelib.core.errors import MergelibError
from mergelib.core.registry import unknown
from mergelib.merging.registry import METHODS, NUMBER

THEIRS = {
    "linear": "weight_avg",
    "task_arithmetic": "arithmetic",
    "ties": "ties",
    "dare_linear": "dare",
}
NORMALIZED = ("linear", "ties")  # by default
KEYS = ("merge_method", "base_model", "models", "parameters", "dtype", "out_dtype")
OURS = ("edition", "seed", "only", "exclude")  # keys that it lacks
PARAMETERS = {
    "linear": (),
    "task_arithmetic": ("lambda",),
    "ties": ("lambda",),
    "dare_linear": ("lambda", "rescale"),
}
MOOT = "int8_mask"  # how masks are stored there: the result is the same


def translated(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with our keys. Raises MergelibError, naming the key, for what we do not do."""
    _check_keys(raw)
    name, base = raw["merge_method"], raw.get("base_model")
    shared = _mapping(raw.get("parameters"), "parameters")
    models = [_model(entry, shared, i) for i, entry in enumerate(_list(raw.get("models")))]
    if name == "linear" and base is None and models:
        base = models[0]["model"]  # it cancels
    if name != "linear":
        models = [each for each in models if not _same(each["model"], base)]  # τ is 0
    if name in THEIRS:
        method = _method(name, shared, models)
    else:
        own = {k: v for k, v in shared.items() if k not in ("weight", "normalize")}
        method = {"method": name, "parameters": own}
        if "normalize" in shared:
            method["normalize"] = shared["normalize"]
    for each in models:
        density = each.pop("density", None)
        if density is not None and name not in ("ties", "dare_linear"):
            raise MergelibError(f"{name} takes no density: leave it out")
    out = {"base": base, "models": models, **method}
    dtype = raw.get("out_dtype") or raw.get("dtype")  # we compute in float64 whatever it says
    out |= {} if dtype is None else {"dtype": dtype}
    return out | {key: raw[key] for key in OURS if key in raw}


def _check_keys(raw: Mapping[str, Any]) -> None:
    if "slices" in raw:
        raise MergelibError("slices of layers cannot be merged: give whole models under 'models'")
    given = {key: value for key, value in raw.items() if value is not None}
    sources = given.pop("tokenizer_source", "base"), given.pop("tokenizer", {"source": "base"})
    if sources != ("base", {"source": "base"}):
        raise MergelibError(
            "the tokenizer is the base's and no other can be made: leave out tokenizer_source and "
            "tokenizer, or say tokenizer_source: base"
        )
    for key in given:
        if key not in (*KEYS, *OURS):
            raise MergelibError(unknown("key", key, (*KEYS, "tokenizer_source", *OURS)))
    name = raw["merge_method"]
    if not isinstance(name, str):
        raise MergelibError(f"merge_method must be a name, not {name!r}")
    if name not in THEIRS and name not in METHODS:
        raise MergelibError(unknown("merge_method", name, dict.fromkeys((*THEIRS, *METHODS))))


def _same(model: Any, base: Any) -> bool:
    return isinstance(model, str) and isinstance(base, str) and Path(model) == Path(base)


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping | None):
        raise MergelibError(f"{where} must be keys and values, not {value!r}")
    return {str(key): each for key, each in (value or {}).items() if key != MOOT}


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise MergelibError("'models' must be a list of models")
    return value


def _model(entry: Any, shared: Mapping[str, Any], position: int) -> dict[str, Any]:
    """One model with its weight and density, which `shared` may say for all."""
    where = f"models[{position}]"
    if not isinstance(entry, Mapping) or not {"model"} <= set(entry) <= {"model", "parameters"}:
        raise MergelibError(f"{where} must have the keys model and parameters, not {entry!r}")
    own = _mapping(entry.get("parameters"), f"{where}: parameters")
    for key in own:
        if key not in ("weight", "density"):
            raise MergelibError(f"{where}: {unknown('parameter', key, ('weight', 'density'))}")
    both = {key: shared[key] for key in ("weight", "density") if key in shared} | own
    return {"model": entry["model"], **both}


def _method(name: str, shared: Mapping[str, Any], models: list[dict[str, Any]]) -> dict[str, Any]:
    """Our method, its parameters and how weights count, for one of theirs."""
    known = ("weight", "density", "normalize", *PARAMETERS[name])
    for key in shared:
        if key not in known:
            raise MergelibError(f"{name}: {unknown('parameter', key, known)}")
    normalize, size = shared.get("normalize", name in NORMALIZED), shared.get("lambda", 1.0)
    if not isinstance(normalize, bool):
        raise MergelibError(f"normalize must be true or false, not {normalize!r}")
    if name in NORMALIZED and not normalize:
        raise MergelibError(f"{name} is supported with normalize: true alone")
    if shared.get("rescale", True) is not True:
        raise MergelibError("dare_linear is supported with rescale: true alone")
    if name in ("task_arithmetic", "dare_linear") and not NUMBER.accepts(size):
        raise MergelibError(f"lambda must be one number, not {size!r}")
    parameters: dict[str, Any] = {}
    if name == "task_arithmetic":  # our weights are normalized to 1 on average, not in sum
        parameters = {"alpha": size / len(models) if normalize and models else size}
    if name == "ties":
        _drop_equal_weights(models)
        parameters = {"density": _density(models), "alpha": size}
    if name == "dare_linear":
        rate = round(1 - _density(models), 12)
        parameters = {"drop_rate": rate, "alpha": size if normalize else size * len(models)}
    return {"method": THEIRS[name], "parameters": parameters, "normalize": normalize}


def _density(models: list[dict[str, Any]]) -> float:
    found = [each.get("density", 1.0) for each in models]
    first = found[0] if found else 1.0
    if not NUMBER.accepts(first) or any(each != first for each in found):
        raise MergelibError(f"density must be one number, the same for all models, not {found!r}")
    return first


def _drop_equal_weights(models: list[dict[str, Any]]) -> None:
    found = [each.pop("weight", 1.0) for each in models]
    first = found[0] if found else 1.0
    if not NUMBER.accepts(first) or first <= 0 or any(each != first for each in found):
        raise MergelibError(
            f"ties is supported with equal weights alone, not {found!r}: leave them out, or use "
            "our own keys, method: ties, under which weights multiply the task vectors"
        )
