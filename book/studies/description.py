"""What chapters 2, 3 and 9 show of the tables: metrics, families, redundancy, noise of merges."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from scipy.stats import spearmanr

from mergelib.core.errors import MergelibError
from mergelib.metrics.registry import METRICS
from mergelib.pairs.inference import permutation_p
from mergelib.pairs.tables import KEYS, need, outcomes
from studies.chance import holm
from studies.describe import standard_error

# ---- Merges -------------------------------------------------------------------------------------


def of_the_same_models(others: pd.DataFrame, merges: pd.DataFrame) -> pd.DataFrame:
    """The rows of `others` whose pair and single-task accuracies `merges` has as well."""
    keys = [*KEYS, "single_a", "single_b"]
    return others.merge(merges[keys].drop_duplicates(), on=keys)


def by_knowledge(merges: pd.DataFrame, tasks: pd.DataFrame) -> pd.DataFrame:
    """The merges table with the normalized accuracies of a pair's two tasks told apart.

    `least_known` is that of the task of which the pretrained model knows less (zero-shot ÷
    fine-tuned accuracy on the calibration split), `best_known` that of the other (equal: the
    first task counts as least known), `both` their mean.
    Raises MergelibError for a missing column.
    """
    names = ["zero_shot_calibration", "fine_tuned_calibration"]
    need(tasks, ["task", *names], "tasks table")
    frame = outcomes(merges)
    known = tasks.set_index("task")
    share = known[names[0]] / known[names[1]]
    first = frame["task_a"].map(share) <= frame["task_b"].map(share)
    a, b = frame["acc_a"] / frame["single_a"], frame["acc_b"] / frame["single_b"]
    sides = {"least_known": a.where(first, b), "best_known": b.where(first, a)}
    return frame.assign(**sides, both=frame["normalized"])


def sampling_sd(merges: pd.DataFrame, tasks: pd.DataFrame) -> pd.Series:
    """Per method, the sd of a pair's normalized accuracy that finite test splits alone cause.

    √ of the mean over pairs of ¼ Σ p (1 − p) / (n s²) over the pair's two tasks, p the merged
    model's accuracy on n test images and s the single-task accuracy, taken as known. Merges with
    one task share its test images, so part of this error is common to them and moves means.
    """
    need(tasks, ["task", "n_test"], "tasks table")
    n = tasks.set_index("task")["n_test"]
    variance = np.zeros(len(merges))
    for side in ("a", "b"):
        error = standard_error(merges[f"acc_{side}"], merges[f"task_{side}"].map(n))
        variance += (error / merges[f"single_{side}"].to_numpy() / 2) ** 2
    frame = pd.DataFrame({"method": merges["method"].to_numpy(), "variance": variance})
    return np.sqrt(frame.groupby("method", sort=False)["variance"].mean())


def clusters(correlation: pd.DataFrame, above: float = 0.9) -> list[tuple[str, ...]]:
    """Groups of columns by average linkage on 1 − r: joined while the mean r exceeds `above`."""
    distance = np.clip(1 - correlation.to_numpy(np.float64), 0, None)
    distance = (distance + distance.T) / 2
    np.fill_diagonal(distance, 0)
    labels = fcluster(linkage(squareform(distance), "average"), 1 - above, "distance")
    groups: dict[int, list[str]] = {}
    for name, label in zip(correlation.columns, labels, strict=True):
        groups.setdefault(label, []).append(name)
    return [tuple(group) for group in groups.values()]


# ---- Metrics ------------------------------------------------------------------------------------


def metric_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """The registered metrics that a metrics table holds: category, range, observed values, origin.

    Index metric; columns category, range, min, median, max, determined_by.
    """
    rows = {
        row.name: {
            "category": row.category.replace("_", " "),
            "range": f"[{row.range[0]:g}, {row.range[1]:g}]".replace("inf", "∞"),
            "min": metrics[row.name].min(),
            "median": metrics[row.name].median(),
            "max": metrics[row.name].max(),
            "determined_by": ", ".join(row.duplicates),
        }
        for row in METRICS.rows()
        if row.name in metrics
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("metric")


def family_contrast(
    metrics: pd.DataFrame,
    family: Mapping[str, str],
    names: Sequence[str] | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Do pairs of one family differ from pairs of two? A permutation test that moves tasks.

    Per metric: the mean within families minus that between them, in standard deviations over all
    pairs (`difference`), the middle 95 % of what random assignments of the families to the tasks
    give (`null_low`, `null_high`), p = (1 + #{|null| ≥ |observed|}) / (1 + draws), and Holm's p
    over the metrics. Also `within` and `between` in the metric's unit, `n_within`, `n_between`.
    Index metric. NaN where no pair, or every pair, lies within a family. `names` defaults to all
    registered metrics. Source: the QAP of Hubert and Schultz (1976).
    Raises MergelibError for a missing column or task.
    """
    names = [name for name in METRICS if name in metrics] if names is None else list(names)
    need(metrics, [*KEYS, *names], "metrics table")
    tasks = list(dict.fromkeys(metrics[KEYS].to_numpy().T.ravel()))
    absent = [task for task in tasks if task not in family]
    if absent:
        raise MergelibError(f"no family is given for {', '.join(absent)}")
    place = {task: k for k, task in enumerate(tasks)}
    i, j = (metrics[key].map(place).to_numpy() for key in KEYS)
    label = np.unique([family[task] for task in tasks], return_inverse=True)[1]
    rng = np.random.default_rng([seed, 4])
    moved = np.stack([label, *(rng.permutation(label) for _ in range(draws))])
    same = moved[:, i] == moved[:, j]  # the first row is the observed assignment
    X = metrics[names].to_numpy(np.float64)
    n, inside = len(X), int(same[0].sum())
    frame = pd.DataFrame(index=pd.Index(names, name="metric"))
    with np.errstate(divide="ignore", invalid="ignore"):
        frame["within"] = same[0] @ X / inside
        frame["between"] = ~same[0] @ X / (n - inside)
        Z = (X - X.mean(axis=0)) / X.std(axis=0, ddof=1)
        difference = same @ Z / inside - ~same @ Z / (n - inside)
        frame["difference"] = difference[0]
        frame["null_low"], frame["null_high"] = np.quantile(difference[1:], [0.025, 0.975], axis=0)
    frame["p"] = permutation_p(np.abs(difference[0]), np.abs(difference[1:]))
    frame["p_holm"] = np.nan
    defined = frame["p"].notna()
    frame.loc[defined, "p_holm"] = holm(frame.loc[defined, "p"])
    return frame.assign(n_within=inside, n_between=n - inside)


def redundant(metrics: pd.DataFrame) -> pd.DataFrame:
    """Metrics that others determine by their formulas, and how that shows in a table.

    Index metric; `determined_by` as registered; `linear`, the R² of the least-squares line on
    those (1 where the relation is linear); `rank`, |Spearman's rho| where one metric alone
    determines it (1 where the relation is monotone), else NaN.
    """
    rows = {}
    for row in METRICS.rows():
        if not row.duplicates or not {row.name, *row.duplicates} <= set(metrics.columns):
            continue
        y = metrics[row.name].to_numpy(np.float64)
        X = metrics[list(row.duplicates)].to_numpy(np.float64)
        # in standard units, so that scales of 1e-6 and 1e2 do not cost digits
        X = (X - X.mean(axis=0)) / X.std(axis=0)
        centered = y - y.mean()
        left = centered - X @ np.linalg.lstsq(X, centered, rcond=None)[0]
        rows[row.name] = {
            "determined_by": ", ".join(row.duplicates),
            "linear": 1 - np.sum(left**2) / np.sum(centered**2),
            "rank": abs(spearmanr(X[:, 0], y).statistic) if X.shape[1] == 1 else np.nan,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("metric")


def dimensions(X: np.ndarray, tolerance: float = 1e-5) -> dict[str, float]:
    """How many dimensions the columns of X (n, p) span once each is standardized.

    `columns` that vary; `rank`, singular values above `tolerance` times the largest (the default
    is that of values stored in float32); `for_95` and `for_99`, principal components that hold 95
    and 99 % of the variance; `effective`, the participation ratio (Σ λ)² / Σ λ² of the
    eigenvalues of the correlation matrix.
    """
    X = np.asarray(X, dtype=np.float64)
    centered = X - X.mean(axis=0)
    spread = centered.std(axis=0)
    varies = spread > 1e-12 * np.abs(X).max(axis=0)
    s = np.linalg.svd(centered[:, varies] / spread[varies], compute_uv=False)
    share = np.cumsum(s**2) / np.sum(s**2)
    return {
        "columns": int(varies.sum()),
        "rank": int((s > tolerance * s[0]).sum()),
        "for_95": int(np.searchsorted(share, 0.95) + 1),
        "for_99": int(np.searchsorted(share, 0.99) + 1),
        "effective": float(np.sum(s**2) ** 2 / np.sum(s**4)),
    }
