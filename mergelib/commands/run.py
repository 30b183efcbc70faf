"""`mergelib run`: the whole line of a parameter file, from tasks to tables."""

import argparse
from pathlib import Path
from shlex import quote

from mergelib.core.outputs import check_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `mergelib run`."""
    add = parser.add_argument
    add("--params", type=Path, required=True, help="YAML file, e.g. params/smoke.yaml")
    add("--store", type=Path, default=Path("_build/store"), help="finished work")
    add("--tables", type=Path, help="folder of the tables (_build/tables/NAME)")
    add("--jobs", type=int, default=0, help="units at a time (0: one a core)")
    add("--cluster", default="", help="local:N, dask://host:port or ray://host:port")
    add("--dry-run", action="store_true", help="say what it takes and what is missing, no more")


def run(args: argparse.Namespace) -> None:
    """Run a parameter file and say what was written, or only what a run would take."""
    check_folder(args.store, [args.params])
    from mergelib.pipeline import params
    from mergelib.pipeline.run import execute

    settings = params.load(args.params)
    if args.dry_run:
        from mergelib.pipeline.estimate import estimate

        for line in estimate(settings, args.jobs):
            print(line, flush=True)
        return
    tables = args.tables or Path("_build/tables") / settings.name
    check_folder(tables, [args.params])
    made = execute(settings, args.store, tables, args.jobs, args.cluster)
    sizes = ", ".join(f"{name} {len(table)} rows" for name, table in made.items())
    print(f"{tables}: {sizes}")
    page = quote(f"{settings.name}.html")
    print(f"a page about them: mergelib book --tables {quote(str(tables))} --out {page}")
