"""Published means, gains and rank correlations, computed anew from the released tables."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import pearsonr, spearmanr

from mergelib.core.errors import MergelibError
from mergelib.core.store import read_json
from mergelib.pairs import tables as pair_tables
from mergelib.pairs.tables import Tables, outcomes
from mergelib.published import released
from studies.reproduction.own import KEYS

SIZES = (2, 5, 10, 30, 100, 200)
WAYS = (8, 20)
B16 = "ViT-B-16_AdamW"
# the regularized models whose gains are published: folder suffix, and versions with their methods
GAINS = {
    "grad_magnitude_0.001": {"v1": ("weight_avg", "arithmetic", "tsv", "isotropic")},
    "grad_magnitude_0.1": {"v1": ("weight_avg", "arithmetic", "tsv", "isotropic")},
    "grad_magnitude_1": {
        "v1": ("weight_avg", "arithmetic", "tsv", "isotropic"),
        "v8": ("arithmetic", "dare", "tsv", "ties", "weight_avg"),
    },
}


def _row(version, setting, run, method, quantity, value, item="", n=None) -> dict:
    return dict(zip(KEYS, (version, setting, run, method, quantity, item), strict=True)) | {
        "value": float(value),
        "n": n,
    }


def means(tables: Mapping[str, Tables]) -> pd.DataFrame:
    """Mean raw and normalized accuracy over the merged pairs, per setting and method."""
    rows = []
    for setting, held in tables.items():
        for method, part in outcomes(held.merges).groupby("method", sort=False):
            for name in ("raw", "normalized"):
                mean = part[name].mean()
                rows.append(_row("v8", setting, "merges", method, name, mean, n=len(part)))
    return pd.DataFrame(rows)


def _single(source: Path) -> dict[str, float]:
    accuracies = released.read_accuracies(Path(source) / "results" / "finetuning" / "accs.json")
    return accuracies[released.BACKBONES[B16]]


def many_way(source: Path) -> pd.DataFrame:
    """Mean normalized accuracy of one merge of 8 or 20 tasks, also of the regularized models."""
    single = _single(source)
    rows = []
    for run, suffix in (("merges", ""), ("gargiulo_u_0.0001", "_gargiulo_u_0.0001")):
        for method in ("arithmetic", "dare", "tsv", "ties", "weight_avg"):
            for k in WAYS:
                path = Path(source) / "results" / B16 / f"{method}{suffix}" / f"{k}.json"
                if not path.is_file():
                    continue
                held = read_json(path)
                try:
                    found = {t: held[t][0][f"acc/test/{t}"] for t in held if t != "avg"}
                except (KeyError, IndexError, TypeError):
                    raise MergelibError(
                        f"{path} is not of the released shape; check it out again"
                    ) from None
                mean = np.mean([value / single[t] for t, value in found.items()])
                item = f"{k} tasks"
                rows.append(_row("v8", B16, run, method, "normalized", mean, item, len(found)))
    return pd.DataFrame(rows)


def regularized(source: Path) -> pd.DataFrame:
    """Mean normalized accuracy in percent of the re-trained models' merges and their gain.

    gain: over the mean of the downloaded models' merges, each over the pairs it has, as
    published; "gain, common pairs": over the pairs that both have.
    """
    single = _single(source)
    folder = Path(source) / "results" / B16

    def percent(method: str) -> pd.Series:
        path = folder / method / "all_pairwise_summary_N20.json"
        merges = released.read_merges(path, method, single)
        return 100 * outcomes(merges).set_index(pair_tables.KEYS)["normalized"].dropna()

    rows = [
        _row(version, B16, "downloaded", method, "percent", percent(method).mean())
        for version, methods in GAINS["grad_magnitude_1"].items()
        for method in methods
    ]
    for run, versions in GAINS.items():
        for version, methods in versions.items():
            for method in methods:
                base, other = percent(method), percent(f"{method}_{run}")
                shared = (other - base).dropna()
                for name, value, n in (
                    ("percent", other.mean(), len(other)),
                    ("gain", other.mean() - base.mean(), len(other)),
                    ("gain, common pairs", shared.mean(), len(shared)),
                ):
                    rows.append(_row(version, B16, run, method, name, value, n=n))
    return pd.DataFrame(rows)


def calibration(source: Path, tables: Mapping[str, Tables]) -> pd.DataFrame:
    """Spearman's rho of a data-driven metric with its own values at 200 images, and with raw
    accuracy, per number of calibration images (10 is the main table)."""
    held = tables[B16]
    by_size = {n: held.metrics if n == 10 else _calibrated(source, n) for n in SIZES}
    by_size = {n: frame.set_index(pair_tables.KEYS) for n, frame in by_size.items()}
    accuracy = outcomes(held.merges).pivot(index=pair_tables.KEYS, columns="method", values="raw")
    rows = []
    for metric in [c for c in by_size[200].columns if c in by_size[2].columns]:
        for n in SIZES:
            values = by_size[n][metric]
            if n != 200:
                rho, k = _paired(spearmanr, values, by_size[200][metric])
                rows.append(_row("v8", B16, f"n={n}", "none", "rho with n=200", rho, metric, k))
            for method in ("arithmetic", "isotropic", "tsv"):
                rho, k = _paired(spearmanr, values, accuracy[method])
                rows.append(_row("v8", B16, f"n={n}", method, "rho with raw", rho, metric, k))
    return pd.DataFrame(rows)


def _calibrated(source: Path, n: int) -> pd.DataFrame:
    folder = Path(source) / "results" / "mergeability" / B16 / "calibration_sensitivity"
    return released.read_metrics(folder / str(n) / "pairwise_metrics_N20.json")


def _paired(statistic, a: pd.Series, b: pd.Series) -> tuple[float, int]:
    both = pd.concat([a, b], axis=1, join="inner").dropna()
    return float(statistic(both.iloc[:, 0], both.iloc[:, 1])[0]), len(both)


def single_metrics(tables: Mapping[str, Tables]) -> pd.DataFrame:
    """Pearson's r of each metric with normalized accuracy over all pairs that have both."""
    held = tables[B16]
    metrics = held.metrics.set_index(pair_tables.KEYS)
    accuracy = outcomes(held.merges).pivot(
        index=pair_tables.KEYS, columns="method", values="normalized"
    )
    rows = []
    for method in ("arithmetic", "weight_avg", "isotropic", "tsv"):
        for metric in released.metric_names():
            r, k = _paired(pearsonr, metrics[metric], accuracy[method])
            rows.append(
                _row("v1", B16, "single metrics", method, "r with normalized", r, metric, k)
            )
    return pd.DataFrame(rows)


def identical(tables: Mapping[str, Tables], one: str, other: str) -> pd.DataFrame:
    """Per method the pairs that both settings merged, and in how many all accuracies are equal."""
    counts = pair_tables.identical(tables[one].merges, tables[other].merges)
    return counts[["pairs", "identical"]].reset_index()


def all_summaries(source: Path, tables: Mapping[str, Tables]) -> pd.DataFrame:
    """Everything in this module that stands beside a published figure: KEYS, value, n."""
    parts = (
        means(tables),
        many_way(source),
        regularized(source),
        calibration(source, tables),
        single_metrics(tables),
    )
    return pd.concat(parts, ignore_index=True)
