"""mergelib: can two fine-tuned models be merged? Metrics, merges and honest forecasts.

`import mergelib as ml` is quick: what a name needs is imported when it is used.

Ask: `ml.measure`, `ml.merge`, `ml.evaluate`, `ml.forecast`. Look up: `ml.METRICS`,
`ml.METHODS`, `ml.PREDICTORS`, `ml.TASKS`, `ml.RULES`. Add your own: `ml.metric`, `ml.method`,
`ml.predictor`, `ml.task`, `ml.rule`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mergelib.core.errors import MergelibError

if TYPE_CHECKING:
    from mergelib.face import evaluate, forecast, measure, merge
    from mergelib.merging.registry import METHODS, method
    from mergelib.metrics.registry import METRICS, metric
    from mergelib.models.rules import RULES, rule
    from mergelib.predict.predictors import PREDICTORS, predictor
    from mergelib.tasks.registry import TASKS, task

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "METRICS",
    "RULES",
    "PREDICTORS",
    "TASKS",
    "MergelibError",
    "evaluate",
    "forecast",
    "measure",
    "merge",
    "method",
    "metric",
    "rule",
    "predictor",
    "task",
]

_HOMES = {
    "mergelib.face": ("measure", "merge", "evaluate", "forecast"),
    "mergelib.metrics.registry": ("METRICS", "metric"),
    "mergelib.merging.registry": ("METHODS", "method"),
    "mergelib.predict.predictors": ("PREDICTORS", "predictor"),
    "mergelib.tasks.registry": ("TASKS", "task"),
    "mergelib.models.rules": ("RULES", "rule"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """A name of the face, imported when it is first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    if name == "PREDICTORS":
        import_module("mergelib.published.predictors")  # which registers the paper's own
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
