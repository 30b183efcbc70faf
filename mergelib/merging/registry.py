"""The catalogue of merging methods: a row each, with its parameters and their three presets."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mergelib.core.errors import MergelibError
from mergelib.core.registry import Registry, unknown

EDITIONS = {"corrected": "defaults", "paper": "released", "original": "original"}


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
    to the merged task vector, of its shape, coefficient applied. A `random` method takes
    `seed` as well; a `factored` one is spared work by kept factors. `survey(layer, **params)`,
    where a method has one, is summed over all tensors first, and the function takes the sum as
    `surveyed`.
    """

    name: str
    parameters: Mapping[str, Parameter]
    defaults: Mapping[str, Any]
    released: Mapping[str, Any]
    original: Mapping[str, Any]
    random: bool
    reference: str
    function: Callable[..., Tensor]
    survey: Callable[..., Tensor] | None = None
    factored: bool = False

    def check(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The defaults overridden by `params`.

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
        return {**self.defaults, **params}


METHODS: Registry[Method] = Registry("merging method")


def method(
    name: str,
    *,
    reference: str,
    parameters: Mapping[str, Parameter] | None = None,
    defaults: Mapping[str, Any] | None = None,
    released: Mapping[str, Any] | None = None,
    original: Mapping[str, Any] | None = None,
    random: bool = False,
    factored: bool = False,
    survey: Callable[..., Tensor] | None = None,
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register a function; `released` and `original` hold what differs from `defaults`."""
    ours = dict(defaults or {})

    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        METHODS.add(
            Method(
                name=name,
                parameters=dict(parameters or {}),
                defaults=ours,
                released={**ours, **(released or {})},
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


def preset(name: str, edition: str = "corrected") -> dict[str, Any]:
    """The parameters of a method in one edition.

    `corrected`: this library's defaults; `paper`: the settings behind the mergeability study's
    released numbers (arXiv 2601.22285), its choices kept, flaws included; `original`: those of the
    paper that proposed the method. Raises MergelibError for an unknown method or edition.
    """
    row = METHODS[name]
    if edition not in EDITIONS:
        raise MergelibError(unknown("edition", edition, EDITIONS))
    return dict(getattr(row, EDITIONS[edition]))
