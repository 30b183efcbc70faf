"""Published figures joined with ours: one row for each figure and each way of getting at it."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t as student

from mergelib.core.errors import MergelibError
from mergelib.core.store import read_table
from mergelib.metrics.registry import categories
from mergelib.published.released import SETTINGS, metric_names
from studies.reproduction.own import KEYS
from studies.reproduction.runs import RUNS, Data, left_out, read_all
from studies.reproduction.stored import check_all, stored_networks
from studies.reproduction.summaries import all_summaries

EXACT = "exact"
ROUNDING = "agrees within rounding"
SPREAD = "within the seeds' spread"
DIFFERS = "differs"
IMPOSSIBLE = "cannot be reproduced"
VERDICTS = (EXACT, ROUNDING, SPREAD, DIFFERS, IMPOSSIBLE)

COEFFICIENTS, TABLES, STATISTIC = "stored coefficients", "released tables", "stored statistic"
AVERAGED = ("r_fold_mean", "r_concatenated", "n_metrics", "coefficient", "percent", "gain")
NO_METHOD = ("all", "none")
COLUMNS = ["id", "where", *KEYS, "value", "digits", "seeds", "note"]


def read_figures(path: Path) -> pd.DataFrame:
    """The printed figures: id, where, KEYS, value, digits (decimals printed), seeds (how many runs
    stand behind it), note. Raises MergelibError for a missing column or a repeated id."""
    frame = read_table(Path(path))
    missing = [name for name in COLUMNS if name not in frame]
    if missing:
        raise MergelibError(f"{path} has no column {', '.join(missing)}: see its first line")
    if frame["id"].duplicated().any():
        raise MergelibError(
            f"{path} repeats the id {frame['id'][frame['id'].duplicated()].iloc[0]}"
        )
    text = frame[["item", "note"]].fillna("").astype(str)
    return frame.assign(item=text["item"], note=text["note"])[COLUMNS]


def read_own(path: Path, seeds: int | None = None) -> pd.DataFrame:
    """Our own frozen fits (`studies.reproduction.own`), those of the first `seeds` seeds."""
    frame = read_table(Path(path))
    frame["item"] = frame["item"].fillna("").astype(str)
    return frame if seeds is None else frame[frame["seed"] < seeds].reset_index(drop=True)


def judge(
    value: float,
    digits: int,
    ours: float,
    sd: float = math.nan,
    seeds: int = 1,
    published_seeds: int = 1,
) -> str:
    """The verdict on a printed figure `value` with `digits` decimals.

    Without `sd`, ours is determined by the released data. EXACT: it rounds to the printed figure.
    ROUNDING: it is off by no more than one unit of the last printed digit. Else DIFFERS.
    With `sd` over `seeds` runs of ours, SPREAD: off by at most t sd sqrt(1/seeds +
    1/published_seeds), t the 97.5 % point of Student's t with seeds - 1 degrees of freedom, plus
    half a printed unit; so one fit in twenty of the same kind is to fall outside. Else DIFFERS.
    IMPOSSIBLE: ours is undefined.
    """
    if math.isnan(ours):
        return IMPOSSIBLE
    unit, off = 10.0**-digits, abs(ours - value)
    tiny = 1e-9 * max(1.0, abs(value))
    if math.isnan(sd):
        if off <= unit / 2 + tiny:
            return EXACT
        return ROUNDING if off <= unit + tiny else DIFFERS
    spread = student.ppf(0.975, seeds - 1) * sd * math.sqrt(1 / seeds + 1 / published_seeds)
    return SPREAD if off <= spread + unit / 2 + tiny else DIFFERS


def derive(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` (KEYS, value, perhaps seed) with what the paper derives from such values.

    method "average", "lowest" and "highest" over the methods; quantity "change in r" of the runs
    "without CATEGORY" from the run with all metrics ("l1", in v1 "dense").
    """
    extra = ["seed"] if "seed" in frame else []
    rest = [k for k in KEYS if k != "method"] + extra
    single = frame[~frame["method"].isin(NO_METHOD)]
    averaged = single[single["quantity"].isin(AVERAGED)].groupby(rest, sort=False)["value"]
    extremes = single[single["quantity"] == "r_fold_mean"].groupby(rest, sort=False)["value"]
    frame = pd.concat(
        [
            frame,
            averaged.mean().reset_index().assign(method="average"),
            extremes.min().reset_index().assign(method="lowest"),
            extremes.max().reset_index().assign(method="highest"),
        ],
        ignore_index=True,
    )
    r = frame[frame["quantity"] == "r_fold_mean"]
    full = ((r["version"] == "v8") & (r["run"] == "l1")) | (r["run"] == "dense")
    keys = ["version", "setting", "method", *extra]
    base = r[full].set_index(keys)["value"].rename("base")
    change = r[r["run"].str.startswith("without ")].join(base, on=keys, how="inner")
    change = change.assign(value=change["value"] - change["base"], quantity="change in r")
    return pd.concat([frame, change.drop(columns="base")], ignore_index=True)


def summarize_own(own: pd.DataFrame) -> pd.DataFrame:
    """Our own fits over their seeds: KEYS, ours (mean), ours_sd (n - 1), our_seeds, how.

    The run "l1" also stands for the published "l1, ten seeds".
    """
    setting = SETTINGS[0]
    main = (own["version"] == "v8") & (own["setting"] == setting) & (own["run"] == "l1")
    own = pd.concat([own, own[main].assign(run="l1, ten seeds")], ignore_index=True)
    grouped = derive(own).groupby(KEYS, sort=False)["value"]
    table = grouped.agg(ours="mean", ours_sd="std", our_seeds="size").reset_index()
    how = "own fits, " + table["our_seeds"].astype(str) + " seeds"
    return table[table["our_seeds"] > 1].assign(how=how)


@dataclass(frozen=True)
class Evidence:
    """What the released data and our fits give.

    values: KEYS, ours, ours_sd, our_seeds, how; checks: see `stored.check`; data: what was read.
    """

    values: pd.DataFrame
    checks: pd.DataFrame
    data: Data


def gather(released: Path, own: pd.DataFrame) -> Evidence:
    """Compute all that can stand beside a published figure. `own` comes from `read_own`."""
    data = read_all(released)
    stored, checks = check_all(data)
    sources = (
        (COEFFICIENTS, stored),
        (STATISTIC, stored_networks(data.source)),
        (TABLES, all_summaries(data.source, data.tables)),
    )
    parts = [
        derive(frame)[[*KEYS, "value"]].rename(columns={"value": "ours"}).assign(how=how)
        for how, frame in sources
    ]
    values = pd.concat([*parts, summarize_own(own)], ignore_index=True)
    return Evidence(values, checks, data)


def reproduce(evidence: Evidence, figures: pd.DataFrame) -> pd.DataFrame:
    """Every published figure beside ours, once for each way of getting at it.

    Columns: id, where, KEYS, published, digits, ours, difference (ours - published), ours_sd, how,
    verdict (see `judge`), note. A figure that nothing of ours matches stays, with how "none".
    """
    table = figures.merge(evidence.values, on=KEYS, how="left", validate="m:m")
    table["how"] = table["how"].fillna("none")
    verdicts = [
        judge(row.value, int(row.digits), row.ours, row.ours_sd, row.our_seeds, row.seeds)
        for row in table.itertuples()
    ]
    table = table.rename(columns={"value": "published"}).assign(
        difference=table["ours"] - table["value"], verdict=verdicts
    )
    return table[
        ["id", "where", *KEYS, "published", "digits", "ours", "difference", "ours_sd", "how",
         "verdict", "note"]
    ]  # fmt: skip


def tally(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """How many figures of each group have each verdict: one column per verdict that occurs."""
    counts = table.groupby([*by, "verdict"], sort=False).size().unstack(fill_value=0)
    return counts[[v for v in VERDICTS if v in counts]].rename_axis(columns=None)


EVERY_WAY, SOME_WAY, NO_WAY = "in every way", "in some way", "in no way"


def by_figure(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each printed figure of `reproduce`'s table: does it come back?

    id, where, version, outcome: EVERY_WAY if no comparison differs, SOME_WAY if one does and
    another does not, NO_WAY if all do, IMPOSSIBLE if nothing of ours can stand beside it.
    """

    def outcome(verdicts: pd.Series) -> str:
        if (verdicts == IMPOSSIBLE).all():
            return IMPOSSIBLE
        differs = verdicts[verdicts != IMPOSSIBLE] == DIFFERS
        return NO_WAY if differs.all() else SOME_WAY if differs.any() else EVERY_WAY

    keys = ["id", "where", "version"]
    found = table.groupby(keys, sort=False)["verdict"].agg(outcome)
    return found.rename("outcome").reset_index()


def ablations(evidence: Evidence, figures: pd.DataFrame) -> pd.DataFrame:
    """The published ablations of v8, averaged over the methods, beside ours.

    One row per setting and category: metrics in the category, metrics that the released run left
    out, the published change in r, ours with the same metrics left out and with the whole
    category left out, each with its sd over seeds. NaN where the two are the same.
    """
    sizes = pd.Series(categories(metric_names())).value_counts()
    keys = ["setting", "run"]
    ours, printed = (
        frame[
            (frame["version"] == "v8")
            & (frame["quantity"] == "change in r")
            & (frame["method"] == "average")
        ]
        for frame in (evidence.values[evidence.values["how"].str.startswith("own")], figures)
    )
    ours, printed = ours.set_index(keys)[["ours", "ours_sd"]], printed.set_index(keys)["value"]
    rows = []
    for run in RUNS:
        if run.version != "v8" or not run.folder or not run.name.startswith("without "):
            continue
        name = run.name.removeprefix("without ")
        at, whole = (run.setting, run.name), (run.setting, f"without all {name}")
        same = ours.loc[at]
        full = ours.loc[whole] if whole in ours.index else same * np.nan
        rows.append(
            {
                "setting": run.setting,
                "category": name,
                "in category": int(sizes[name.replace(" ", "_")]),
                "left out": len(left_out(run, evidence.data.source)),
                "published": printed.loc[at],
                "ours": same["ours"],
                "sd": same["ours_sd"],
                "ours, whole": full["ours"],
                "sd, whole": full["ours_sd"],
            }
        )
    return pd.DataFrame(rows).sort_values("setting", kind="stable", ignore_index=True)
