"""`mergelib fit`: one predictor cross-validated on the two tables."""

import argparse
import json
from pathlib import Path
from typing import Any

import mergelib.published.predictors  # noqa: F401  registers the paper's predictors
from mergelib.core.errors import MergelibError
from mergelib.core.registry import unknown
from mergelib.core.store import read_table
from mergelib.pairs.targets import TARGETS
from mergelib.predict.evaluate import evaluate
from mergelib.predict.predictors import PREDICTORS
from mergelib.predict.splits import SPLITS


def _strength(text: str) -> float | str:
    if text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise MergelibError(f"--alpha {text!r}: give a number or auto") from None


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add = parser.add_argument
    add("--metrics", type=Path, required=True, metavar="FILE", help="metrics table")
    add("--merges", type=Path, required=True, metavar="FILE", help="merges table")
    add("--tasks", type=Path, metavar="FILE", help="tasks table, for the base-knowledge baseline")
    add("--method", default="tsv", help="merging method, as in the merges table")
    add("--target", default="normalized", help=" ".join(TARGETS))
    add("--residual-of", default="normalized", help="what the residual is of: normalized raw")
    add("--predictor", default="ridge", help=" ".join(PREDICTORS))
    add("--split", default="loto", help=" ".join(SPLITS))
    add("--alpha", metavar="A", help="strength (pls: components), or auto: chosen by nesting")
    add("--seed", type=int, default=0, help="of the Adam starts, halves, QAP and bootstrap")
    add("--repeats", type=int, default=50, metavar="N", help="of the halves split")
    add(
        "--exclude-category",
        action="extend",
        nargs="+",
        default=[],
        metavar="C",
        help="leave out the metrics of these categories",
    )
    add("--task-covariates", action="store_true", help="add what --tasks knows before merging")
    add("--to-metrics", type=Path, metavar="FILE", help="another setting to forecast: its metrics")
    add("--to-merges", type=Path, metavar="FILE", help="and its merges")
    add("--qap", type=int, default=0, metavar="N", help="QAP null of N task permutations")
    add("--bootstrap", type=int, default=0, metavar="N", help="task bootstrap interval of r_pooled")
    add("--keep-incomplete", action="store_true", help="every pair that this method has")
    add("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Fit and print; returns the record. Raises MergelibError for input that cannot be used."""
    for name, known in (("target", TARGETS), ("predictor", PREDICTORS), ("split", SPLITS)):
        known[getattr(args, name)]  # an unknown name is refused before any table is read
    bases = [name for name in TARGETS if name != "residual"]
    if args.residual_of not in bases:
        raise MergelibError(unknown("residual base", args.residual_of, bases))
    for name, least in (("qap", 0), ("bootstrap", 0), ("repeats", 1), ("seed", 0)):
        if getattr(args, name) < least:
            raise MergelibError(f"--{name} {getattr(args, name)}: give at least {least}")
    if (args.to_metrics is None) != (args.to_merges is None):
        raise MergelibError("give --to-metrics and --to-merges together: another setting's tables")
    other = None
    if args.to_metrics is not None:
        other = read_table(args.to_metrics), read_table(args.to_merges)
    exclude = [name for text in args.exclude_category for name in _names(text)]
    result = evaluate(
        read_table(args.metrics),
        read_table(args.merges),
        args.method,
        tasks=None if args.tasks is None else read_table(args.tasks),
        target=args.target,
        base=args.residual_of,
        predictor=args.predictor,
        split=args.split,
        alpha=None if args.alpha is None else _strength(args.alpha),
        seed=args.seed,
        repeats=args.repeats,
        exclude=tuple(exclude),
        keep_incomplete=args.keep_incomplete,
        task_covariates=args.task_covariates,
        qap=args.qap,
        bootstrap=args.bootstrap,
        other=other,
    )
    print(json.dumps(result, allow_nan=False) if args.json else table(result))
    return result


def table(result: dict[str, Any]) -> str:
    """The record as a few readable lines."""
    asked = " ".join(str(result[k]) for k in ("method", "target", "predictor", "split"))
    lines = [
        f"{asked}: {result['n_pairs']} pairs ({result['n_dropped']} dropped), "
        f"{result['n_folds']} folds ({result['n_folds_undefined']} without r)",
        f"{'':<24}{'r by fold':>11}{'end to end':>12}{'each once':>11}{'rho':>8}",
    ]
    for name, row in ({result["predictor"]: result} | result["baselines"]).items():
        keys = ("r_fold_mean", "r_concatenated", "r_pooled", "rho_fold_mean")
        cells = [_number(row[key]) for key in keys]
        lines.append(f"{name:<24}{cells[0]:>11}{cells[1]:>12}{cells[2]:>11}{cells[3]:>8}")
    if result["qap"]:
        q = result["qap"]
        lines.append(
            f"QAP of {q['statistic']}, {q['n']} permutations: p = {_number(q['p'], 4)}, "
            f"null mean {_number(q['null_mean'])}, 95 % point {_number(q['null_95'])}"
        )
    if result["bootstrap"]:
        b = result["bootstrap"]
        lines.append(
            f"task bootstrap of {b['statistic']}, {b['n']} draws: 95 % interval "
            f"{_number(b['low'])} to {_number(b['high'])}"
        )
    if result["transfer"]:
        t = result["transfer"]
        lines.append(
            f"forecast of the other setting's {t['n_pairs']} pairs: r = {_number(t['r'])}"
            + ("" if t["p"] is None else f", QAP p = {_number(t['p'], 4)}")
        )
    ranked = sorted(result["coefficients"].items(), key=lambda item: -abs(item[1]["mean"]))
    for name, c in ranked[:5]:
        lines.append(f"  {name:<42}{c['mean']:+.4f} (sign in {c['sign_agreement']:.0%} of folds)")
    if result["collinear_groups"]:
        groups = "; ".join(" ~ ".join(group) for group in result["collinear_groups"])
        lines.append(f"not told apart by any data: {groups}")
    return "\n".join(lines)


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
