"""What the tables say before anything is predicted: tasks, and methods beside not merging."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from mergelib.core.errors import MergelibError
from mergelib.core.registry import unknown
from mergelib.pairs.inference import interval
from mergelib.pairs.tables import KEYS, check_once, ends, need, outcomes
from studies.additive import additive_share
from studies.spread import bootstrap_mean

VALUES = ("normalized", "raw")


def origin(meta: Mapping[str, Any], **counts: int) -> str:
    """One line on where a table comes from, then its counts: `origin(meta, pairs=190)`."""
    model = "setting" if "setting" in meta else "backbone"
    known = [str(meta.get(key, f"{key} not recorded")) for key in ("source", model)]
    edition = f"{meta['edition']} edition" if "edition" in meta else "edition not recorded"
    return ", ".join([*known, edition, *(f"n = {n} {what}" for what, n in counts.items())])


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


def by_method(merges: pd.DataFrame, value: str = "normalized") -> pd.DataFrame:
    """One row per pair, one column per method, both in the table's order; NaN where not merged.

    Raises MergelibError for an unknown value, and if a pair and method come twice (several seeds).
    """
    if value not in VALUES:
        raise MergelibError(unknown("value", value, VALUES))
    frame = outcomes(merges)
    check_once(frame)
    pairs = pd.MultiIndex.from_frame(frame[KEYS].drop_duplicates())
    wide = frame.pivot(index=KEYS, columns="method", values=value)
    return wide.reindex(index=pairs, columns=list(dict.fromkeys(frame["method"])))


def summarize_methods(wide: pd.DataFrame, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Per method: pairs, mean with its 95 % task-bootstrap interval, sd over pairs, additive share.

    `wide` is a `by_method` table; pairs that a method lacks are left out for it. Columns pairs,
    mean, low, high, sd (n − 1), additive, additive_by_chance; of one pair the last three are NaN.
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
            "sd": y.std(ddof=1) if len(y) > 1 else np.nan,
            "additive": additive_share(y, pair_ends),
            "additive_by_chance": pair_ends.max() / (len(y) - 1) if len(y) > 1 else np.nan,
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
