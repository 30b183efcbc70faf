"""The published figures beside what the released data give: each row with a verdict."""

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
