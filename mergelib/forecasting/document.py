"""A fitted forecaster as a JSON document, and back."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from mergelib.core.documents import read_json
from mergelib.core.errors import MergelibError
from mergelib.core.store import write_atomic
from mergelib.forecasting.calibration import KINDS, Calibration
from mergelib.forecasting.forecaster import Forecaster, Level, levels
from mergelib.forecasting.intervals import Errors
from mergelib.forecasting.moments import Moments


def to_document(fitted: Forecaster, meta: dict[str, Any]) -> dict[str, Any]:
    """Everything that a fitted forecaster predicts by, and what it was fitted on (`meta`)."""
    held = fitted.moments_
    lower = np.tril_indices(len(held.names) + 2)
    return {
        "meta": meta,
        "strength": fitted.strength,
        "sharing": fitted.sharing,
        "methods": list(fitted.methods_),
        "names": list(held.names),
        "range": fitted.range_.tolist(),
        "sizes": held.sizes.tolist(),
        # E[z z'] at every size, below and on the diagonal
        "products": [[m[lower].tolist() for m in held.at(n)[0]] for n in held.sizes],
        "calibration": {
            _name(level): _calibration(x, fitted.beyond_[level])
            for level, x in fitted.calibration_.items()
        },
    }


def from_document(document: dict[str, Any]) -> Forecaster:
    """The forecaster that `to_document` wrote. Raises KeyError for a part that is not there."""
    fitted = Forecaster(document["strength"], document["sharing"])
    names = tuple(document["names"])
    products = _symmetric(np.array(document["products"]), len(names) + 2)
    sizes = np.array(document["sizes"])
    fitted.moments_ = Moments(names, sizes, products[None])
    fitted.methods_ = tuple(document["methods"])
    fitted.range_ = np.array(document["range"])
    fitted.calibration_, fitted.beyond_ = {}, {}
    for level in levels():
        held = document["calibration"][_name(level)]
        side, mean, worse = (
            Errors(
                sizes,
                np.array(held[k]["variance"]),
                np.array(held[k]["quantiles"]),
                held[k]["shift"],
            )
            for k in KINDS
        )
        gamma, correlation = (np.array(held[k]) for k in ("gamma", "correlation"))
        near = Calibration(side, gamma, mean, worse, correlation)
        fitted.calibration_[level] = near
        fitted.beyond_[level] = near.shifted({k: held[k]["beyond"] for k in KINDS})
    return fitted


def write_forecaster(path: Path, fitted: Forecaster, meta: dict[str, Any]) -> None:
    """Write a fitted forecaster as JSON, numbers to twelve digits, in one line."""
    document = _rounded(to_document(fitted, meta))
    text = json.dumps(document, sort_keys=True, allow_nan=False, separators=(",", ":"))
    write_atomic(path, (text + "\n").encode())


def read_forecaster(path: Path) -> Forecaster:
    """Read a fitted forecaster. Raises MergelibError, naming the file, where it is none."""
    try:
        return from_document(read_json(path))
    except (KeyError, TypeError, ValueError) as error:
        raise MergelibError(
            f"{path} holds no forecaster ({error}): install the package again"
        ) from None


def _name(level: Level) -> str:
    weights, known, probe = level
    parts = ["weights"] * weights + ["known"] * known + [probe] * bool(probe)
    return "+".join(parts) or "nothing"


def _calibration(held: Calibration, beyond: Calibration) -> dict[str, Any]:
    errors = {kind: (getattr(held, kind), getattr(beyond, kind)) for kind in KINDS}
    found: dict[str, Any] = {
        kind: {
            "variance": near.variance.tolist(),
            "quantiles": near.quantiles.tolist(),
            "shift": near.shift,
            "beyond": far.shift,
        }
        for kind, (near, far) in errors.items()
    }
    return found | {
        "gamma": held.gamma.tolist(),
        "correlation": held.correlation.tolist(),
    }


def _symmetric(lower: np.ndarray, size: int) -> np.ndarray:
    """Matrices (..., size, size) from what they hold below and on the diagonal."""
    at = np.tril_indices(size)
    out = np.empty((*lower.shape[:-1], size, size))
    out[..., *at] = lower
    out.swapaxes(-1, -2)[..., *at] = lower
    return out


def _rounded(value: Any) -> Any:
    """Numbers to twelve digits: what a fit of another processor has in common with this one."""
    if isinstance(value, dict):
        return {key: _rounded(x) for key, x in value.items()}
    if isinstance(value, list):
        return [_rounded(x) for x in value]
    return float(f"{value:.12g}") if isinstance(value, float) else value
