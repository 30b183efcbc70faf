"""The figures of chapter 7's study, and its rules as a table."""

import re
from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mergelib.models.rules import RULES
from studies import plots
from studies.display import label
from studies.training.stages import NAMED
from studies.training.variants import CONTROL

FLOOR = -12  # points, below which a rule does harm whatever the number
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")


def looks(rule: str) -> tuple[tuple, str]:
    """A rule's colour and marker, the same in every figure."""
    place = list(RULES).index(rule)
    return plots.color(rule, place), MARKERS[place % len(MARKERS)]


def named(row: pd.Series | tuple, usual: int) -> str:
    """A variant in words: its rule, its strength, and its steps where they are not the usual."""
    rule, strength, steps = row
    strong = "" if rule == CONTROL else f" {strength:g}"
    return f"{label(rule)}{strong}" + ("" if steps == usual else f", {steps} steps")


def catalogue(meta: dict, search: pd.DataFrame) -> pd.DataFrame:
    """The study's rules: rule, does (its docstring's first line), means, strengths, source.

    `strengths` are those that the search's table holds, of the control its numbers of steps.
    """
    rows = []
    for name in dict.fromkeys(each["rule"] for each in meta["rules"]):
        part = search[search["rule"] == name]
        values = sorted(part["steps" if name == CONTROL else "strength"].unique())
        told = ", ".join(f"{value:g}" for value in values) or "not yet"
        if name == CONTROL:
            rows.append((name, "L, without a rule", "steps", told, ""))
            continue
        row = RULES[name]
        first = " ".join((row.function.__doc__ or "").split("\n\n")[0].split())
        does = re.sub(r"; (about|two) .*cost.*", "", first).rstrip(".")
        found = re.search(r"arXiv (\d{4}\.\d{4,5})", row.reference)
        link = f"[{found[1]}](https://arxiv.org/abs/{found[1]})" if found else "ours"
        rows.append((name, does, row.means, told, link))
    return pd.DataFrame(rows, columns=["rule", "does", "means", "strengths", "source"])


def strengths(table: pd.DataFrame, rules: Sequence[str]) -> Figure:
    """Each rule's strengths in a panel: merges (filled) and single models (open), over the control.

    `table` from `results.searched`: rule, strength, steps, gain, lost; in fractions. What lies
    below FLOOR is drawn on it, with its number.
    """
    rows = -(-len(rules) // 3)
    fig, axes = plt.subplots(rows, 3, figsize=(8, 2.3 * rows), sharey=True, squeeze=False)
    usual = table["steps"].min()
    for ax, rule in zip(axes.flat, rules, strict=False):
        color, marker = looks(rule)
        held = table[table["rule"] == rule]
        order = sorted(held["strength"].unique())
        for steps, part in held.sort_values("strength").groupby("steps"):
            at = [order.index(value) for value in part["strength"]]
            line = {"linestyle": "-" if steps == usual else "--", "marker": marker, "color": color}
            filled, alike = {"markerfacecolor": color}, {"markerfacecolor": "white", "alpha": 0.7}
            for values, face in ((100 * part["gain"], filled), (-100 * part["lost"], alike)):
                ax.plot(at, values.clip(FLOOR), **line, **face)
                for place, value in zip(at, values, strict=True):
                    if value < FLOOR:
                        told = {"fontsize": 9, "ha": "right", "textcoords": "offset points"}
                        ax.annotate(f"−{-value:.0f}", (place, FLOOR), xytext=(-6, 2), **told)
        ax.set_xticks(range(len(order)), [f"{value:g}" for value in order], fontsize=9)
        ax.set_xlim(-0.4, len(order) - 0.6)
        ax.axhline(0, color=plots.BASELINE, linewidth=1)
        ax.set_title(label(rule), fontsize=11)
        ax.tick_params(axis="y", labelsize=9)
    for ax in axes.flat[len(rules) :]:
        ax.set_visible(False)
    fig.supylabel("change from the control, points", fontsize=11)
    fig.tight_layout()
    return fig


def plane(
    table: pd.DataFrame, controls: pd.DataFrame, zero_shot: float, usual: int, rules: Sequence[str]
) -> Figure:
    """Accuracy in merges against that of single models: zero-shot, controls, every variant.

    `table` from `results.gains`; `controls` (steps, raw, single); a variant's bar is the interval
    of its gain. The second panel is the corner of the first that holds the rules.
    """
    fig, (whole, near) = plt.subplots(1, 2, figsize=(9.5, 5), width_ratios=(1, 1.5))
    for ax in (whole, near):
        _plane(ax, table, controls, usual, rules)
        ax.set_xlabel("accuracy of single models, %")
    place = (100 * zero_shot, 100 * zero_shot)
    whole.plot(*place, plots.BASELINE_MARKERS["zero_shot"], color=plots.BASELINE, markersize=10)
    whole.annotate("zero-shot", place, xytext=(9, -4), textcoords="offset points", fontsize=9)
    longest, base = controls[controls["steps"] >= usual / 2], table["raw"] - table["gain"]
    for values, limits in (
        ([*table["single"], *longest["single"]], near.set_xlim),
        ([*(base + table["low"]), *(base + table["high"]), *longest["raw"]], near.set_ylim),
    ):
        low, high = 100 * min(values), 100 * max(values)
        limits(low - 0.12 * (high - low), high + 0.12 * (high - low))
    whole.set_ylabel("accuracy of merges of pairs, %")
    handles = near.get_legend_handles_labels()
    fig.tight_layout(rect=(0, 0.14, 1, 1))
    fig.legend(*handles, loc="lower center", ncols=4, fontsize=9, frameon=False)
    return fig


def _plane(
    ax: Axes, table: pd.DataFrame, controls: pd.DataFrame, usual: int, rules: Sequence[str]
) -> None:
    line = controls.sort_values("steps")
    ax.plot(100 * line["single"], 100 * line["raw"], "-*", color=plots.BASELINE, zorder=2,
            markersize=10, label="control, by steps")  # fmt: skip
    for row in line.itertuples():
        ax.annotate(f"{row.steps}", (100 * row.single, 100 * row.raw), fontsize=9, xytext=(5, -11),
                    textcoords="offset points", color=plots.BASELINE, clip_on=True)  # fmt: skip
    for rule in rules:
        part = table[table["rule"] == rule]
        color, marker = looks(rule)
        base = part["raw"] - part["gain"]
        ax.vlines(100 * part["single"], 100 * (base + part["low"]), 100 * (base + part["high"]),
                  color=color, alpha=0.5)  # fmt: skip
        longer = part["steps"] != usual
        for held, face, name in (
            (part[~longer], color, label(rule)),
            (part[longer], "white", None),
        ):
            ax.plot(100 * held["single"], 100 * held["raw"], marker, color=color, markersize=8,
                    markerfacecolor=face, label=name)  # fmt: skip


def methods(table: pd.DataFrame, order: Sequence[str]) -> Axes:
    """A variant's gain by method, as methods stand (filled) and at the best scales (open).

    `table` from `results.by_method`.
    """
    fig, ax = plt.subplots(figsize=(6.4, 3.6))
    for shift, (name, low, high, filled) in (
        (-0.15, ("gain", "low", "high", True)),
        (0.15, ("tuned", "tuned_low", "tuned_high", False)),
    ):
        for k, method in enumerate(order):
            row = table[table["method"] == method].iloc[0]
            color = plots.color(method)
            ax.hlines(k + shift, 100 * row[low], 100 * row[high], color=color, alpha=0.6)
            ax.plot(100 * row[name], k + shift, "o" if filled else "D", color=color,
                    markerfacecolor=color if filled else "white")  # fmt: skip
    ax.axvline(0, color=plots.BASELINE, linewidth=1)
    ax.set_yticks(range(len(order)), [label(method) for method in order])
    ax.set_ylim(len(order) - 0.4, -0.6)
    ax.set_xlabel("gain over the control, points")
    ax.grid(axis="y", visible=False)
    fig.tight_layout()
    return ax


def told(table: pd.DataFrame, usual: int) -> pd.Series:
    """`named` for every row of a table with the columns of a variant."""
    return pd.Series([named(row, usual) for row in table[NAMED].itertuples(index=False)])
