"""The answer to whether models will merge, as a table to read and as one JSON object.

The keys of `Answer.as_json`, whose accuracies are normalized (merged / fine-tuned):

    level          of the evidence: 0 weights alone, 1 known accuracies, 2 unlabelled images, 3
                   labelled ones (2 and 3 with known accuracies or without)
    evidence       known, images (a task), labelled, heads (class scores, not features alone),
                   encoder
    models         the models' files by name
    methods        by method: mean, worse, sides (by model), interval80 and interval95 (of the
                   mean), p_worse_090, p_worse_095, verdict, drivers
    recommended    the method to take, with its expected regret
    regret         how much less it is expected to keep than the best method
    pairs          of more than two models: all pairs, the best first, each with models, methods,
                   recommended, regret; what stands above is then of the merge of all of them
                   (null without images, since only a probe of that merge tells of it)
    checks         what was looked for and not found before anything was merged, and notes
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergelib.forecasting.evidence import Forecast

if TYPE_CHECKING:
    import pandas as pd

LEVELS = ("weights alone", "known accuracies", "unlabelled images", "labelled images")


@dataclass(frozen=True)
class Judged:
    """Forecasts of one merge's methods, of a pair or a set, and the method to take."""

    models: tuple[str, ...]
    forecasts: Mapping[str, Forecast]
    recommended: str
    regret: float

    @property
    def best(self) -> Forecast:
        """The forecast of the recommended method."""
        return self.forecasts[self.recommended]

    def as_json(self) -> dict[str, Any]:
        """See the module."""
        methods = {}
        for name, each in self.forecasts.items():
            methods[name] = {
                "mean": each.mean,
                "worse": each.worse,
                "sides": dict(zip(self.models, each.sides, strict=True)),
                "interval80": list(each.interval80),
                "interval95": list(each.interval95),
                "p_worse_090": each.p_worse_090,
                "p_worse_095": each.p_worse_095,
                "verdict": each.verdict,
                "drivers": dict(each.drivers),
            }
        return {"methods": methods, "recommended": self.recommended, "regret": self.regret}

    def table(self) -> "pd.DataFrame":
        """A row a method, best mean first: mean, worse, sides by model, low and high of both
        intervals, the two probabilities and the verdict."""
        import pandas as pd

        rows: list[dict[str, Any]] = []
        for name, each in self.forecasts.items():
            sides = {f"side: {m}": s for m, s in zip(self.models, each.sides, strict=True)}
            rows.append(
                {
                    "method": name,
                    "mean": each.mean,
                    "worse": each.worse,
                    **sides,
                    "low80": each.interval80[0],
                    "high80": each.interval80[1],
                    "low95": each.interval95[0],
                    "high95": each.interval95[1],
                    "p_worse_090": each.p_worse_090,
                    "p_worse_095": each.p_worse_095,
                    "verdict": each.verdict,
                }
            )
        order = sorted(range(len(rows)), key=lambda k: -round(rows[k]["mean"], 9))
        return pd.DataFrame([rows[k] for k in order])


@dataclass(frozen=True)
class Answer:
    """What a forecast says; `pairs` are ranked, the best first, `whole` is of more than two."""

    level: int
    models: Mapping[str, str]
    pairs: tuple[Judged, ...]
    whole: Judged | None
    evidence: Mapping[str, Any]
    checks: tuple[str, ...]

    @property
    def main(self) -> Judged | None:
        """The judgement of the whole question: of the pair, or of the merge of all models."""
        return self.pairs[0] if len(self.models) == 2 else self.whole

    def as_json(self) -> dict[str, Any]:
        """See the module."""
        none: dict[str, Any] = {"methods": {}, "recommended": None, "regret": None}
        held = {
            "level": self.level,
            "evidence": dict(self.evidence),
            "models": dict(self.models),
            **(none if self.main is None else self.main.as_json()),
            "checks": list(self.checks),
        }
        if len(self.models) > 2:
            held["pairs"] = [{"models": list(pair.models), **pair.as_json()} for pair in self.pairs]
        return held

    def __str__(self) -> str:
        lines = [f"{self._asked()} Evidence of level {self.level}: {self._seen()}."]
        if len(self.models) > 2:
            lines += ["", "Pairs, the best first:", *_ranked(self.pairs)]
            if self.whole is None:
                lines += ["", "All together: only --images, a probe of that merge, tells of it."]
        if self.main is not None:
            all_of_them = f"All {len(self.models)} together:" if len(self.models) > 2 else ""
            lines += ["", *([all_of_them] if all_of_them else []), *_lines(self.main)]
        return "\n".join([*lines, "", *(f"- {each}" for each in self.checks)])

    def __repr__(self) -> str:
        return str(self)

    def _asked(self) -> str:
        *first, last = self.models
        return f"Will {', '.join(first)} and {last} merge?"

    def _seen(self) -> str:
        seen = LEVELS[self.level]
        if self.level < 2:
            return seen
        features = "" if self.evidence["heads"] else ", features alone"
        known = " and known accuracies" if self.evidence["known"] else ""
        return f"{self.evidence['images']} {seen} a task{features}{known}"


def from_json(held: Mapping[str, Any]) -> Answer:
    """The answer whose `as_json` this is. Raises KeyError for a key that is not there."""
    names = list(held["models"])
    main = _judged(names, held) if held["methods"] else None
    if len(names) == 2:
        pairs, whole = [] if main is None else [main], None
    else:
        pairs, whole = [_judged(each["models"], each) for each in held["pairs"]], main
    checks = tuple(held["checks"])
    return Answer(held["level"], held["models"], tuple(pairs), whole, held["evidence"], checks)


def _judged(models: Sequence[str], held: Mapping[str, Any]) -> Judged:
    forecasts = {}
    for name, each in held["methods"].items():
        values = {**each, "sides": tuple(each["sides"][model] for model in models)}
        for key in ("interval80", "interval95"):
            values[key] = tuple(each[key])
        forecasts[name] = Forecast(**values)
    return Judged(tuple(models), forecasts, held["recommended"], held["regret"])


def _lines(of: Judged) -> list[str]:
    """The table of one merge, what to take, and what moved its forecast."""
    heads = ["method", "mean", *of.models, "worse", "80 %", "95 %", "P>=.90", "P>=.95", "verdict"]
    rows = []
    for row in of.table().to_dict("records"):
        sides = [f"{row[f'side: {model}']:.3f}" for model in of.models]
        ranges = [f"{row[f'low{p}']:.2f} to {row[f'high{p}']:.2f}" for p in (80, 95)]
        chances = [f"{row[p]:.2f}" for p in ("p_worse_090", "p_worse_095")]
        numbers = [f"{row['mean']:.3f}", *sides, f"{row['worse']:.3f}", *ranges, *chances]
        rows.append([row["method"], *numbers, row["verdict"]])
    moved = sorted(of.best.drivers.items(), key=lambda each: -abs(each[1]))[:4]
    drove = ", ".join(f"{name} {value:+.3f}" for name, value in moved if round(value, 3))
    told = f"Take {of.recommended}: it keeps {of.best.mean:.1%} of the accuracy, by the forecast, "
    told += f"and loses {of.regret:.3f} to the best method on average."
    lines = [*_aligned([heads, *rows]), "", told]
    return [*lines, f"What moved its forecast from the method's mean: {drove}."] if drove else lines


def _ranked(pairs: Sequence[Judged]) -> list[str]:
    rows = [["pair", "method", "mean", "worse", "80 %", "P>=.90", "verdict"]]
    for pair in pairs:
        best = pair.best
        rows.append(
            [
                " + ".join(pair.models),
                pair.recommended,
                f"{best.mean:.3f}",
                f"{best.worse:.3f}",
                f"{best.interval80[0]:.2f} to {best.interval80[1]:.2f}",
                f"{best.p_worse_090:.2f}",
                best.verdict,
            ]
        )
    return _aligned(rows)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
