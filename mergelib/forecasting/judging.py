"""From a question to its answer: evidence gathered, every merge forecast, pairs ranked."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np

from mergelib.forecasting.answer import Answer, Judged
from mergelib.forecasting.ask import Findings, Question, gather
from mergelib.forecasting.evidence import Evidence, Forecast, Known, Probe
from mergelib.forecasting.model import forecast, recommend, shipped
from mergelib.forecasting.verdict import SIDES, WILL, WILL_NOT, verdict

ALL = ("all",)
OF_WORLDS = (
    "intervals and chances are as wide as forecasts were off in other worlds than the one that the "
    "forecast was fitted on (other recipes, encoders, pictures); yours may be farther away"
)
ACCURACIES = {
    "zero_shot": "zero-shot accuracy",
    "fine_tuned": "fine-tuned accuracy",
    "base_knowledge": "zero-shot / fine-tuned",
}
OF_SETS = (
    "the merge of all models is judged by its probe alone: the bank holds merges of two, so its "
    "intervals are those of pairs and its probabilities upper bounds"
)


def answer(question: Question, progress: bool = False) -> Answer:
    """What a forecast says to a question.

    Raises MergelibError as `gather` does, and for a method that the bank holds no merges of.
    """
    methods = shipped().methods_ if question.methods == ALL else question.methods
    question = replace(question, methods=tuple(dict.fromkeys(methods)))
    found = gather(question, progress)
    pairs = [judged(names, evidence, question.methods) for names, evidence in found.pairs.items()]
    pairs.sort(key=lambda each: -round(each.best.mean, 9))
    whole = None
    if found.whole:
        whole = of_set(question.names, found.whole, question.methods)
    return Answer(
        level=level(found),
        models={name: _shown(model) for name, model in question.models.items()},
        pairs=tuple(pairs),
        whole=whole,
        evidence=_seen(question, found),
        checks=_checks(question, found),
    )


def judged(models: Sequence[str], evidence: Evidence, methods: Sequence[str]) -> Judged:
    """Forecasts of one pair's merges, and the method to take; verdicts name the models."""
    forecasts = forecast(evidence, methods)
    recommended, regret = recommend(forecasts)
    named = {
        method: replace(each, verdict=_named(each.verdict, models))
        for method, each in forecasts.items()
    }
    return Judged(tuple(models), named, recommended, regret)


def _named(words: str, models: Sequence[str]) -> str:
    """A verdict that names the model whose task it speaks of."""
    for side, model in zip(SIDES, models, strict=True):
        words = words.replace(f"the {side} task", model)
    return words


def of_set(
    names: Sequence[str], whole: Mapping[str, Sequence[Probe]], methods: Sequence[str]
) -> Judged:
    """The merge of more than two models, from the forecasts of every two of its sides.

    A side's forecast is the mean of those beside each other side; the mean of the set is that of
    its pairs of sides, with the mean of their intervals (no wider ones are right, however the
    errors hang together), and the worse side and P(worse side ≥ x) are the least of the pairs'.
    """
    places = list(combinations(range(len(names)), 2))
    of_pairs = [
        forecast(Evidence(probes={m: (whole[m][i], whole[m][j]) for m in methods}), methods)
        for i, j in places
    ]
    forecasts = {}
    for method in methods:
        some = [each[method] for each in of_pairs]
        sides = [
            np.mean([f.sides[p.index(k)] for f, p in zip(some, places, strict=True) if k in p])
            for k in range(len(names))
        ]
        forecasts[method] = _together(some, [float(side) for side in sides])
    recommended, regret = recommend(forecasts)
    return Judged(tuple(names), forecasts, recommended, regret)


def _together(some: Sequence[Forecast], sides: Sequence[float]) -> Forecast:
    def mean(name: str) -> tuple[float, float]:
        low, high = np.mean([getattr(each, name) for each in some], axis=0)
        return float(low), float(high)

    p_worse_090 = min(each.p_worse_090 for each in some)
    drivers = {
        name: float(np.mean([each.drivers.get(name, 0.0) for each in some]))
        for name in dict.fromkeys(name for each in some for name in each.drivers)
    }
    return Forecast(
        mean=float(np.mean(sides)),
        worse=min(each.worse for each in some),
        sides=tuple(sides),  # type: ignore[arg-type]  # one a model
        interval80=mean("interval80"),
        interval95=mean("interval95"),
        p_worse_090=p_worse_090,
        p_worse_095=min(each.p_worse_095 for each in some),
        verdict=_of_set(p_worse_090),
        drivers=drivers,
    )


def _of_set(probability: float) -> str:
    """The verdict on a set: how many labels would settle it is known of pairs alone."""
    words = verdict(probability, None, 0)
    return words if words in (WILL, WILL_NOT) else "unclear"


def level(found: Findings) -> int:
    """The level of the evidence: 3 labelled images, 2 images, 1 known accuracies, 0 weights."""
    evidence = next(iter(found.pairs.values()))
    if evidence.probes:
        return 3 if found.labelled else 2
    return int(evidence.known is not None)


def _seen(question: Question, found: Findings) -> dict[str, object]:
    return {
        "known": question.known is not None,
        "images": question.n if question.images is not None else 0,
        "labelled": found.labelled,
        "heads": found.heads,
        "encoder": found.encoder,
    }


def _checks(question: Question, found: Findings) -> tuple[str, ...]:
    """What was looked for in vain, and what the reader should know."""
    count = len(question.models)
    which = "both models" if count == 2 else f"all {count} models"
    said = [f"{which} come from this base; none is it, equals another or was reparameterised"]
    said.append(OF_WORLDS)
    if not found.pairs[next(iter(found.pairs))].probes:
        said.append("no images: the forecast knows little, and its intervals are wide")
    elif not found.heads:
        said.append("no class heads of all tasks: the forecast is from features alone")
    known = {
        name: each
        for names, evidence in found.pairs.items()
        for name, each in zip(names, evidence.known or (), strict=False)
    }
    said += [words for name, each in known.items() if (words := _beyond(name, each))]
    if found.whole:
        said.append(OF_SETS)
    return tuple(said)


def _beyond(name: str, known: Known) -> str:
    """Which accuracies of a model's task the bank knows nothing like, in words; or nothing."""
    fitted, parts = shipped(), []
    for key, value in fitted.beyond(known).items():
        low, high = fitted.range_of(key)
        parts.append(f"{ACCURACIES[key]} {value:.3f} (the bank's: {low:.3f} to {high:.3f})")
    if not parts:
        return ""
    return (
        f"{name} lies beyond what the forecast was fitted on: {', '.join(parts)}; its forecasts "
        "are extrapolated, and were off by far more in such cases: rely on labelled images"
    )


def _shown(model: object) -> str:
    return str(model) if isinstance(model, str | Path) else "in memory"
