"""`mergelib published`: the released tables of the published work, in this library's schemas."""

import argparse
import json
from pathlib import Path
from typing import Any

from mergelib.core.outputs import check_folder
from mergelib.pairs.tables import write_setting
from mergelib.published.released import COMMIT, HISTORIC, REPOSITORY, SETTINGS, read_setting


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `mergelib published`."""
    parser.add_argument(
        "--from", dest="source", type=Path, required=True, metavar="DIR",
        help=f"checkout of {REPOSITORY} at {COMMIT}",
    )  # fmt: skip
    parser.add_argument(
        "--to", dest="target", type=Path, required=True, metavar="DIR",
        help="where one folder per setting is written",
    )  # fmt: skip
    parser.add_argument("--historic", action="store_true", help=f"keep the 29th metric, {HISTORIC}")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Read all settings, then write them; nothing is written if one cannot be read."""
    for setting in SETTINGS:
        check_folder(args.target / setting, [args.source])
    tables = {s: read_setting(args.source, s, args.historic) for s in SETTINGS}
    for setting, held in tables.items():
        write_setting(held, args.target / setting)
    result = {setting: held.meta for setting, held in tables.items()}
    if args.json:
        print(json.dumps(result, allow_nan=False))
        return result
    for setting, meta in result.items():
        missing = meta["missing"]
        lacking = ", ".join(f"{m} {n}" for m, n in missing["merges"].items() if n) or "none"
        print(
            f"{args.target / setting}: {meta['n_pairs']} pairs, "
            f"{missing['pairs_without_some_metric']} without some metric, merges missing: {lacking}"
        )
        if missing["zero_shot"]:
            print(
                f"  zero_shot.csv is not beside the results: {missing['zero_shot']} tasks without"
            )
        if "note" in meta:
            print(f"  note: {meta['note']}")
    return result
