"""The released fits of the published predictor, as the paper's repository stores them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mergelib.core.errors import MergelibError
from mergelib.core.store import read_json
from mergelib.published.released import checkout, known_setting, misshapen

# folder names of the fits, which misspell one setting
FIT_FOLDERS = {
    "ViT-B-16_AdamW": "vit-b-16_AdamW",
    "ViT-B-32_AdamW": "vit-b-32_AwamW",
    "ViT-B-16_SGD": "vit-b-16_SGD",
}
# what a fold's weights are called: in plain runs, in forward and in backward selection
COEFFICIENTS = ("coefficients", "selected_coefficients", "retained_coefficients")


@dataclass(frozen=True)
class ReleasedFit:
    """One released leave-one-task-out fit: F folds over p metrics.

    tasks: the held-out task of each fold; coef (F, p) on the metrics scaled to [-1, 1];
    r (F,), train_r (F,): stored per-fold correlations; mean: the stored average coefficients.
    """

    method: str
    metrics: tuple[str, ...]
    tasks: tuple[str, ...]
    coef: np.ndarray
    r: np.ndarray
    train_r: np.ndarray
    mean: dict[str, float]
    record: dict[str, Any]


def fit_folder(source: Path, setting: str | None, run: str) -> Path:
    """The folder of a released run; `setting` None means the paper's first version."""
    results = checkout(source) / "results"
    if setting is None:
        return results / "metric_linear_optimization_og" / run
    return results / "metric_linear_optimization_v2" / FIT_FOLDERS[known_setting(setting)] / run


def read_fits(folder: Path) -> dict[str, ReleasedFit]:
    """All released fits of one run, by method.

    Raises MergelibError, naming the folder or file, if absent or not of the released shape.
    """
    folder = Path(folder)
    paths = sorted(folder.glob("*_results.json"))
    if not paths:
        raise MergelibError(f"{folder} holds no *_results.json: check the checkout and the run")
    return {fit.method: fit for fit in map(read_fit, paths)}


def read_fit(path: Path) -> ReleasedFit:
    """One released result file."""
    path = Path(path)
    held = read_json(path)
    try:
        folds = held["fold_results"]
        mean = {m: float(v) for m, v in held["average_coefficients"].items()}
        names = tuple(mean)
        r = [fold.get("val_r", fold.get("val_pearson_r")) for fold in folds]
        train_r = [fold.get("train_r", fold.get("train_pearson_r")) for fold in folds]
        # a selected-away metric has no entry in the fold
        key = next(k for k in COEFFICIENTS if k in folds[0])
        coef = [[fold[key].get(m, 0.0) for m in names] for fold in folds]
        return ReleasedFit(
            method=path.name.split("_l")[0],
            metrics=names,
            tasks=tuple(fold["held_out_task"] for fold in folds),
            coef=np.array(coef, dtype=np.float64),
            r=np.array(r, dtype=np.float64),
            train_r=np.array(train_r, dtype=np.float64),
            mean=mean,
            record=held,
        )
    except (KeyError, IndexError, StopIteration, TypeError, AttributeError, ValueError) as error:
        raise misshapen(path, f"no released fit ({error})") from None
