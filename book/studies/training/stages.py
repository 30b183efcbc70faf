"""The study's three stages, each a list of units of work and the table that they make.

search: every variant, one seed, merges on the calibration split; `chosen` picks two strengths a
rule. scales: for those and the controls, the scale of the merged task vector that is best on the
calibration split. judge: the chosen ones and the controls, new seeds, on the test split.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mergelib.pipeline.run import each, workers
from mergelib.pipeline.tables import metrics_table
from mergelib.pipeline.task_data import stored_scores
from mergelib.pipeline.units import base, data, summary
from studies.training.scores import Scales, length, merges, read_merges, train
from studies.training.variants import CONTROL, Plan, Variant

NAMED = ["rule", "strength", "steps"]
LOSS = 0.005  # of single-task accuracy, which the second strength chosen may cost
Unit = tuple[Callable, tuple]


@dataclass(frozen=True)
class Work:
    """Where a study keeps its work, and how many units run at a time (0: one a core)."""

    plan: Plan
    store: Path
    jobs: int = 0

    def each(self, label: str, units: Iterable[Unit]) -> None:
        """Run units of work in the store, those of one call independent of each other."""
        jobs = self.jobs or workers(self.plan.run)
        each(label, [(unit, (self.store, *given)) for unit, given in units], jobs)

    def prepare(self) -> None:
        """The encoder and the tasks."""
        base.make(self.store, self.plan.run)
        self.each("tasks", [(data.make, (self.plan.run, task)) for task in self.plan.run.tasks])

    def scored(self, variants: Sequence[Variant], seed: int, part: str, scales: dict) -> None:
        """Train the variants' models and score their merges; `scales` by variant and method."""
        runs = {variant: self.plan.run_of(variant, seed) for variant in variants}
        tasks = self.plan.run.tasks
        self.each("training", [(train, (run, task)) for run in runs.values() for task in tasks])
        self.each(
            "merges",
            [
                (merges, (run, method, part, scales[variant, method]))
                for variant, run in runs.items()
                for method in run.methods
            ],
        )

    def merges_of(self, variant: Variant, seed: int, part: str, scales: dict) -> pd.DataFrame:
        """The merges of a variant and a seed: columns of `scores.merges`, method, and models."""
        of = self.plan.run_of(variant, seed)
        table = pd.concat(
            read_merges(self.store, of, m, part, scales[variant, m]).assign(method=m)
            for m in of.methods
        )
        return table.assign(models=table["group"].str.count(r"\+") + 1)

    def singles(self, variant: Variant, seed: int) -> pd.DataFrame:
        """The single models of a variant and a seed: accuracies on both splits, length of τ."""
        of = self.plan.run_of(variant, seed)
        rows = []
        for task in of.tasks:
            found = stored_scores(self.store, of, task)
            rows.append(
                {
                    "task": task,
                    "zero_shot": found["test"]["zero_shot"],
                    "fine_tuned": found["test"]["fine_tuned"],
                    "fine_tuned_calibration": found["calibration"]["fine_tuned"],
                    "length": length(self.store, of, task),
                }
            )
        return pd.DataFrame(rows)


def _fixed(plan: Plan, variants: Sequence[Variant], scales: Sequence[float]) -> dict:
    """The same scales for every variant, method and number of models."""
    sizes: Scales = {2: scales, len(plan.run.tasks): scales}
    return {(variant, method): sizes for variant in variants for method in plan.run.methods}


def _named(table: pd.DataFrame, variant: Variant, seed: int) -> pd.DataFrame:
    table = table.assign(rule=variant.rule, strength=variant.strength, steps=variant.steps)
    return table.assign(seed=seed)


# ---- Search -------------------------------------------------------------------------------------


def search(work: Work, variants: Sequence[Variant]) -> pd.DataFrame:
    """Variants on the calibration split, by the search's seed.

    Columns: rule, strength, steps, seed, method, models (2 or all), raw (mean accuracy over merges
    and their tasks), fine_tuned (mean of the single models on the same split), length.
    """
    plan, seed = work.plan, work.plan.search_seed
    scales, rows = _fixed(plan, variants, [1.0]), []
    work.scored(variants, seed, "calibration", scales)
    for variant in variants:
        single = work.singles(variant, seed)
        table = work.merges_of(variant, seed, "calibration", scales)
        table = table.groupby(["method", "models"], sort=False)["accuracy"].mean().rename("raw")
        known = {"fine_tuned": single["fine_tuned_calibration"].mean()}
        known["length"] = single["length"].mean()
        rows.append(_named(table.reset_index().assign(**known), variant, seed))
    return pd.concat(rows, ignore_index=True)


def chosen(searched: pd.DataFrame) -> list[Variant]:
    """Two strengths of each rule and number of steps, by merges of pairs; and every control.

    The one of the highest raw accuracy, mean over methods; and the highest among those that lose at
    most LOSS of single-task accuracy against the control of the same steps, or if that is the same
    one or there is none, the second highest. Equal ones: the smaller strength.
    """
    pairs = searched[searched["models"] == 2]
    table = pairs.groupby(NAMED, sort=False)[["raw", "fine_tuned"]].mean().round(9).reset_index()
    control = table[table["rule"] == CONTROL].set_index("steps")["fine_tuned"]
    table["lost"] = table["steps"].map(control) - table["fine_tuned"]
    found = []
    for (name, _), part in table.groupby(["rule", "steps"], sort=False):
        ranked = part.sort_values(["raw", "strength"], ascending=[False, True])
        if name != CONTROL:
            cheap = ranked[ranked["lost"] <= LOSS]
            second = pd.concat([cheap, ranked])[lambda t, best=ranked.index[0]: t.index != best]
            ranked = pd.concat([ranked[:1], second[:1]])
        found += [Variant(*row) for row in ranked[NAMED].itertuples(index=False)]
    return found


# ---- Scales -------------------------------------------------------------------------------------


def scales(work: Work, variants: Sequence[Variant]) -> pd.DataFrame:
    """The chosen variants' merges on the calibration split at every scale of the plan.

    Columns: rule, strength, steps, seed, method, models, scale, raw, best (its own scale or not).
    """
    plan, seed = work.plan, work.plan.search_seed
    plain = _fixed(plan, variants, [1.0])  # which the search has scored
    asked = _fixed(plan, variants, [scale for scale in plan.scales if scale != 1])
    for multiples in (plain, asked):
        work.scored(variants, seed, "calibration", multiples)
    rows = []
    for variant in variants:
        parts = [work.merges_of(variant, seed, "calibration", m) for m in (plain, asked)]
        by = ["method", "models", "scale"]
        found = pd.concat(parts).groupby(by, sort=False)["accuracy"].mean().round(9).rename("raw")
        rows.append(_named(found.reset_index(), variant, seed))
    table = pd.concat(rows, ignore_index=True)
    return table.assign(best=_best(table))


def _best(table: pd.DataFrame) -> pd.Series:
    """The scale of highest raw accuracy; of equal ones the nearest to 1, then the smaller."""
    ranked = table.assign(away=(table["scale"] - 1).abs()).sort_values(
        ["raw", "away", "scale"], ascending=[False, True, True]
    )
    first = ranked.drop_duplicates([*NAMED, "method", "models"]).index
    return pd.Series(table.index.isin(first), index=table.index)


def _both(found: pd.DataFrame) -> dict:
    """Scale 1 and the best one, by variant and method."""
    asked: dict = {}
    for row in found[found["best"]].itertuples(index=False):
        key_of = (Variant(row.rule, row.strength, row.steps), row.method)
        asked.setdefault(key_of, {})[row.models] = sorted({1.0, row.scale})
    return asked


# ---- Judgement ----------------------------------------------------------------------------------


def judge(
    work: Work, found: pd.DataFrame, seed: int, variants: Sequence[Variant]
) -> dict[str, pd.DataFrame]:
    """The chosen variants, trained with one new seed, on the test split.

    `found` from `scales`. Tables merges (task_a, task_b, method, acc_a, acc_b, single_a, single_b,
    and at the best scale best_a, best_b), many (method, task, acc, best: all models at once),
    tasks (`Work.singles`) and metrics (task_a, task_b and the run's metrics), each with rule,
    strength, steps and seed.
    """
    plan, asked = work.plan, _both(found)
    work.scored(variants, seed, "test", asked)
    runs = [plan.run_of(variant, seed) for variant in variants]
    work.each("summaries", [(summary.make, (r, task)) for r in runs for task in r.tasks])
    made: dict[str, list] = {name: [] for name in ("merges", "many", "tasks", "metrics")}
    for variant, run in zip(variants, runs, strict=True):
        single = work.singles(variant, seed)
        table = work.merges_of(variant, seed, "test", asked)
        of = {
            "merges": _pairs(table, single.set_index("task")["fine_tuned"]),
            "many": _many(table, len(run.tasks)),
            "tasks": single,
            "metrics": metrics_table(work.store, run),
        }
        for name, part in of.items():
            made[name].append(_named(part, variant, seed))
    return {name: pd.concat(parts, ignore_index=True) for name, parts in made.items()}


def _at_both(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy at scale 1 as `acc`, at the other one (or again at 1) as `best`."""
    plain = table[table["scale"] == 1].rename(columns={"accuracy": "acc"})
    other = table[table["scale"] != 1].rename(columns={"accuracy": "best"})
    on = ["method", "group", "task"]
    both = plain.drop(columns="scale").merge(other[[*on, "best"]], on=on, how="left")
    return both.assign(best=both["best"].fillna(both["acc"]))


def _pairs(table: pd.DataFrame, single: pd.Series) -> pd.DataFrame:
    both = _at_both(table[table["models"] == 2])
    both[["task_a", "task_b"]] = both["group"].str.split("+", expand=True)
    sides = {}
    for side in ("a", "b"):
        part = both[both["task"] == both[f"task_{side}"]].set_index(["task_a", "task_b", "method"])
        sides |= {f"acc_{side}": part["acc"], f"best_{side}": part["best"]}
    wide = pd.DataFrame(sides).reset_index()
    for side in ("a", "b"):
        wide[f"single_{side}"] = wide[f"task_{side}"].map(single)
    columns = [f"{value}_{side}" for value in ("acc", "single", "best") for side in ("a", "b")]
    return wide[["task_a", "task_b", "method", *columns]]


def _many(table: pd.DataFrame, models: int) -> pd.DataFrame:
    both = _at_both(table[table["models"] == models])
    return both[["method", "task", "acc", "best"]]
