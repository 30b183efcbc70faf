"""Chapter 7's study, from its parameter file to its tables; interrupted, it goes on.

python -m studies.training --params ../params/training_to_merge.yaml
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mergelib.core.errors import MergelibError
from mergelib.core.outputs import check_folder
from mergelib.core.registry import unknown
from mergelib.core.store import read_table, write_json
from mergelib.pipeline.run import locked
from mergelib.pipeline.tables import meta
from studies.training import frozen, stages
from studies.training.variants import CONTROL, Plan, Variant, load

STAGES = ("search", "scales", "judge")


def study(
    plan: Plan,
    store: Path,
    folder: Path,
    jobs: int = 0,
    until: str = "judge",
    rules: Sequence[str] = (),
) -> None:
    """Run the stages up to one and write their tables; what stands in `folder` is not made again.

    `rules` (beside the control; none: all) runs a part of the study, to which other parts are
    added later. Tables: search.csv, scales.csv, merges.csv, many.csv, tasks.csv, metrics.csv
    (columns in `studies.training.stages`), keys.csv, meta.json. Raises MergelibError for a rule
    that the plan does not hold, and as the stations do.
    """
    for name in rules:
        if name not in {each.rule for each in plan.rules}:
            raise MergelibError(unknown("rule of the study", name, {r.rule for r in plan.rules}))

    def asked(variants: Sequence[Variant]) -> list[Variant]:
        return [v for v in variants if not rules or v.rule in (CONTROL, *rules)]

    with locked(store):
        work, seed = stages.Work(plan, store, jobs), plan.search_seed
        work.prepare()
        if left := _left(folder, plan, "search", asked(plan.variants()), seed):
            found = stages.search(work, left)
            frozen.add(folder, plan, "search", left, seed, {"search": found})
        if until == "search":
            return
        variants = asked(stages.chosen(read_table(folder / "search.csv")))
        if left := _left(folder, plan, "scales", variants, seed):
            found = stages.scales(work, left)
            frozen.add(folder, plan, "scales", left, seed, {"scales": found})
        if until == "scales":
            return
        scales = read_table(folder / "scales.csv")
        for seed in plan.seeds:
            if left := _left(folder, plan, "judge", variants, seed):
                made = stages.judge(work, scales, seed, left)
                frozen.add(folder, plan, "judge", left, seed, made)
            write_json(folder / "meta.json", about(plan, folder))


def _left(
    folder: Path, plan: Plan, stage: str, variants: Sequence[Variant], seed: int
) -> list[Variant]:
    made = frozen.known(folder, plan, stage, variants, seed)
    return [variant for variant in variants if variant not in made]


def about(plan: Plan, folder: Path) -> dict:
    """What the tables are of."""
    names = ("merges", "many", "tasks", "metrics", "search", "scales")
    held = meta(plan.run, {name: read_table(folder / f"{name}.csv") for name in names})
    own = {"rules": [asdict(each) for each in plan.rules], "scales": plan.scales}
    seeds = {"search_seed": plan.search_seed, "finetuning_seeds": plan.seeds}
    return held | own | seeds


def main(words: Sequence[str] | None = None) -> int:
    """Read the arguments, run the study; 1 with one line if something is wrong."""
    parser = argparse.ArgumentParser("python -m studies.training", description=__doc__)
    parser.add_argument("--params", type=Path, required=True, help="the study's YAML file")
    parser.add_argument("--store", type=Path, default=Path("../_build/store"), help="kept work")
    parser.add_argument("--to", type=Path, default=Path("tables/training_to_merge"), metavar="DIR")
    parser.add_argument("--jobs", type=int, default=0, help="units at a time (0: one a core)")
    parser.add_argument("--until", choices=STAGES, default="judge", help="the last stage to run")
    parser.add_argument("--rules", nargs="+", default=[], help="these and the control (all)")
    args = parser.parse_args(words)
    try:
        check_folder(args.store, [args.params])
        check_folder(args.to, [args.params])
        study(load(args.params), args.store, args.to, args.jobs, args.until, args.rules)
    except MergelibError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
