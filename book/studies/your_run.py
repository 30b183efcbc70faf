"""What the tables of any run say, however few its tasks and methods: "A run of your own".

A run has merges.csv and tasks.csv, mostly metrics.csv and meta.json; its tasks' names are a user's.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mergelib.core.errors import MergelibError
from mergelib.core.registry import unknown
from mergelib.core.store import read_json, read_table
from mergelib.forecasting.verdict import THRESHOLD
from mergelib.pairs.inference import interval, permutation_p
from mergelib.pairs.tables import KEYS, MERGE_COLUMNS, assemble, ends, need, outcomes
from mergelib.pairs.targets import target
from studies import describe, ranks
from studies.chance import holm
from studies.display import listed
from studies.spread import bootstrap_mean

BASELINES = ("zero_shot", "one_model")
TASK_COLUMNS = ["task", "n_classes", "n_train", "n_test", "zero_shot", "fine_tuned"]
LEVEL = 0.95  # of the intervals, and one minus it of the tests


@dataclass(frozen=True)
class OwnRun:
    """The tables of a run.

    `merges` without the pairs of tasks that `left_out` names: no test image of theirs is classified
    right by the fine-tuned model, so nothing can be divided by its accuracy.
    """

    merges: pd.DataFrame
    tasks: pd.DataFrame
    metrics: pd.DataFrame | None
    meta: Mapping[str, Any]
    left_out: tuple[str, ...]

    @property
    def methods(self) -> list[str]:
        """Names of the methods, in the table's order."""
        return list(dict.fromkeys(self.merges["method"]))

    @property
    def pairs(self) -> int:
        """How many pairs are merged."""
        return len(self.merges[KEYS].drop_duplicates())

    @property
    def merged(self) -> int:
        """How many tasks are in a merged pair."""
        return len(np.unique(self.merges[KEYS]))

    def origin(self, **counts: int) -> str:
        """One line on where the tables come from, then counts."""
        name = {"source": self.meta["name"]} if "name" in self.meta else {}
        return re.sub(r"[`*$<>\[\]\\]", " ", describe.origin({**self.meta, **name}, **counts))


def read(folder: str | Path) -> OwnRun:
    """Read the tables of a run.

    Raises MergelibError where a table or column is missing, and where no pair is left.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MergelibError(f"there is no folder of tables {folder}: write it with `mergelib run`")
    merges = _table(folder / "merges.csv", [*KEYS, "method"])
    tasks = _table(folder / "tasks.csv", ["task"])
    need(merges, MERGE_COLUMNS, f"{folder / 'merges.csv'}")
    need(tasks, TASK_COLUMNS, f"{folder / 'tasks.csv'}")
    nothing = set()
    for side in ("a", "b"):
        nothing |= set(merges.loc[~(merges[f"single_{side}"] > 0), f"task_{side}"])
    nothing |= set(tasks.loc[~(tasks["fine_tuned"] > 0), "task"])
    out = merges["task_a"].isin(nothing) | merges["task_b"].isin(nothing)
    merges = merges[~out].dropna(subset=["acc_a", "acc_b"]).reset_index(drop=True)
    if not len(merges):
        raise MergelibError(
            f"{folder / 'merges.csv'} has no pair of two models that are right on some test image: "
            "merge more tasks, or train longer"
        )
    files = {name: folder / name for name in ("metrics.csv", "meta.json")}
    measured = _table(files["metrics.csv"], KEYS) if files["metrics.csv"].is_file() else None
    meta = read_json(files["meta.json"]) if files["meta.json"].is_file() else {}
    return OwnRun(merges, tasks, measured, meta, tuple(t for t in tasks["task"] if t in nothing))


def _table(path: Path, names: Sequence[str]) -> pd.DataFrame:
    """A table whose columns `names` are texts as they are, be they NA or 01."""
    frame = read_table(path)
    need(frame, names, str(path))
    texts = pd.read_csv(path, usecols=list(names), dtype=str, keep_default_na=False)
    return frame.assign(**{name: texts[name] for name in names})


# ---- Names --------------------------------------------------------------------------------------


def named(task: str) -> str:
    """A task's name as its user wrote it, in Markdown and in tables: nothing in it is markup."""
    return f"`{' '.join(str(task).replace('`', chr(39)).split()) or ' '}`"


def names(tasks: Sequence[str], most: int = 6) -> str:
    """Some names as words, at most so many: "`a`, `b` and 3 more"."""
    shown = [named(task) for task in tasks[:most]]
    more = len(tasks) - len(shown)
    return listed([*shown, f"{more} more"] if more else shown)


def capital(text: str) -> str:
    """A text as a sentence begins with it."""
    return text[:1].upper() + text[1:]


def ticks(tasks: Sequence[str], most: int = 24) -> list[str]:
    """Names as a figure writes them: cut where long, and a dollar sign opens no formula."""
    short = [task if len(task) <= most else f"{task[: most - 1]}…" for task in map(str, tasks)]
    return [text.replace("$", r"\$") for text in short]


# ---- How many tasks are enough ------------------------------------------------------------------


def tasks_for_intervals(level: float = LEVEL) -> int:
    """The fewest tasks T whose bootstrap gives an interval that no single pair decides.

    A bootstrap sample of T tasks holds one given pair alone, its two tasks in any numbers, with
    probability (2^T − 2) / T^T. If that is not below the tail (1 − level) / 2, the interval ends at
    the value of the best and of the worst pair, whatever the others are.
    """
    tasks = 2
    while (2**tasks - 2) / tasks**tasks >= (1 - level) / 2:
        tasks += 1
    return tasks


def tasks_for_metrics(metrics: int, level: float = LEVEL) -> int:
    """The fewest tasks T whose T! renamings can tell one of so many metrics from chance.

    The smallest p-value of a test by renamed tasks is 1 / T!, and Holm multiplies it by the number
    of metrics: T! >= metrics / (1 − level). At least the tasks that an interval needs.
    """
    tasks = tasks_for_intervals(level)
    while math.factorial(tasks) < metrics / (1 - level):
        tasks += 1
    return tasks


def pairs_of(tasks: int) -> int:
    """How many pairs so many tasks have."""
    return tasks * (tasks - 1) // 2


# ---- Tasks --------------------------------------------------------------------------------------


def regime(tasks: pd.DataFrame, z: float = 2.0) -> pd.DataFrame:
    """Zero-shot and fine-tuned accuracy with binomial standard errors, and whether it was learned.

    Columns of the tasks table, `zero_shot_se`, `fine_tuned_se` and `gained`: fine-tuned above
    zero-shot by more than z standard errors of their difference, as if of different images.
    """
    se = {
        f"{kind}_se": describe.standard_error(tasks[kind], tasks["n_test"])
        for kind in ("zero_shot", "fine_tuned")
    }
    gap = z * np.hypot(se["zero_shot_se"], se["fine_tuned_se"])
    return tasks.assign(**se, gained=tasks["fine_tuned"] - tasks["zero_shot"] > gap)


def of_head(meta: Mapping[str, Any]) -> str:
    """A sentence on what a task's head is made of: class names, or images."""
    head = meta.get("head", {})
    made = {
        "prototypes": "the class means of its features",
        "probe": "a logistic regression on its features",
    }
    if head:
        how = made.get(head.get("kind"), "images and their labels")
        split = f"{head['split']} images" if "split" in head else "images"
        return f"A task's head is made of {split}, {how}, so it has seen labels of these."
    if str(meta.get("backbone", "")).startswith("timm/"):  # an encoder alone
        return "It has no text tower: a task's head is made of images, so it has seen their labels."
    return "A task's head is made of the names of its classes alone."


# ---- Methods ------------------------------------------------------------------------------------


def summary(run: OwnRun, draws: int, seed: int) -> pd.DataFrame:
    """What every method keeps, and what there is without merging: index method or baseline.

    `pairs`, means over them `normalized` and `raw`, the 95 % task-bootstrap interval of the first
    (`low`, `high`; NaN below `tasks_for_intervals`). Baselines as `describe.not_merging` has them.
    """
    wide = {value: with_baselines(run, value) for value in describe.VALUES}
    rows = {}
    for method, column in wide["normalized"].items():
        known = column.dropna()
        numbered = ends(known.index)
        low = high = math.nan
        if len(np.unique(numbered)) >= tasks_for_intervals():
            drawn = bootstrap_mean(known.to_numpy(np.float64), numbered, draws, seed)
            low, high = map(float, interval(drawn, LEVEL))
        rows[method] = {
            "pairs": len(known),
            "normalized": known.mean(),
            "low": low,
            "high": high,
            "raw": wide["raw"][method].mean(),
        }
    return pd.DataFrame.from_dict(rows, orient="index").astype({"pairs": int})


def with_baselines(run: OwnRun, value: str = "normalized") -> pd.DataFrame:
    """One row a pair, one column a baseline and a method."""
    wide = describe.by_method(run.merges, value)
    return pd.concat([describe.not_merging(wide.index, run.tasks, value), wide], axis=1)


def ranked(table: pd.DataFrame, run: OwnRun) -> list[str]:
    """The run's methods of a `summary`, the best first; equal ones in the table's order."""
    kept = table.loc[run.methods, "normalized"].round(9)
    return list(kept.sort_values(ascending=False, kind="stable").index)


def choose(method: str, best: Sequence[str]) -> str:
    """The method to look at closely: the one asked for, or the first of `best`.

    Raises MergelibError for one that the run does not have.
    """
    if method and method not in best:
        raise MergelibError(unknown("method", method, best))
    return method or best[0]


def leads(run: OwnRun, best: str, draws: int, seed: int) -> pd.DataFrame | None:
    """How far the other methods stay behind `best`, pair by pair: `describe.compared` without it.

    None where there is no other, or there are too few tasks for an interval.
    """
    if len(run.methods) < 2 or run.merged < tasks_for_intervals():
        return None
    found = describe.compared(outcomes(run.merges), "normalized", best, draws, seed)
    return found.drop(index=best)


# ---- Pairs --------------------------------------------------------------------------------------


def pair_table(run: OwnRun, method: str) -> pd.DataFrame:
    """Every pair by one method, the best first.

    KEYS, `pair` in words, `kept_a` and `kept_b` (accuracy ÷ the expert's), their mean `normalized`,
    `worse` of both, `raw`, `zero_shot` (what the pretrained model has, normalized), `well` (either
    side keeps THRESHOLD of its own) and `pays` (better than the pretrained model on both tasks).
    """
    frame = outcomes(run.merges[run.merges["method"] == method])
    frame = frame.merge(
        with_baselines(run)["zero_shot"].rename_axis(KEYS).reset_index(), on=KEYS, how="left"
    )
    a, b = frame["acc_a"] / frame["single_a"], frame["acc_b"] / frame["single_b"]
    frame = frame.assign(
        pair=[
            f"{named(one)} + {named(two)}"
            for one, two in zip(frame["task_a"], frame["task_b"], strict=True)
        ],
        kept_a=a,
        kept_b=b,
        worse=np.minimum(a, b),
        well=np.minimum(a, b).round(9) >= THRESHOLD,
        pays=frame["normalized"].round(9) > frame["zero_shot"].round(9),
        order=-frame["normalized"].round(9),
    )
    return frame.sort_values(["order", *KEYS], kind="stable", ignore_index=True)


def by_task(pairs: pd.DataFrame) -> pd.DataFrame:
    """What each task keeps with its partners in a `pair_table`, the least first.

    task, `partners` (how many), `kept` (mean), `least` and the `partner` with which that is, `left`
    (what its partners keep beside it, mean).
    """
    sides = [
        pd.DataFrame(
            {
                "task": pairs[f"task_{x}"],
                "partner": pairs[f"task_{y}"],
                "kept": pairs[f"kept_{x}"],
                "left": pairs[f"kept_{y}"],
            }
        )
        for x, y in ("ab", "ba")
    ]
    rows = []
    for task, part in pd.concat(sides).groupby("task", sort=True):
        part = part.assign(shown=part["kept"].round(9)).sort_values(["shown", "partner"])
        rows.append(
            {
                "task": task,
                "partners": len(part),
                "kept": part["kept"].mean(),
                "least": part["kept"].iloc[0],
                "partner": part["partner"].iloc[0],
                "left": part["left"].mean(),
            }
        )
    frame = pd.DataFrame(rows).assign(order=lambda t: t["kept"].round(9))
    return frame.sort_values(["order", "task"], kind="stable", ignore_index=True)


# ---- Metrics ------------------------------------------------------------------------------------


def measured(run: OwnRun) -> list[str]:
    """The metrics that every pair has, and that differ where there is more than one pair."""
    if run.metrics is None:
        return []
    numbers = run.metrics.drop(columns=KEYS).select_dtypes("number")
    numbers = numbers.replace([np.inf, -np.inf], np.nan).dropna(axis=1)
    flat = ranks.constant(numbers.to_numpy(np.float64).T) & (len(numbers) > 1)
    return list(numbers.columns[~flat])


def rank_correlations(run: OwnRun, method: str, draws: int, seed: int) -> pd.DataFrame | None:
    """Spearman's rho of each metric with what a method keeps, the strongest first.

    Index metric, and `zero_shot` for what the pretrained model has; rho, its 95 % task-bootstrap
    interval low and high, p by renamed tasks (two-sided) and p_holm over the metrics; `beyond`,
    the lower end of the interval of |rho| less that of `zero_shot`. None below `tasks_for_metrics`
    tasks and their pairs.
    """
    columns = measured(run)
    least = tasks_for_metrics(len(columns))
    kept = run.merges[run.merges["method"] == method]
    if not columns or run.merged < least or len(kept) < pairs_of(least):
        return None
    table = run.metrics[[*KEYS, *columns]]
    pairs = assemble(table, kept, [method], keep_incomplete=True)
    y = target(pairs, "normalized")[:, 0]
    index = pd.MultiIndex.from_arrays([np.array(pairs.tasks)[side] for side in pairs.ends.T])
    zero = describe.not_merging(index, run.tasks)["zero_shot"].to_numpy(np.float64)
    at_zero = np.abs(ranks.bootstrap_rho(zero, y, pairs.ends, draws, seed))
    renamings = max(draws, math.ceil(2 * len(columns) / (1 - LEVEL)))  # fewer give no small p
    rows = {}
    for name, x in [*zip(pairs.metrics, pairs.X.T, strict=True), ("zero_shot", zero)]:
        rho = float(ranks.rho(x, y))
        drawn = ranks.bootstrap_rho(x, y, pairs.ends, draws, seed)
        null = np.abs(ranks.qap_rho(x, y, pairs.ends, renamings, seed))
        rows[name] = {
            "rho": rho,
            **dict(zip(("low", "high"), map(float, interval(drawn, LEVEL)), strict=True)),
            "p": float(permutation_p(np.abs(rho), null)),
            "beyond": float(interval(np.abs(drawn) - at_zero, LEVEL)[0]),
        }
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame["p_holm"] = np.nan
    frame.loc[columns, "p_holm"] = holm(frame.loc[columns, "p"].to_numpy())
    frame["order"] = -frame["rho"].abs().round(9)
    return frame.sort_values("order", kind="stable")
