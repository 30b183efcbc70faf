"""Will these models merge? What is left of every skill: from weights, accuracies, few images.

The package has the name of the face's function, `mergelib.forecast(base, models, …)`, and once it
is imported it stands in that function's place: called, it is that function.
"""

import sys
from importlib import import_module
from inspect import Signature, signature
from types import ModuleType
from typing import Any


class _Called(ModuleType):
    def __call__(self, *args: Any, **named: Any) -> Any:
        return import_module("mergelib.face").forecast(*args, **named)

    @property
    def __signature__(self) -> Signature:
        return signature(import_module("mergelib.face").forecast)


sys.modules[__name__].__class__ = _Called
