"""Studies of penalties in fine-tuning in one kind of table: the benchmark's and the released one.

Every merge belongs to a `variant`, the penalty as far as it has a gradient, and to a `run`, one
training of it. Released runs whose penalty has no gradient are re-trainings without one: together
they are the control (`INERT`). What was downloaded instead of trained is a variant of its own.
"""

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mergelib.core.errors import MergelibError
from mergelib.core.store import read_json, read_table
from mergelib.pairs.tables import BENCHMARK, KEYS, outcomes
from mergelib.published.released import (
    BACKBONES,
    COMMIT,
    METHODS,
    REPOSITORY,
    read_accuracies,
    read_merges,
)
from studies.gains import PAIR, gains, summarize_gains

DOWNLOADED = "downloaded"
INERT = "no gradient"
SETTING = "ViT-B-16_AdamW"  # the one setting with regularized re-trainings
VALUES = ("raw", "fixed", "own")

# penalty in a folder's name: whether its term has a gradient in the weights (arXiv 2601.22285)
PENALTIES = {
    "moderate_update": True,  # |w - w0|^2
    "grad_magnitude": False,  # |g|^2 of the gradient that the last backward pass stored
    "tv_subspace": True,  # part of w - w0 outside the top singular directions of w0
    "gargiulo": False,  # |I - U0'U|^2 of singular vectors found without a gradient
}
_PENALTY = re.compile(
    rf"({'|'.join(PENALTIES)})(?:_(uv|u|v)(?=_|$))?(?:_(\d[\d.]*(?:e-\d+)?)(?=_|$))?(?:_|$)"
)

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
    """Merges and single models of a study of penalties.

    every: task_a, task_b, method, variant, run, acc_a, acc_b, base_a, base_b (single-task
    accuracies of the base), raw (mean accuracy), fixed and own (mean of the accuracies divided by
    those of the base and of the run's own single models; NaN where those are not known).
    merges: the same without copies (`without_copies`). tasks: task, variant, run, fine_tuned.
    `control`: the variant trained by the same code without a penalty that acts; `base`: what the
    study subtracted, the control or what was downloaded. `paired`: runs of the same name share
    seed and batches. `shown`: the variant whose gain over the base is followed to single tasks.
    """

    every: pd.DataFrame

    merges: pd.DataFrame
    tasks: pd.DataFrame
    meta: dict[str, Any]
    control: str
    base: str
    paired: bool
    shown: str

    def gains(self, value: str = "fixed") -> pd.DataFrame:
        """Gains of the variants with a penalty that acts over the control; see `mergelib.gains`."""
        trained = self.merges[self.merges["variant"] != DOWNLOADED]
        return gains(trained, value, self.control, paired=self.paired)


def read_study(source: str, study: str | Path, released: str | Path) -> Study:
    """The study of a source: "benchmark" reads the folder `study`, else the checkout `released`.

    Raises MergelibError for a released setting without regularized runs and as readers of files do.
    """
    if source == BENCHMARK:
        return _benchmark(Path(study))
    if source != SETTING:
        raise MergelibError(f"{source} has no regularized runs: give {BENCHMARK} or {SETTING}")
    return _released(Path(released))


def _benchmark(folder: Path) -> Study:
    merges, tasks = (read_table(folder / f"{name}.csv") for name in ("merges", "tasks"))
    meta = read_json(folder / "meta.json")
    strengths = sorted(tasks["strength"].unique())
    merges, tasks = (
        frame.assign(
            variant=[f"λ = {value:g}" for value in frame["strength"]], run=frame["seed"].map(str)
        )
        for frame in (
            table.sort_values("strength", kind="stable", ignore_index=True)
            for table in (outcomes(merges).rename(columns={"normalized": "own"}), tasks)
        )
    )
    names = [f"λ = {value:g}" for value in strengths]
    control = tasks[tasks["variant"] == "λ = 0"].set_index(["task", "run"])["fine_tuned"]
    if control.empty or len(names) < 2:
        raise MergelibError(f"{folder} holds the strengths {strengths}: it needs 0 and one more")
    for side in ("a", "b"):
        index = pd.MultiIndex.from_frame(merges[[f"task_{side}", "run"]])
        merges[f"base_{side}"] = control.reindex(index).to_numpy()
    every = _valued(merges)
    return Study(every, every, tasks, meta, names[0], names[0], True, names[1])


def _valued(merges: pd.DataFrame) -> pd.DataFrame:
    shares = [merges[f"acc_{side}"] / merges[f"base_{side}"] for side in ("a", "b")]
    return merges.assign(fixed=(shares[0] + shares[1]) / 2)


def named(suffix: str) -> tuple[str, str]:
    """Variant and run of a released folder name without its method, or of an accs_*.json name.

    "tv_subspace_u_0.0001_gargiulo_u_0.0001" gives "tv_subspace_u 0.0001" (gargiulo has no
    gradient) and the whole as run. Raises MergelibError for a name of another form.
    """
    if not suffix:
        return DOWNLOADED, DOWNLOADED
    rest = re.sub(r"(?<=_)0_(?=\d)", "0.", suffix)  # accs_*.json write 0_001
    acting, every = [], []
    while rest:
        found = _PENALTY.match(rest)
        if not found:
            raise MergelibError(f"{suffix!r} names no penalty of {', '.join(PENALTIES)}")
        penalty, kind, strength = found.groups()
        name = "_".join(filter(None, (penalty, kind))) + (f" {strength}" if strength else "")
        every.append(name)
        acting += [name] if PENALTIES[penalty] else []
        rest = rest[found.end() :]
    return " + ".join(acting) or INERT, " + ".join(every)


def _order(run: str) -> tuple:
    """Downloaded first, then by penalty, the strongest first."""
    penalty, _, rest = run.partition(" ")
    strength = float(rest.split(" ")[0]) if rest[:1].isdigit() else 0.0
    return run != DOWNLOADED, penalty, " + " in run, -strength


def _released(root: Path) -> Study:
    results = root / "results"
    singles: dict[tuple[str, str], dict[str, float]] = {}
    backbone = BACKBONES[SETTING]
    for path in sorted((results / "finetuning").glob("accs*.json")):
        suffix = path.stem.removeprefix("accs").removeprefix("_")
        if suffix == "baseline":  # the SGD run, whose models were not merged
            continue
        singles[named(suffix)] = read_accuracies(path).get(backbone, {})
    base = singles.get((DOWNLOADED, DOWNLOADED))
    if not base:
        raise MergelibError(f"{results / 'finetuning' / 'accs.json'} holds no {backbone}")
    parts = []
    for path in sorted((results / SETTING).glob("*/all_pairwise_summary_N20.json")):
        folder = path.parent.name
        method = next(m for m in METHODS if f"{folder}_".startswith(f"{m}_"))
        variant, run = named(folder.removeprefix(method).removeprefix("_"))
        part = read_merges(path, method, base).assign(variant=variant, run=run)
        part = part.rename(columns={"single_a": "base_a", "single_b": "base_b"})
        own = singles.get((variant, run), {})
        for side in ("a", "b"):
            part[f"own_{side}"] = part[f"task_{side}"].map(own).astype(float)
        parts.append(part.assign(order=[(METHODS.index(method), _order(run))] * len(part)))
    parts.sort(key=lambda part: part["order"].iloc[0])
    merges = _valued(pd.concat(parts, ignore_index=True).drop(columns=["order", "seed"]))
    merges["raw"] = (merges["acc_a"] + merges["acc_b"]) / 2
    own = [merges[f"acc_{side}"] / merges[f"own_{side}"] for side in ("a", "b")]
    merges["own"] = (own[0] + own[1]) / 2
    rows = [
        (task, *key, accuracies[task])
        for key, accuracies in sorted(singles.items(), key=lambda item: _order(item[0][1]))
        for task in base
    ]
    meta = {
        "source": "released tables",
        "repository": f"{REPOSITORY}@{COMMIT}",
        "paper": "arXiv 2601.22285",
        "setting": SETTING,
        "backbone": backbone,
        "edition": "paper",
    }
    tasks = pd.DataFrame(rows, columns=["task", "variant", "run", "fine_tuned"])
    unique = without_copies(merges)
    return Study(merges, unique, tasks, meta, INERT, DOWNLOADED, False, INERT)


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


def many_tasks(source: str, released: str | Path) -> pd.DataFrame:
    """Merges of 8 and of all 20 released models: tasks, method, run, normalized, gain, same_bits.

    Normalized by the downloaded models' accuracies; `gain` over the merge of the downloaded models;
    `same_bits`: every accuracy equals that merge's bit for bit. Empty for the benchmark, which
    merges pairs.
    """
    rows = []
    root = Path(released) / "results" / SETTING
    for path in sorted(root.glob("*/*.json")) if source != BENCHMARK else []:
        if path.stem not in ("8", "20"):
            continue
        held = read_json(path)
        folder = path.parent.name
        method = next(m for m in METHODS if f"{folder}_".startswith(f"{m}_"))
        run = named(folder.removeprefix(method).removeprefix("_"))[1]
        try:
            mean = held["avg"][0]["normalized_acc/test/avg"]
            bits = tuple(held[t][0][f"acc/test/{t}"] for t in held if t != "avg")
        except (KeyError, IndexError, TypeError) as error:
            raise MergelibError(f"{path} is not of the released shape ({error})") from None
        rows.append((int(path.stem), method, run, mean, bits))
    frame = pd.DataFrame(rows, columns=["tasks", "method", "run", "normalized", "bits"])
    keys = ["tasks", "method"]
    start = frame[frame["run"] == DOWNLOADED].drop(columns="run")
    joined = frame[frame["run"] != DOWNLOADED].merge(start, on=keys, suffixes=("", "_start"))
    joined["gain"] = joined["normalized"] - joined["normalized_start"]
    joined["same_bits"] = (joined["bits"] == joined["bits_start"]).astype(bool)
    return joined[[*keys, "run", "normalized", "gain", "same_bits"]]


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
    first = [name for name in (study.base, study.control) if name in rows]
    return frame.loc[list(dict.fromkeys([*first, *frame.index]))]


def published_gains(study: Study, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """The published gains of `PUBLISHED_RUN` over the downloaded models beside the files'.

    version, method, published, files (difference of the two files' means, as published), common
    (over the pairs that both have) with its 95 % task-bootstrap interval low, high, and pairs;
    in fractions; "mean" over methods on the pairs that all of them have. Empty where nothing was
    published.
    """
    columns = ["version", "method", "published", "files", "common", "low", "high", "pairs"]
    held = study.every[study.every["run"].isin([PUBLISHED_RUN, DOWNLOADED])]
    if not (held["run"] == PUBLISHED_RUN).any():
        return pd.DataFrame(columns=columns)
    means = held.groupby(["method", "run"])["fixed"].mean().unstack("run")
    files = means[PUBLISHED_RUN] - means[DOWNLOADED]
    table = gains(held.assign(variant=held["run"]), "fixed", DOWNLOADED, paired=False)
    rows = []
    for version, claimed in PUBLISHED.items():
        methods = [name for name in claimed if name != "mean"]
        wide = table.pivot(index=list(PAIR), columns="method", values="gain")[methods]
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
    """Gain of the control, no penalty acting, over the base: a placebo's.

    Per method: runs, mean with its 95 % task-bootstrap interval low, high, and run_min, run_max;
    see `mergelib.gains.summarize_gains`. Empty where the control is the base.
    """
    columns = ["method", "runs", "mean", "low", "high", "run_min", "run_max"]
    if study.control == study.base:
        return pd.DataFrame(columns=columns)
    held = study.merges[study.merges["variant"].isin([study.control, study.base])]
    table = gains(held, "fixed", study.base, paired=study.paired)
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
    """Gain of `study.shown` over `study.base`, task by task: rows tasks, columns methods.

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
    table = gains(long, "share", study.base, ["task", *KEYS], study.paired)
    table = table[table["variant"] == study.shown]
    each = table.groupby(["task", "method"], sort=False)["gain"].mean().unstack("method")
    each = each[list(dict.fromkeys(study.merges["method"]))]
    each = each.loc[each.mean(axis=1).sort_values(ascending=False, kind="stable").index]
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
        gains(known, value, study.base, paired=study.paired)
        .groupby(["method", "variant"], sort=False)
        .agg(**{"runs": ("run", "nunique"), value: ("gain", "mean")})
        for value in VALUES
    ]
    return pd.concat([found[0], *(part.drop(columns="runs") for part in found[1:])], axis=1)
