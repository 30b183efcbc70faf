"""The released study of penalties in fine-tuning, and what is in its files.

Every merge belongs to a `variant`, the penalty as far as it has a gradient, and to a `run`, one
training of it. Released runs whose penalty has no gradient are re-trainings without one: together
they are the control (`INERT`). What was downloaded instead of trained is a variant of its own, the
base that the study subtracts (`DOWNLOADED`).
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mergelib.core.errors import MergelibError
from mergelib.pairs.tables import KEYS, pair_accuracy
from studies.gains import gains, summarize_gains
from studies.inputs import PUBLISHED as FROZEN
from studies.retrainings import DOWNLOADED, INERT, SETTING, Retrainings, read_retrainings

VALUES = ("raw", "fixed", "own")
# published mean gains in points (arXiv 2601.22285, first and eighth version), grad_magnitude 1
PUBLISHED_RUN = "grad_magnitude 1"
PUBLISHED = {
    "v1": {"weight_avg": 0.62, "arithmetic": 0.72, "tsv": 0.39, "isotropic": 0.48, "mean": 0.55},
    "v8": {
        "weight_avg": 0.39,
        "arithmetic": 0.72,
        "tsv": 0.39,
        "ties": -0.11,
        "dare": 0.65,
        "mean": 0.41,
    },
}


@dataclass(frozen=True)
class Study:
    """Merges and single models of the re-trained models.

    every: task_a, task_b, method, variant, run, acc_a, acc_b, base_a, base_b (single-task
    accuracies of the downloaded models), raw (mean accuracy), fixed and own (mean of the accuracies
    divided by those of the downloaded and of the run's own single models; NaN where those are not
    known). merges: the same without copies (`without_copies`). tasks: task, variant, run,
    fine_tuned.
    """

    every: pd.DataFrame
    merges: pd.DataFrame
    tasks: pd.DataFrame
    meta: dict[str, Any]

    def gains(self, value: str = "fixed") -> pd.DataFrame:
        """Gains of the variants with a penalty that acts over the control; see `studies.gains`."""
        trained = self.merges[self.merges["variant"] != DOWNLOADED]
        return gains(trained, value, INERT, paired=False)


def read_study(published: str | Path = FROZEN, setting: str = SETTING) -> Study:
    """The released study in the frozen tables.

    Raises MergelibError for a setting without regularized runs and as readers of files do.
    """
    if setting != SETTING:
        raise MergelibError(f"{setting} has no regularized runs: give {SETTING}")
    return released_study(read_retrainings(Path(published) / setting))


def released_study(held: Retrainings) -> Study:
    """The re-trainings as a study: over the downloaded models, beside the placebo."""
    keys = ["task", "variant", "run"]
    single = held.singles.set_index(keys)["fine_tuned"]
    merges = held.merges.copy()
    for side in ("a", "b"):
        task = merges[f"task_{side}"]
        base = single[:, DOWNLOADED, DOWNLOADED]
        merges[f"base_{side}"] = task.map(base).astype(float)
        trained = pd.MultiIndex.from_arrays([task, merges["variant"], merges["run"]])
        merges[f"own_{side}"] = single.reindex(trained).to_numpy()
    for value, unit in (("fixed", "base"), ("raw", None), ("own", "own")):
        merges[value] = pair_accuracy(merges, unit)
    unique = without_copies(merges)
    return Study(merges, unique, held.singles, held.meta)


# ---- Files that are copies of each other --------------------------------------------------------


def shared_results(merges: pd.DataFrame, least: float = 0.5) -> pd.DataFrame:
    """Two runs of a method whose accuracies are equal, bit for bit, in a share `least` of pairs.

    Columns method, run_a, run_b, equal, pairs. Independent trainings agree in few pairs or none.
    """
    rows = []
    for method, part in merges.groupby("method", sort=False):
        labels = list(dict.fromkeys(zip(part["variant"], part["run"], strict=True)))
        wide = part.pivot(index=KEYS, columns=["variant", "run"], values=["acc_a", "acc_b"])
        a, b = (wide[side][labels].to_numpy() for side in ("acc_a", "acc_b"))
        for i, j in itertools.combinations(range(len(labels)), 2):
            pairs = int((~np.isnan(a[:, i] + a[:, j])).sum())
            equal = int(((a[:, i] == a[:, j]) & (b[:, i] == b[:, j])).sum())
            if pairs and equal >= least * pairs:
                rows.append((method, _label(*labels[i]), _label(*labels[j]), equal, pairs))
    return pd.DataFrame(rows, columns=["method", "run_a", "run_b", "equal", "pairs"])


def _label(variant: str, run: str) -> str:
    return f"{variant}, run {run}" if run.isdigit() else run


def without_copies(merges: pd.DataFrame) -> pd.DataFrame:
    """The merges without the runs whose file repeats most of an earlier run's of the same method.

    So no mean counts one result twice. See `shared_results`.
    """
    found = shared_results(merges)
    again = set(zip(found["method"], found["run_b"], strict=True))
    copied = [key in again for key in zip(merges["method"], merges["run"], strict=True)]
    return merges[~np.array(copied)].reset_index(drop=True)


# ---- What the study claims, and what it shows ---------------------------------------------------


def contents(study: Study) -> pd.DataFrame:
    """Per variant: runs, methods and pairs that are merged, single_models (runs that tell them)."""
    told = study.tasks.groupby("variant")["run"].nunique()
    rows = {
        variant: {
            "runs": part["run"].nunique(),
            "methods": part["method"].nunique(),
            "pairs": len(part[KEYS].drop_duplicates()),
            "single_models": int(told.get(variant, 0)),
        }
        for variant, part in study.every.groupby("variant", sort=False)
    }
    frame = pd.DataFrame.from_dict(rows, orient="index")
    first = [name for name in (DOWNLOADED, INERT) if name in rows]
    return frame.loc[list(dict.fromkeys([*first, *frame.index]))]


def published_gains(study: Study, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """The published gains of `PUBLISHED_RUN` over the downloaded models beside the files'.

    version, method, published, files (difference of the two files' means, as published), common
    (over the pairs that both have) with its 95 % task-bootstrap interval low, high, and pairs;
    in fractions; "mean" over methods on the pairs that all of them have.
    """
    columns = ["version", "method", "published", "files", "common", "low", "high", "pairs"]
    held = study.every[study.every["run"].isin([PUBLISHED_RUN, DOWNLOADED])]
    means = held.groupby(["method", "run"])["fixed"].mean().unstack("run")
    files = means[PUBLISHED_RUN] - means[DOWNLOADED]
    table = gains(held.assign(variant=held["run"]), "fixed", DOWNLOADED, paired=False)
    rows = []
    for version, claimed in PUBLISHED.items():
        methods = [name for name in claimed if name != "mean"]
        wide = table.pivot(index=KEYS, columns="method", values="gain")[methods]
        whole = wide.dropna().mean(axis=1).rename("gain").reset_index()
        joint = whole.assign(method="mean", variant=INERT, run=PUBLISHED_RUN)
        both = pd.concat([table[table["method"].isin(methods)], joint])
        found = summarize_gains(both, draws=draws, seed=seed).set_index("method")
        for name, gain in claimed.items():
            row = found.loc[name]
            from_files = files[methods].mean() if name == "mean" else files[name]
            common = (row["mean"], row["low"], row["high"], int(row["units"]))
            rows.append((version, name, gain / 100, from_files, *common))
    return pd.DataFrame(rows, columns=columns)


def control_over_base(study: Study, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Gain of the control, no penalty acting, over the downloaded models: a placebo's.

    Per method: runs, mean with its 95 % task-bootstrap interval low, high, and run_min, run_max;
    see `studies.gains.summarize_gains`.
    """
    columns = ["method", "runs", "mean", "low", "high", "run_min", "run_max"]
    held = study.merges[study.merges["variant"].isin([INERT, DOWNLOADED])]
    table = gains(held, "fixed", DOWNLOADED, paired=False)
    return summarize_gains(table, draws=draws, seed=seed)[columns]


def beside_control(active: pd.DataFrame, again: pd.DataFrame) -> pd.DataFrame:
    """Summaries of the variants' gains beside the control's own runs.

    `active` from `summarize_gains`; `again` its runs against each other (by run). Adds control_runs
    and lowest, highest of their means, and `beyond`: "above" or "below" all of them, else "within".
    Beyond K exchangeable runs lies one more with probability 2 / (K + 1).
    """
    spread = again.groupby("method", sort=False)["mean"].agg(["count", "min", "max"])
    joined = active.join(
        spread.set_axis(["control_runs", "lowest", "highest"], axis=1), on="method", how="inner"
    )
    beyond = np.select(
        [joined["mean"] > joined["highest"], joined["mean"] < joined["lowest"]],
        ["above", "below"],
        "within",
    )
    return joined.assign(beyond=beyond)


def by_task(study: Study) -> pd.DataFrame:
    """Gain of the control over the downloaded models, task by task: rows tasks, columns methods.

    Mean over a task's pairs and runs of its accuracy in the merge divided by the baseline's single
    model's, minus the same of the base. Sorted by the mean over methods, largest first; then the
    rows "all" and "all but the first two".
    """
    sides = [
        study.merges[["method", "variant", "run", *KEYS]].assign(
            task=study.merges[f"task_{side}"],
            share=study.merges[f"acc_{side}"] / study.merges[f"base_{side}"],
        )
        for side in ("a", "b")
    ]
    long = pd.concat(sides, ignore_index=True)
    table = gains(long, "share", DOWNLOADED, ["task", *KEYS], paired=False)
    table = table[table["variant"] == INERT]
    each = table.groupby(["task", "method"], sort=False)["gain"].mean().unstack("method")
    each = each[list(dict.fromkeys(study.merges["method"]))]
    mean = each.mean(axis=1).round(9)  # a tie in all printed digits goes by name
    each = each.loc[sorted(each.index, key=lambda task: (-mean[task], task))]
    return pd.concat(
        [
            each,
            each.mean().to_frame("all").T,
            each.iloc[2:].mean().to_frame("all but the first two").T,
        ]
    ).rename_axis(index=None, columns=None)


def denominators(study: Study) -> pd.DataFrame:
    """Mean gain over the base by what the merges' accuracy is divided by.

    Per method and variant: runs, and raw (nothing), fixed (the baseline's single models), own (the
    run's own); only runs whose own single models are known. In fractions.
    """
    known = study.merges[study.merges["own"].notna()]
    found = [
        gains(known, value, DOWNLOADED, paired=False)
        .groupby(["method", "variant"], sort=False)
        .agg(**{"runs": ("run", "nunique"), value: ("gain", "mean")})
        for value in VALUES
    ]
    return pd.concat([found[0], *(part.drop(columns="runs") for part in found[1:])], axis=1)


def published_run(study: Study) -> pd.DataFrame:
    """The run of the published gain among the control's: gains over the base, mean over pairs.

    Per method: published, and lowest, highest of the control's other runs.
    """
    held = study.merges[study.merges["variant"].isin([INERT, DOWNLOADED])]
    found = gains(held, "fixed", DOWNLOADED, paired=False)
    means = found.groupby(["method", "run"], sort=False)["gain"].mean().unstack("run")
    means = means.loc[list(dict.fromkeys(found["method"]))]
    others = means.drop(columns=PUBLISHED_RUN)
    return pd.DataFrame(
        {
            "published": means[PUBLISHED_RUN],
            "lowest": others.min(axis=1),
            "highest": others.max(axis=1),
        }
    )
