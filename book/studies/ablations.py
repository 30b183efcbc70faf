"""What chapter 5 computes: fits without, and with only, a category of metrics."""

from collections.abc import Iterable, Mapping

import pandas as pd

from mergelib.metrics.registry import METRICS
from studies.category_fits import redundancy
from studies.display import label, number
from studies.two_sources import Source, below, span

# Change of r without a category, as printed for the published predictor on raw accuracy: five
# methods, one fit without a fixed seed. Source: arXiv 2601.22285, ablation of the final version.
PRINTED = {
    "ViT-B-16_AdamW": {
        "task_vector": -0.008,
        "effective_rank": 0.020,
        "subspace": -0.045,
        "activation": 0.002,
        "gradient": -0.149,
    },
    "ViT-B-32_AdamW": {
        "task_vector": -0.013,
        "effective_rank": 0.012,
        "subspace": -0.014,
        "activation": -0.059,
        "gradient": -0.131,
    },
}


def changed(table: pd.DataFrame, change: str) -> pd.DataFrame:
    """The rows of an `ablation` "without" a category, or with "only" one."""
    return table[table["change"] == change]


def losing(without: pd.DataFrame) -> pd.DataFrame:
    """By category: mean change of r, least to most, and methods that lose beyond their interval."""
    groups = without.groupby("category", sort=False)
    return pd.DataFrame(
        {
            "change": groups["difference"].mean(),
            "range": groups["difference"].agg(lambda d: span(d, "+.2f")),
            "lose": groups["high"].agg(lambda high: int((high < 0).sum())),
            "gain": groups["low"].agg(lambda low: int((low > 0).sum())),
            "methods": groups.size(),
        }
    )


def foremost(table: pd.DataFrame) -> str:
    """The category without which r falls most, as printed; of equal ones the first by name."""
    change = table["change"].round(2)
    return min(change.index, key=lambda name: (change[name], name))


def matrix(losses: Mapping[tuple[str, str], pd.DataFrame]) -> pd.DataFrame:
    """Rows source and target, a column for each category: "−0.11 (6)", mean change and losers.

    `losses` maps (source, target) to its `losing`.
    """
    rows = {
        f"{source}: {target}": {
            name: f"{number(row['change'], '+.2f')} ({row['lose']})" for name, row in t.iterrows()
        }
        for (source, target), t in losses.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("target")


def held_elsewhere(source: Source) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`redundancy` by metric, and by category the least and the median of r2_others."""
    each = redundancy(source.pairs).set_index("metric")
    groups = each.groupby("category", sort=False)["r2_others"]
    return each, groups.agg(least="min", median="median", metrics="count")


def functions_of_others(metrics: Iterable[str]) -> list[str]:
    """Metrics that are a function of metrics of another category, in words."""
    category = {row.name: row.category for row in METRICS.rows()}
    found = []
    for row in METRICS.rows():
        elsewhere = [name for name in row.duplicates if category[name] != row.category]
        if elsewhere and row.name in set(metrics):
            of = " and ".join(label(name) for name in elsewhere)
            found.append(f"{label(row.name)} ({label(row.category)}) is a function of {of}")
    return found


def alone(only: pd.DataFrame) -> pd.DataFrame:
    """By category: mean r of it alone, what chance gives, and methods with p below 0.05."""
    groups = only.groupby("category", sort=False)
    return pd.DataFrame(
        {
            "r": groups["r"].mean(),
            "over": groups["r"].mean() - groups["null_mean"].mean(),
            "beyond": groups["p"].agg(below),
        }
    )


def some_lose(table: pd.DataFrame) -> str:
    """Categories whose removal loses beyond the interval for some method, with how many."""
    found = [f"{label(name)} ({row['lose']})" for name, row in table.iterrows() if row["lose"]]
    return ", ".join(found) or "none"
