"""Chapter 7's study, from its parameter file to its tables; interrupted, it goes on.

python -m studies.training --params ../params/training_to_merge.yaml
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mergelib.core.errors import MergelibError
from mergelib.core.store import read_table, write_json
from mergelib.pipeline.run import locked
from mergelib.pipeline.tables import meta
from studies.training import frozen, stages
from studies.training.variants import Plan, Variant, load

STAGES = ("search", "scales", "judge")


def study(plan: Plan, store: Path, folder: Path, jobs: int = 0, until: str = "judge") -> None:
    """Run the stages up to one and write their tables; what stands in `folder` is not made again.

    Tables: search.csv, scales.csv, merges.csv, many.csv, tasks.csv, metrics.csv (columns in
    `studies.training.stages`), keys.csv, meta.json. Raises MergelibError as the stations do.
    """
    with locked(store):
        work = stages.Work(plan, store, jobs)
        work.prepare()
        seed = plan.search_seed
        if left := _left(folder, plan, "search", plan.variants(), seed):
            found = stages.search(work, left)
            frozen.add(folder, plan, "search", left, seed, {"search": found})
        if until == "search":
            return
        variants = stages.chosen(read_table(folder / "search.csv"))
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
    args = parser.parse_args(words)
    try:
        study(load(args.params), args.store, args.to, args.jobs, args.until)
    except MergelibError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
