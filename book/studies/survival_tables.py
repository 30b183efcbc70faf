"""Small tables that chapter 9 reads: what needs the whole checkout of released work, or minutes.

    cd book && python -m studies.survival_tables --from ../../demystifying-mergeability

writes them below tables/published. The coefficients of every random start and the calibration sizes
are 60 MB; what a chapter shows of them is some kilobytes.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from mergelib.core.store import read_table, write_table
from mergelib.published.released import SETTINGS
from studies import what_survives
from studies.inputs import PUBLISHED, pairs_of, read_source
from studies.method_fits import agreement_table
from studies.reproduction import figures
from studies.reproduction.runs import RUNS, read_all
from studies.reproduction.stored import check

B16, B32, SGD = SETTINGS
SEEDED = "loto_cv_l1_lambda1.0_random_seeds"  # the released runs with ten random starts
RUNS_CHECKED = ("l1", "no penalty")  # the paper's main fits, by its eighth version


def stored_signs(released: Path) -> pd.DataFrame:
    """metric, fits, negative, zero, positive: signs in the released fits of ten random starts."""
    return what_survives.released_signs(released, B16, SEEDED).reset_index()


def distances_by_size(released: Path) -> pd.DataFrame:
    """Calibration images per task, and the additive share of each squared gradient distance."""
    table = what_survives.additive_by_size(released, B16)
    return table.rename_axis("images_per_task").reset_index()


def targets_checked(released: Path) -> pd.DataFrame:
    """setting, run, raw, normalized: the largest distance of r with that target from the stored."""
    data = read_all(released)
    runs = [r for r in RUNS if r.version == "v8" and r.name in RUNS_CHECKED]
    parts = [check(run, data)[1] for run in runs]
    checks = pd.concat(parts, ignore_index=True)
    return checks.groupby(["setting", "run"], sort=False)[["raw", "normalized"]].max().reset_index()


def reproduced(released: Path) -> pd.DataFrame:
    """version, outcome, figures: how many printed figures come back (`figures.by_figure`)."""
    own = figures.read_own(PUBLISHED / "own_fits.csv")
    table = figures.reproduce(
        figures.gather(Path(released), own), figures.read_figures(PUBLISHED / "figures.csv")
    )
    each = figures.by_figure(table)
    counts = each.groupby(["version", "outcome"], sort=False).size().rename("figures")
    return counts.reset_index()


def paper_agreement(released: Path, relabel: int = 100) -> pd.DataFrame:
    """setting, statistic, value, null_mean, null_95, p: the published optimizer's fits, raw
    accuracy, one start; the methods' agreement and that of fits to permuted tasks."""
    parts = []
    for setting in (B16, B32):
        table, _ = agreement_table(
            pairs_of(read_source(setting, "")), "raw", {"paper-l1": relabel}, 0
        )
        parts.append(table.assign(setting=setting, relabel=relabel))
    frame = pd.concat(parts, ignore_index=True)
    return frame[["setting", "statistic", "value", "null_mean", "null_95", "p", "relabel"]]


def paper_one_sign(released: Path, relabel: int = 100) -> pd.DataFrame:
    """setting, count, p, null_mean, null_95, metrics: those with one sign in all folds and methods
    (published optimizer, raw accuracy, one start), and as many by chance."""
    parts = []
    for setting in (B16, B32):
        tables = read_source(setting, "")
        names, table = what_survives.one_sign(
            tables, pairs_of(tables), "paper-l1", "raw", relabel, 0
        )
        parts.append(table.assign(setting=setting, metrics=" ".join(names), relabel=relabel))
    frame = pd.concat(parts, ignore_index=True)
    return frame[["setting", "count", "p", "null_mean", "null_95", "relabel", "metrics"]]


MADE: dict[str, Callable[[Path], pd.DataFrame]] = {
    "survival_signs": stored_signs,
    "survival_distances": distances_by_size,
    "survival_targets": targets_checked,
    "survival_reproduced": reproduced,
    "survival_agreement": paper_agreement,
    "survival_one_sign": paper_one_sign,
}


def read_frozen(folder: str | Path = PUBLISHED) -> dict[str, pd.DataFrame]:
    """The tables of MADE by name, without "survival_". Raises MergelibError if one is absent."""
    return {
        name.removeprefix("survival_"): read_table(Path(folder) / f"{name}.csv") for name in MADE
    }


def main(words: Sequence[str] | None = None) -> None:
    """The command of the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="source", type=Path, required=True)
    parser.add_argument("--to", dest="target", type=Path, default=PUBLISHED)
    args = parser.parse_args(words)
    for name, made in MADE.items():
        write_table(args.target / f"{name}.csv", made(args.source))


if __name__ == "__main__":
    main()
