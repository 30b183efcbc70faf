"""The study's parameter file, read into the trainings that it asks for."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from mergelib.core.errors import MergelibError
from mergelib.core.yaml_files import read_yaml
from mergelib.models.rules import RULES
from mergelib.pipeline import params
from mergelib.pipeline.params import Run

CONTROL = "control"


class Variant(NamedTuple):
    """A rule at a strength with a number of steps; "control" has none, at strength 0."""

    rule: str
    strength: float
    steps: int


@dataclass(frozen=True)
class Compared:
    """One line of the file: a rule, its strengths, and the numbers of steps (none: the run's)."""

    rule: str
    strengths: list[float] = field(default_factory=lambda: [0.0])
    steps: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """The study: a run of the pipeline, what is varied in it, and who judges.

    Strengths are searched with `search_seed` on the calibration split; `seeds` are trained anew and
    judged on the test split. `scales` are multiples of a merged task vector to choose from.
    """

    run: Run
    rules: list[Compared]
    search_seed: int
    seeds: list[int]
    scales: list[float]

    def variants(self) -> list[Variant]:
        """All of them, in the file's order."""
        return [
            Variant(each.rule, strength, steps)
            for each in self.rules
            for steps in each.steps or [self.run.finetune.steps]
            for strength in each.strengths
        ]

    def controls(self) -> list[Variant]:
        """Those without a rule, one for each number of steps."""
        return [v for v in self.variants() if v.rule == CONTROL]

    def run_of(self, variant: Variant, seed: int) -> Run:
        """The pipeline's run of a variant and a seed."""
        plain = variant.rule == CONTROL
        recipe = replace(
            self.run.finetune,
            steps=variant.steps,
            seed=seed,
            rule="" if plain else variant.rule,
            strength=0.0 if plain else variant.strength,
        )
        return replace(self.run, finetune=recipe)


def groups(tasks: Sequence[str]) -> list[tuple[str, ...]]:
    """What is merged: every pair of tasks, then all of them."""
    return [*itertools.combinations(tasks, 2), tuple(tasks)]


def load(path: Path) -> Plan:
    """Read and check the parameter file.

    Raises MergelibError naming the file for unknown keys and rules, values of another type, a
    number of steps without its control, and seeds that are both searched and judged.
    """
    plan: Plan = params.typed(Plan, read_yaml(path), str(path))
    plan = replace(plan, run=plan.run.under(Path(path).parent))
    params.check(plan.run, f"{path}: run")
    plain = {variant.steps for variant in plan.controls()}
    for variant in plan.variants():
        if variant.rule != CONTROL:
            RULES[variant.rule]
        if variant.steps not in plain:
            raise MergelibError(f"{path}: no control of {variant.steps} steps: add it to {CONTROL}")
    if plan.search_seed in plan.seeds:
        raise MergelibError(f"{path}: seed {plan.search_seed} is searched with: judge by others")
    if 1.0 not in plan.scales:
        raise MergelibError(f"{path}: scales must hold 1, the method as it stands")
    return plan
