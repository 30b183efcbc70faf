"""Do methods rank the metrics alike? The paper's top-5 overlap and sign agreement."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from mergelib.core.errors import MergelibError
from mergelib.core.store import read_json


def top_overlap(a: Mapping[str, float], b: Mapping[str, float], k: int = 5) -> float:
    """|top_k(a) & top_k(b)| / k, the top by absolute mean coefficient."""
    return len(_top(a, k) & _top(b, k)) / k


def _top(fit: Mapping[str, float], k: int) -> set[str]:
    return set(sorted(fit, key=lambda metric: -abs(fit[metric]))[:k])


def sign_agreement(a: Mapping[str, float], b: Mapping[str, float], tiny: float = 1e-10) -> float:
    """Share of metrics whose coefficients have one sign, over those above `tiny` in both."""
    both = [m for m in a if m in b and abs(a[m]) > tiny and abs(b[m]) > tiny]
    if not both:
        return float("nan")
    return sum((a[m] > 0) == (b[m] > 0) for m in both) / len(both)


def agreement(fits: Mapping[str, Mapping[str, float]], k: int = 5) -> dict[str, Any]:
    """Both statistics averaged over all unordered pairs of methods.

    `fits` maps a method to its mean coefficient per metric. Source: arXiv 2601.22285, section 5
    (46.7 %/55.3 % in the first version, 64.0 %/79.3 % in the final one).

    Raises MergelibError for fewer than two methods or for fits over different metrics.
    """
    if len(fits) < 2:
        raise MergelibError(f"agreement needs the fits of at least two methods, got {len(fits)}")
    names = list(fits)
    for name in names[1:]:
        differing = set(fits[name]) ^ set(fits[names[0]])
        if differing:
            raise MergelibError(
                f"fits {names[0]} and {name} do not hold the same metrics: "
                f"{', '.join(sorted(differing))} in only one"
            )
    if len(fits[names[0]]) < k:
        raise MergelibError(f"top-{k} overlap needs at least {k} metrics")
    both = list(combinations(names, 2))
    overlaps = [top_overlap(fits[a], fits[b], k) for a, b in both]
    signs = [sign_agreement(fits[a], fits[b]) for a, b in both]
    defined = [value for value in signs if not np.isnan(value)]
    return {
        "top5_overlap": float(np.mean(overlaps)),
        "sign_agreement": float(np.mean(defined)) if defined else float("nan"),
        "n_methods": len(names),
        "pairs": [
            {"a": a, "b": b, "top5_overlap": overlap, "sign_agreement": sign}
            for (a, b), overlap, sign in zip(both, overlaps, signs, strict=True)
        ],
    }


def read_fit(path: Path) -> dict[str, float]:
    """Mean coefficient per metric of a released result file or of a saved `mergelib fit --json`.

    Raises MergelibError if the file is missing, truncated or neither.
    """
    held = read_json(Path(path))
    found = None
    if isinstance(held, dict):
        if isinstance(held.get("average_coefficients"), dict):
            found = held["average_coefficients"]
        elif isinstance(held.get("coefficients"), dict):
            found = {
                m: c.get("mean") if isinstance(c, dict) else c
                for m, c in held["coefficients"].items()
            }
    if not found or not all(
        isinstance(v, (int, float)) and not isinstance(v, bool) for v in found.values()
    ):
        raise MergelibError(
            f"{path} holds no coefficients: give a released *_results.json (average_coefficients) "
            "or the output of mergelib fit --json (coefficients)"
        )
    return {m: float(v) for m, v in found.items()}


def agreement_of_files(paths: Sequence[Path]) -> dict[str, Any]:
    """`agreement` over the fits in `paths`."""
    return agreement({str(path): read_fit(path) for path in paths})
