"""`mergelib book`: run the chapters and build the book."""

import argparse
from pathlib import Path
from typing import Any

import yaml

from mergelib.book.build import build
from mergelib.core.errors import MergelibError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `mergelib book`."""
    parser.add_argument("--source", type=Path, default=Path("."), help="folder of _toc.yml")
    parser.add_argument("--tables", type=Path, help="tables that the chapters read")
    parser.add_argument("--released", type=Path, help="checkout of the released tables")
    parser.add_argument("--out", type=Path, help="folder of the pages (default: _build/html)")
    parser.add_argument(
        "-f", dest="files", action="append", default=[], metavar="FILE", help="YAML of parameters"
    )
    parser.add_argument(
        "-p",
        dest="pairs",
        action="append",
        default=[],
        nargs=2,
        metavar=("NAME", "VALUE"),
        help="one parameter; stands above -f",
    )
    parser.add_argument(
        "--commit-outputs",
        action="store_true",
        help="also write the outputs into the chapters themselves",
    )


def _read_parameters(files: list[str], pairs: list[list[str]]) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    for file in files:
        try:
            held = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise MergelibError(f"{file} cannot be read as YAML: {error}") from None
        if not isinstance(held, dict):
            raise MergelibError(f"{file} holds no `name: value` lines")
        parameters |= held
    return parameters | {name: yaml.safe_load(value) for name, value in pairs}


def run(args: argparse.Namespace) -> int:
    """Build the book as the command line says; prints the page to open."""
    parameters = _read_parameters(args.files, args.pairs)
    pages = build(
        args.source, args.tables, args.out, parameters, args.commit_outputs, args.released
    )
    out = args.out or args.source / "_build" / "html"
    print(f"{len(pages)} pages; open {out / 'index.html'}")
    return 0
