"""The paper's released tables read into the project's schemas; its released fits read as they are.

A checkout of Rose-STL-Lab/demystifying-mergeability at commit d8068e73 (arXiv 2601.22285) holds
pairwise metrics, merge accuracies and fitted coefficients for three settings. Nothing is filled
in: what the authors' run did not finish stays missing, and is counted in `meta`.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mergelib.core.errors import MergelibError
from mergelib.core.registry import unknown
from mergelib.core.store import file_digest, read_json
from mergelib.metrics.registry import published_metrics
from mergelib.pairs.tables import FINAL_METHODS, Tables, identical

REPOSITORY = "Rose-STL-Lab/demystifying-mergeability"
COMMIT = "d8068e73"
BACKBONES = {
    "ViT-B-16_AdamW": "ViT-B-16",
    "ViT-B-32_AdamW": "ViT-B-32",
    "ViT-B-16_SGD": "ViT-B-16",
}
SETTINGS = tuple(BACKBONES)
METHODS = ("weight_avg", "arithmetic", "tsv", "ties", "dare", "isotropic")
# a column of one setting's file that no final fit used: right_subspace_overlap_top_k / sqrt(10)
HISTORIC = "right_subspace_overlap"

# task: family, data set, classes in the head, training and test images (arXiv 2601.22285, app. A;
# every released accuracy times the test size is a whole number)
TASKS: dict[str, tuple[str, str, int, int, int]] = {
    "SUN397": ("scenes", "tanganke/sun397", 397, 19850, 19850),
    "Cars": ("fine-grained", "tanganke/stanford_cars", 196, 8144, 8041),
    "RESISC45": ("satellite", "tanganke/resisc45", 45, 18900, 6300),
    "EuroSAT": ("satellite", "tanganke/eurosat", 10, 21600, 2700),
    "SVHN": ("digits", "svhn", 10, 73257, 26032),
    "GTSRB": ("signs", "tanganke/gtsrb", 43, 26640, 12630),
    "MNIST": ("digits", "mnist", 10, 60000, 10000),
    "DTD": ("textures", "tanganke/dtd", 47, 3760, 1880),
    "Flowers102": ("fine-grained", "dpdl-benchmark/oxford_flowers102", 102, 1020, 6149),
    "PCAM": ("medical", "1aurent/PatchCamelyon", 2, 262144, 32768),
    "FER2013": ("faces", "clip-benchmark/wds_fer2013", 7, 28709, 7178),
    "OxfordIIITPet": ("fine-grained", "timm/oxford-iiit-pet", 37, 3680, 3669),
    "STL10": ("objects", "tanganke/stl10", 11, 5000, 8000),
    "CIFAR100": ("objects", "tanganke/cifar100", 100, 50000, 10000),
    "CIFAR10": ("objects", "tanganke/cifar10", 11, 50000, 10000),
    "Food101": ("fine-grained", "ethz/food101", 101, 75750, 25250),
    "FashionMNIST": ("clothing", "zalando-datasets/fashion_mnist", 10, 60000, 10000),
    "EMNIST": ("digits", "tanganke/emnist_mnist", 10, 60000, 10000),
    "KMNIST": ("characters", "tanganke/kmnist", 10, 60000, 10000),
    "RenderedSST2": ("rendered text", "nateraw/rendered-sst2", 2, 6920, 1821),
}


def checkout(source: Path) -> Path:
    """The folder, checked to hold results. Raises MergelibError if not."""
    root = Path(source)
    if not (root / "results").is_dir():
        raise MergelibError(
            f"{root} holds no folder results: give a checkout of {REPOSITORY} "
            f"(git clone, then git checkout {COMMIT})"
        )
    return root


BESIDE = ("demystifying-mergeability", "shared/published")  # where a checkout may lie


def find_checkout(given: str | Path = "", root: str | Path = ".") -> Path:
    """The folder of a checkout of the released work.

    `given` if it names one; else the environment's MERGELIB_RELEASED, else the first of BESIDE that
    lies beside the repository `root`. Raises MergelibError if there is none.
    """
    asked = str(given) or os.environ.get("MERGELIB_RELEASED", "")
    tried = [Path(asked)] if asked else [Path(root).resolve().parent / name for name in BESIDE]
    for folder in tried:
        if (folder / "results").is_dir():
            return folder
    where = asked or " or ".join(f"../{name}" for name in BESIDE)
    raise MergelibError(
        f"no checkout of {REPOSITORY} at {where}: clone it beside this repository, check out "
        f"{COMMIT}, or name its folder (released, or MERGELIB_RELEASED)"
    )


def known_setting(name: str) -> str:
    """The name, checked. Raises MergelibError for an unknown setting."""
    if name not in BACKBONES:
        raise MergelibError(unknown("setting", name, SETTINGS))
    return name


def misshapen(path: Path, what: str) -> MergelibError:
    """The error for a file that is not as released."""
    return MergelibError(f"{path} is not of the released shape: {what}; check it out again")


def _number(path: Path, where: str, value: Any) -> float:
    """A number or, for null, NaN."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise misshapen(path, f"{where} is {value!r} where a number or null belongs")
    return float(value) if math.isfinite(value) else math.nan


def _pairs(tasks: Sequence[str]) -> list[tuple[str, str]]:
    return [(a, b) for i, a in enumerate(tasks) for b in tasks[i + 1 :]]


def metric_names() -> list[str]:
    """The 28 metrics in published category order."""
    return published_metrics()


def read_metrics(path: Path, historic: bool = False) -> pd.DataFrame:
    """A released pairwise_metrics_N20.json as a metrics table: one row per pair, NaN for null.

    The 28 metrics in published order (those of them the file has, for the calibration study's
    files); the 29th column only with `historic`. Raises MergelibError, naming the file, if it is
    absent, truncated or not of the released shape.
    """
    path = Path(path)
    held = read_json(path)
    if not isinstance(held, dict) or not isinstance(held.get("metrics"), dict):
        raise misshapen(path, "no map `metrics`")
    tasks = held.get("datasets")
    if not isinstance(tasks, list) or not all(isinstance(t, str) for t in tasks):
        raise misshapen(path, "no list `datasets` of task names")
    expected = _pairs(tasks)
    columns: dict[str, list[float]] = {}
    for name in [*metric_names(), *([HISTORIC] if historic else [])]:
        if name not in held["metrics"]:
            continue
        entry = held["metrics"][name]
        values = entry.get("pairs") if isinstance(entry, dict) else None
        if not isinstance(values, dict):
            raise misshapen(path, f"metric {name} has no map `pairs`")
        absent = [f"{a}__{b}" for a, b in expected if f"{a}__{b}" not in values]
        if absent or len(values) != len(expected):
            raise misshapen(
                path,
                f"metric {name} holds {len(values)} pairs of {len(expected)}"
                + (f", without {absent[0]}" if absent else ""),
            )
        columns[name] = [
            _number(path, f"{name} of {a}__{b}", values[f"{a}__{b}"]) for a, b in expected
        ]
    if not columns:
        raise misshapen(path, "none of the 28 metrics")
    keys = {"task_a": [a for a, _ in expected], "task_b": [b for _, b in expected]}
    return pd.DataFrame(keys | columns)


def read_accuracies(path: Path) -> dict[str, dict[str, float]]:
    """Single-task test accuracy by backbone and task from results/finetuning/accs*.json."""
    held = read_json(path)
    if not isinstance(held, dict) or not all(isinstance(v, dict) for v in held.values()):
        raise misshapen(path, "not a map of backbones to maps of tasks")
    return {
        backbone: {t: _number(path, f"{backbone} {t}", v) for t, v in accuracies.items()}
        for backbone, accuracies in held.items()
    }


def read_merges(path: Path, method: str, single: dict[str, float]) -> pd.DataFrame:
    """A released all_pairwise_summary_N20.json as rows of a merges table.

    One row for each pair that was merged; a pair whose merge failed has none. `single` gives the
    single-task accuracies. The pair's accuracies are fractions of the test split.
    """
    path = Path(path)
    held = read_json(path)
    if not isinstance(held, dict):
        raise misshapen(path, "not a map of pairs")
    rows = []
    for key, entry in held.items():
        a, _, b = key.partition("__")
        if not b or not isinstance(entry, dict):
            raise misshapen(path, f"entry {key!r} is not a pair TaskA__TaskB with a map")
        if "error" in entry:
            continue
        accuracies = []
        for task in (a, b):
            try:
                value = entry[task][0][f"acc/test/{task}"]
            except (KeyError, IndexError, TypeError):
                raise misshapen(path, f"{key} has no acc/test/{task}") from None
            accuracies.append(_number(path, f"{key} acc/test/{task}", value))
            if task not in single:
                raise misshapen(path, f"{key}: no single-task accuracy of {task} is known")
        rows.append((a, b, method, *accuracies, single[a], single[b], 0))
    names = ["task_a", "task_b", "method", "acc_a", "acc_b", "single_a", "single_b", "seed"]
    return pd.DataFrame(rows, columns=names)


def read_zero_shot(path: Path) -> pd.DataFrame:
    """zero_shot.csv: backbone, task, zero_shot and fine_tuned as fractions."""
    path = Path(path)
    try:
        frame = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise MergelibError(f"{path} cannot be read ({error}): copy it again") from None
    for column in ("backbone", "task", "zero_shot_percent", "fine_tuned_percent"):
        if column not in frame:
            raise misshapen(path, f"no column {column}")
    return pd.DataFrame(
        {
            "backbone": frame["backbone"],
            "task": frame["task"],
            "zero_shot": frame["zero_shot_percent"] / 100,
            "fine_tuned": frame["fine_tuned_percent"] / 100,
        }
    )


def read_setting(source: Path, setting: str, historic: bool = False) -> Tables:
    """The tables of one setting of a checkout; see the module's docstring.

    Raises MergelibError, naming the file, for anything absent, truncated or of another shape.
    """
    root = checkout(source)
    backbone = BACKBONES[known_setting(setting)]
    results = root / "results"
    metrics_path = results / "mergeability" / setting / "pairwise_metrics_N20.json"
    metrics = read_metrics(metrics_path, historic)
    missing_columns = [n for n in metric_names() if n not in metrics]
    if missing_columns:
        raise misshapen(metrics_path, f"no metric {', '.join(missing_columns)}")
    accs_path = results / "finetuning" / "accs.json"
    single = read_accuracies(accs_path).get(backbone)
    if single is None:
        raise misshapen(accs_path, f"no backbone {backbone}")
    names = list(dict.fromkeys(metrics[["task_a", "task_b"]].to_numpy().ravel()))
    parts, paths = _merges(results, setting, single, names)
    zero_path = root / "zero_shot.csv"
    tasks = _tasks(names, zero_path, backbone, single)
    used = [metrics_path, accs_path, *paths, *([zero_path] if zero_path.is_file() else [])]
    meta = _meta(setting, metrics, parts, tasks)
    meta["digests"] = {str(p.relative_to(root)): file_digest(p) for p in used}
    if setting.endswith("SGD") and (note := _same_models(results, parts)):
        meta["note"] = note
    return Tables(metrics, pd.concat(parts.values(), ignore_index=True), tasks, meta, FINAL_METHODS)


def _merges(
    results: Path, setting: str, single: dict[str, float], names: Sequence[str]
) -> tuple[dict[str, pd.DataFrame], list[Path]]:
    """The merges of each method that the setting has, and their files."""
    paths = {m: results / setting / m / "all_pairwise_summary_N20.json" for m in METHODS}
    if not paths["isotropic"].exists():  # merged for two settings only
        del paths["isotropic"]
    parts = {m: read_merges(path, m, single) for m, path in paths.items()}
    for method, part in parts.items():
        strange = set(part[["task_a", "task_b"]].to_numpy().ravel()) - set(names)
        if strange:
            raise misshapen(paths[method], f"tasks {', '.join(sorted(strange))} have no metrics")
    return parts, list(paths.values())


def _tasks(
    names: Sequence[str], zero_path: Path, backbone: str, single: dict[str, float]
) -> pd.DataFrame:
    zero = pd.Series(np.nan, index=names)
    if zero_path.is_file():
        known = read_zero_shot(zero_path)
        zero = known[known["backbone"] == backbone].set_index("task")["zero_shot"].reindex(names)
    rows = [
        (t, *TASKS.get(t, ("", "", None, None, None)), 10, zero[t], single.get(t, math.nan))
        for t in names
    ]
    columns = ["task", "family", "source", "n_classes", "n_train", "n_test", "n_calibration",
               "zero_shot", "fine_tuned"]  # fmt: skip
    order = ["task", "family", "source", "n_classes", "n_train", "n_calibration", "n_test",
             "zero_shot", "fine_tuned"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)[order]


def _meta(
    setting: str, metrics: pd.DataFrame, parts: dict[str, pd.DataFrame], tasks: pd.DataFrame
) -> dict[str, Any]:
    values = metrics.drop(columns=["task_a", "task_b"])
    return {
        "source": "released tables",
        "repository": f"{REPOSITORY}@{COMMIT}",
        "paper": "arXiv 2601.22285",
        "setting": setting,
        "backbone": BACKBONES[setting],
        "optimizer": setting.rpartition("_")[2],
        "calibration": {"images_per_task": 10, "split": "test"},
        "edition": "paper",
        "n_tasks": len(tasks),
        "n_pairs": len(metrics),
        "missing": {
            "metric_values": int(values.isna().sum().sum()),
            "pairs_without_some_metric": int(values.isna().any(axis=1).sum()),
            "merges": {m: len(metrics) - len(p.dropna()) for m, p in parts.items()},
            "zero_shot": int(tasks["zero_shot"].isna().sum()),
        },
    }


def _same_models(results: Path, parts: dict[str, pd.DataFrame]) -> str | None:
    """What to say of the SGD folder if the AdamW folder's merges lie beside it."""
    paths = {m: results / "ViT-B-16_AdamW" / m / "all_pairwise_summary_N20.json" for m in parts}
    if not all(path.is_file() for path in paths.values()):
        return None
    others = [read_merges(path, m, dict.fromkeys(TASKS, 1.0)) for m, path in paths.items()]
    counts = identical(pd.concat(parts.values()), pd.concat(others)).sum()
    return (
        f"{counts['equal']} of {counts['of']} merge accuracies equal those of ViT-B-16_AdamW bit "
        "for bit: the released merges of this setting are of the AdamW models"
    )
