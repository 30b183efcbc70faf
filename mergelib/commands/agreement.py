"""`mergelib agreement`: how far methods agree on the metrics that matter."""

import argparse
import json
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="one released *_results.json or saved `mergelib fit --json` per method",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Compute and print the agreement; returns what was printed."""
    from mergelib.predict.agreement import agreement_of_files
    from mergelib.predict.evaluate import plain

    result = plain(agreement_of_files(args.files))
    if args.json:
        print(json.dumps(result, allow_nan=False))
        return result
    for pair in result["pairs"]:
        names = f"{Path(pair['a']).stem} / {Path(pair['b']).stem}"
        print(f"{names:<60} {_percent(pair['top5_overlap'])} {_percent(pair['sign_agreement'])}")
    print(f"top-5 overlap  {_percent(result['top5_overlap'])}")
    print(f"sign agreement {_percent(result['sign_agreement'])}")
    return result


def _percent(value: float | None) -> str:
    return "     –" if value is None else f"{100 * value:5.1f} %"
