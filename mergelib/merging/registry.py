"""The catalogue of merging methods: a row each, with its parameters and their three presets."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mergelib.core.errors import MergelibError
from mergelib.core.registry import Registry, unknown
from mergelib.merging.layer import Layer

Function = Callable[..., Tensor | Iterator[tuple[Layer, Tensor]]]
EDITIONS = ("corrected", "paper", "original")


@dataclass(frozen=True)
class Parameter:
    """What a method accepts for one parameter, in words and as a test."""

    text: str
    accepts: Callable[[Any], bool]

    def __repr__(self) -> str:
        return self.text


def _is_number(value: Any) -> bool:
    # bool is an int in Python, but `alpha=True` is a slip, not a number.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


NUMBER = Parameter("a finite number", _is_number)
FRACTION = Parameter("a number in [0, 1]", lambda v: _is_number(v) and 0 <= v <= 1)
RATE = Parameter("a number in [0, 1)", lambda v: _is_number(v) and 0 <= v < 1)
FLAG = Parameter("true or false", lambda v: isinstance(v, bool))
COUNT_OR_NONE = Parameter(
    "a whole number of 0 or more, or none (null)",
    lambda v: v is None or (isinstance(v, int) and not isinstance(v, bool) and v >= 0),
)
WEIGHTS_OR_NONE = Parameter(
    "a list of numbers of 0 or more, not all 0, or none (null)",
    lambda v: (
        v is None
        or (isinstance(v, (list, tuple)) and all(_is_number(w) and w >= 0 for w in v) and any(v))
    ),
)


@dataclass(frozen=True)
class Method:
    """One merging method.

    `function(layer, **params)` maps the T task vectors of one tensor (a `mergelib.merging.layer`)
    to the merged task vector, of its shape, coefficient applied; or it yields each of
    `layer.blocks()` with its own, so that a large tensor is never whole in memory (if a block comes
    again, the last one counts). A `random` method
    takes `seed` as well; a `factored` one is spared work by kept factors. Where a method has one,
    `survey(layer, **params)` is summed over all tensors first, and the function takes the sum as
    `surveyed`. `corrected`, `paper` and `original` are the parameters of the editions (`preset`).
    """

    name: str
    parameters: Mapping[str, Parameter]
    corrected: Mapping[str, Any]
    paper: Mapping[str, Any]
    original: Mapping[str, Any]
    random: bool
    reference: str
    function: Function
    survey: Callable[..., Tensor] | None = None
    factored: bool = False

    def blocks(self, layer: Layer, **params: Any) -> Iterator[tuple[Layer, Tensor]]:
        """The blocks that the method works on, or the layer, each with its merged task vector."""
        found = self.function(layer, **params)
        if isinstance(found, Tensor):
            yield layer, found
        else:
            yield from found

    def check(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The corrected edition's parameters overridden by `params`.

        Raises MergelibError for an unknown parameter or a value that is not accepted.
        """
        for name, value in params.items():
            if name not in self.parameters:
                if not self.parameters:
                    raise MergelibError(f"{self.name} takes no parameters: leave out {name!r}")
                raise MergelibError(unknown(f"{self.name} parameter", name, self.parameters))
            if not self.parameters[name].accepts(value):
                raise MergelibError(
                    f"{self.name}: parameter {name!r} must be {self.parameters[name]}, "
                    f"not {value!r}"
                )
        return {**self.corrected, **params}


METHODS: Registry[Method] = Registry("merging method", group="mergelib.methods")


def method(
    name: str,
    *,
    reference: str = "",
    parameters: Mapping[str, Parameter] | None = None,
    corrected: Mapping[str, Any] | None = None,
    paper: Mapping[str, Any] | None = None,
    original: Mapping[str, Any] | None = None,
    random: bool = False,
    factored: bool = False,
    survey: Callable[..., Tensor] | None = None,
) -> Callable[[Function], Function]:
    """Register a function f(layer, **params) -> task vector under a name; see `Method`.

    `paper` and `original` hold what differs from `corrected`. Without `parameters` they are those
    that the function itself gives a default (a number or a flag is checked to be one). Raises
    MergelibError if another module has registered the name.
    """

    def register(function: Function) -> Function:
        own = _defaults(function) if parameters is None else {}
        ours = {**own, **(corrected or {})}
        METHODS.add(
            Method(
                name=name,
                parameters={n: _like(v) for n, v in own.items()} | dict(parameters or {}),
                corrected=ours,
                paper={**ours, **(paper or {})},
                original={**ours, **(original or {})},
                random=random,
                reference=reference,
                function=function,
                survey=survey,
                factored=factored,
            )
        )
        return function

    return register


def _defaults(function: Function) -> dict[str, Any]:
    """The parameters that have a default, after the layer."""
    _, *rest = inspect.signature(function).parameters.values()
    return {each.name: each.default for each in rest if each.default is not each.empty}


def _like(value: Any) -> Parameter:
    """What is accepted where this is the default."""
    if isinstance(value, bool):
        return FLAG
    return NUMBER if _is_number(value) else Parameter("anything", lambda given: True)


def preset(name: str, edition: str = "corrected") -> dict[str, Any]:
    """The parameters of a method in one edition.

    `corrected`: this library's defaults; `paper`: the settings behind the mergeability study's
    released numbers (arXiv 2601.22285), its choices kept, flaws included; `original`: those of the
    paper that proposed the method. Raises MergelibError for an unknown method or edition.
    """
    row = METHODS[name]
    if edition not in EDITIONS:
        raise MergelibError(unknown("edition", edition, EDITIONS))
    return dict(getattr(row, edition))
