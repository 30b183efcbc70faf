"""The published figures beside what the released data give: each row with a verdict."""

from mergelib.reproduction.figures import (
    ablations,
    compact,
    gather,
    judge,
    read_figures,
    read_own,
    reproduce,
    tally,
)
from mergelib.reproduction.picture import draw_r
from mergelib.reproduction.runs import RUNS, Run

__all__ = [
    "RUNS",
    "Run",
    "ablations",
    "compact",
    "draw_r",
    "gather",
    "judge",
    "read_figures",
    "read_own",
    "reproduce",
    "tally",
]
