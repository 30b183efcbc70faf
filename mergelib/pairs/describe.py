"""What the tables say before anything is predicted: tasks, methods, families, redundancy."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from scipy.stats import spearmanr

from mergelib.core.errors import MergelibError
from mergelib.core.registry import unknown
from mergelib.metrics.registry import METRICS
from mergelib.pairs.inference import bootstrap_mean, holm, interval, permutation_p
from mergelib.pairs.tables import KEYS, VALUES, ends, need, outcomes
from mergelib.pairs.targets import additive_share, residual


def origin(meta: Mapping[str, Any], **counts: int) -> str:
    """One line on where a table comes from, then its counts: `origin(meta, pairs=190)`."""
    model = "setting" if "setting" in meta else "backbone"
    known = [str(meta.get(key, f"{key} not recorded")) for key in ("source", model)]
    edition = f"{meta['edition']} edition" if "edition" in meta else "edition not recorded"
    return ", ".join([*known, edition, *(f"n = {n} {what}" for what, n in counts.items())])


# ---- Tasks ------------------------------------------------------------------------------------


def standard_error(share: ArrayLike, n: ArrayLike) -> np.ndarray:
    """Binomial standard error √(p (1 − p) / n) of a share p among n images; 0 at p = 0 and 1."""
    share = np.asarray(share, dtype=np.float64)
    return np.sqrt(share * (1 - share) / np.asarray(n))


def regime(tasks: pd.DataFrame, split: str = "test") -> pd.DataFrame:
    """Chance, zero-shot and fine-tuned accuracy of every task on a split, with standard errors.

    Columns task, family, classes, n, chance, zero_shot, zero_shot_se, fine_tuned, fine_tuned_se;
    fractions. Chance is 1 / classes, the accuracy of guessing when classes are equally frequent.
    `split` is test or calibration. Raises MergelibError for a missing column.
    """
    suffix = "" if split == "test" else f"_{split}"
    names = ["task", "family", "n_classes", f"n_{split}", f"zero_shot{suffix}"]
    need(tasks, [*names, f"fine_tuned{suffix}"], "tasks table")
    n = tasks[f"n_{split}"].to_numpy()
    zero, tuned = (tasks[f"{kind}{suffix}"].to_numpy() for kind in ("zero_shot", "fine_tuned"))
    return pd.DataFrame(
        {
            "task": tasks["task"].to_numpy(),
            "family": tasks["family"].to_numpy(),
            "classes": tasks["n_classes"].to_numpy(),
            "n": n,
            "chance": 1 / tasks["n_classes"].to_numpy(),
            "zero_shot": zero,
            "zero_shot_se": standard_error(zero, n),
            "fine_tuned": tuned,
            "fine_tuned_se": standard_error(tuned, n),
        }
    )


def regime_counts(table: pd.DataFrame, z: float = 2.0) -> dict[str, int]:
    """How many tasks of a `regime` table lie where a study of merging wants them.

    zero-shot above chance by more than z standard errors (of chance, √(c (1 − c) / n)); zero-shot
    below fine-tuned by more than z standard errors of the difference, taken as if both were
    measured on different images (they are the same, so this asks for more than needed); fine-tuned
    accuracy in [0.80, 0.995].
    """
    chance_se = standard_error(table["chance"], table["n"])
    gap_se = np.hypot(table["zero_shot_se"], table["fine_tuned_se"])
    held = {
        "tasks": np.ones(len(table), dtype=bool),
        "zero-shot above chance": table["zero_shot"] - table["chance"] > z * chance_se,
        "zero-shot below fine-tuned": table["fine_tuned"] - table["zero_shot"] > z * gap_se,
        "fine-tuned between 0.80 and 0.995": table["fine_tuned"].between(0.80, 0.995),
    }
    return {what: int(np.sum(true)) for what, true in held.items()}


def summarize_methods(wide: pd.DataFrame, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Per method: pairs, mean with its 95 % task-bootstrap interval, sd over pairs, additive share.

    `wide` is a `by_method` table; pairs that a method lacks are left out for it. Columns pairs,
    mean, low, high, sd (n − 1), additive, additive_by_chance.
    """
    rows = {}
    for method in wide.columns:
        column = wide[method].dropna()
        y, pair_ends = column.to_numpy(np.float64), ends(column.index)
        low, high = interval(bootstrap_mean(y, pair_ends, draws, seed))
        rows[method] = {
            "pairs": len(y),
            "mean": y.mean(),
            "low": low,
            "high": high,
            "sd": y.std(ddof=1),
            "additive": additive_share(y, residual(y[:, None], pair_ends)),
            "additive_by_chance": pair_ends.max() / (len(y) - 1),
        }
    return pd.DataFrame.from_dict(rows, orient="index").astype({"pairs": int})


def not_merging(
    pairs: pd.MultiIndex, tasks: pd.DataFrame, value: str = "normalized"
) -> pd.DataFrame:
    """What each pair has without a merge: the baselines of every method, one row per pair.

    `zero_shot`: the pretrained model on both tasks. `one_model`: the better choice of keeping one
    fine-tuned model and guessing on the other task (a floor: the kept model may do better there).
    Raises MergelibError for an unknown value, a missing column or task.
    """
    if value not in VALUES:
        raise MergelibError(unknown("value", value, VALUES))
    need(tasks, ["task", "n_classes", "zero_shot", "fine_tuned"], "tasks table")
    known = tasks.set_index("task")
    absent = sorted({task for pair in pairs for task in pair} - set(known.index))
    if absent:
        raise MergelibError(f"tasks table: no row for {', '.join(absent)}")
    sides = [list(pairs.get_level_values(k)) for k in (0, 1)]
    zero, tuned, classes = (
        np.stack([known.loc[side, column].to_numpy(np.float64) for side in sides])
        for column in ("zero_shot", "fine_tuned", "n_classes")
    )
    unit = tuned if value == "normalized" else np.ones_like(tuned)
    kept, guessed = tuned / unit, 1 / classes / unit
    one = np.maximum(kept[0] + guessed[1], kept[1] + guessed[0]) / 2
    zero = (zero / unit).mean(axis=0)
    return pd.DataFrame({"zero_shot": zero, "one_model": one}, index=pairs)


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


def compared(
    frame: pd.DataFrame, value: str, reference: str, draws: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Per method: the mean of a value, and its difference from a reference method's, pair by pair.

    Columns mean, difference, low, high (95 % task bootstrap of the difference), worse (the share
    of pairs below the reference). Raises MergelibError if the reference is not in the table.
    """
    wide = frame.pivot(index=KEYS, columns="method", values=value)
    if reference not in wide:
        raise MergelibError(unknown("method", reference, list(wide)))
    rows = {}
    for method in dict.fromkeys(frame["method"]):
        both = wide[[method]].assign(reference=wide[reference]).dropna()
        gain = (both[method] - both["reference"]).to_numpy(np.float64)
        low, high = interval(bootstrap_mean(gain, ends(both.index), draws, seed))
        rows[method] = {
            "mean": both[method].mean(),
            "difference": gain.mean(),
            "low": float(low),
            "high": float(high),
            "worse": np.mean(gain < 0),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


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


# ---- Metrics ----------------------------------------------------------------------------------


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
