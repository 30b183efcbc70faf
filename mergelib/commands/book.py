"""`mergelib book`: run the chapters and build the book."""

import argparse
import os
from pathlib import Path
from typing import Any

from mergelib.book.build import build
from mergelib.book.own import PAGE, check_tables, edition_of, left_out, write_own
from mergelib.core.errors import MergelibError
from mergelib.core.outputs import check_folder, check_output
from mergelib.core.yaml_files import parse_yaml, read_yaml

EPILOG = """\
Parameters are those of the chapters' cells tagged `parameters`. A name that no chapter has, or a
value of another type or not among the choices, is refused before anything runs. Tables of a run of
your own give the chapter that speaks of any run; as one HTML file, wherever you stand, if --out
ends in .html."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `mergelib book`."""
    parser.add_argument("--source", type=Path, default=Path("."), help="folder of _toc.yml")
    parser.add_argument("--tables", type=Path, help="tables that the chapters read")
    parser.add_argument("--released", type=Path, help="checkout of the released tables")
    parser.add_argument("--out", type=Path, help="folder of the pages (_build/html), or .html file")
    parser.add_argument(
        "--edition",
        default="",
        metavar="NAME",
        help="build beside the book, in _build/editions/NAME, with executed copies of its own",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        action="extend",
        default=[],
        metavar="CHAPTER",
        help="run only chapters whose names begin so (04); the others stay as they were",
    )
    parser.add_argument(
        "--jobs",
        type=_jobs,
        default=min(4, os.cpu_count() or 1),
        metavar="N",
        help="chapters that run at a time (default: one a core, at most 4)",
    )
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


def _jobs(text: str) -> int:
    if not text.isdigit() or text.strip("0") == "":
        raise argparse.ArgumentTypeError(f"{text} is no number of jobs: give 1 or more")
    return int(text)


def _read_parameters(files: list[str], pairs: list[list[str]]) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    for file in files:
        parameters |= read_yaml(Path(file))
    return parameters | {name: parse_yaml(value, f"-p {name}") for name, value in pairs}


def _check_outputs(args: argparse.Namespace) -> None:
    """Refuse a folder that cannot be written, or whose files are no earlier build's."""
    check_folder(args.source / "_build")
    if args.out is not None:
        given = [folder for folder in (args.tables, args.released) if folder is not None]
        check_output(args.out, given, folder=not (args.out / "index.html").is_file())


def _one_file(args: argparse.Namespace) -> None:
    """Write the page about a run's tables as one file."""
    unfit = ("only", "edition", "released", "commit_outputs")
    if args.tables is None or any(getattr(args, name) for name in unfit):
        raise MergelibError(
            f"{args.out} is one page about a run: give --tables, and no "
            + ", ".join(f"--{name.replace('_', '-')}" for name in unfit)
        )
    check_output(args.out, [args.tables], (".html",))
    write_own(args.tables, args.out, _read_parameters(args.files, args.pairs))
    print(f"1 page; open {args.out}")


def run(args: argparse.Namespace) -> int:
    """Build the book as the command line says; prints the page to open."""
    if args.out is not None and args.out.suffix == ".html":
        _one_file(args)
        return 0
    _check_outputs(args)
    passed = _read_parameters(args.files, args.pairs)
    why = ""
    if args.tables is not None:
        check_tables(args.tables)
        why = "" if args.only or args.commit_outputs else left_out(args.source, args.tables)
    if why:
        print(f"{Path(PAGE).name} alone, as the other chapters speak of the benchmark: {why}")
    pages = build(
        args.source,
        args.tables,
        args.out,
        passed,
        args.commit_outputs,
        args.released,
        args.only,
        args.edition or (edition_of(args.tables) if why else ""),
        args.jobs,
        PAGE if why else "",
    )
    # The root page lies in `book/` of the pages' folder, whose index leads to it.
    print(f"{len(pages)} page{'s' if len(pages) > 1 else ''}; open {_index(pages)}")
    return 0


def _index(pages: list[Path]) -> Path:
    found = next(folder for folder in pages[0].parents if (folder / "index.html").is_file())
    index = found / "index.html"
    here = Path.cwd()
    return index.relative_to(here) if index.is_relative_to(here) else index
