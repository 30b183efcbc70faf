"""Figures of the chapter on what survives: dots beside chance, and lengths beside steps."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from studies import plots
from studies.display import label
from studies.inputs import NAMES


def dots(ax: Axes, frame: pd.DataFrame, y: str, x: str, hue: str, marks: Sequence[str]) -> None:
    """One row per `y`, one dot per value of `hue`; `marks` names columns of BASELINE_MARKERS."""
    rows, kinds = list(dict.fromkeys(frame[y])), list(dict.fromkeys(frame[hue]))
    for k, kind in enumerate(kinds):
        part = frame[frame[hue] == kind]
        shift = 0.3 * (k - (len(kinds) - 1) / 2)
        places = np.array([rows.index(name) for name in part[y]]) + shift
        shown = plots.color(kind, k)
        for name in marks:
            own = name.startswith("null")  # chance is a predictor's own, a baseline is not
            if own or k == 0:
                ax.plot(
                    part[name], places if own else places - shift, plots.BASELINE_MARKERS[name],
                    color="none", markeredgecolor=shown if own else plots.BASELINE,
                    markeredgewidth=1.4, label=label(name) if k == 0 else None,
                )  # fmt: skip
        ax.plot(part[x], places, "o", color=shown, markersize=8, label=NAMES.get(kind, label(kind)))
    ax.axvline(0, color=plots.BASELINE, linewidth=1)
    ax.set_yticks(range(len(rows)), [label(name) for name in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)


def against_chance(
    audits: Mapping[str, pd.DataFrame], marks: Sequence[str], xlabel: str, title: str
) -> Figure:
    """One panel a setting, one row a method: each predictor's r beside chance and baselines.

    `audits` maps a setting to `what_survives.beside_baselines`.
    """
    drawn, axes = plt.subplots(len(audits), 1, figsize=(6.4, 3.4 * len(audits)), sharex=True)
    for ax, (setting, part) in zip(np.atleast_1d(axes), audits.items(), strict=True):
        dots(ax, part, "method", "r", "model", marks)
        ax.set_title(NAMES[setting], fontsize=12)
    _finish(drawn, xlabel, title)
    return drawn


def of_forecasts(forecasts: pd.DataFrame, xlabel: str, title: str) -> Figure:
    """One row a forecast, one dot a setting, with its permutations' 95 % point."""
    drawn, ax = plt.subplots(figsize=(6.4, 1.2 + 0.5 * forecasts["forecast"].nunique()))
    dots(ax, forecasts, "forecast", "mean", "setting", ["null_95"])
    _finish(drawn, xlabel, title)
    return drawn


def lengths_and_steps(lengths: Mapping[str, pd.Series], steps: pd.Series, title: str) -> Figure:
    """One panel a setting: each task vector's length against its weighted training steps."""
    drawn, axes = plt.subplots(1, len(lengths), figsize=(6.4, 3.4))
    for ax, (setting, length) in zip(axes, lengths.items(), strict=True):
        ax.plot(steps[length.index], length, "o", color=plots.color(setting))
        ax.set(xlim=(0, None), ylim=(0, None), xlabel="weighted steps")
        ax.set_title(NAMES[setting], fontsize=12)
    axes[0].set_ylabel("length of the task vector")
    drawn.suptitle(title, fontsize=13)
    drawn.tight_layout()
    return drawn


def _finish(drawn: Figure, xlabel: str, title: str) -> None:
    last = drawn.axes[-1]
    last.set_xlabel(xlabel)
    drawn.suptitle(title, fontsize=13)
    drawn.tight_layout()
    handles, labels = last.get_legend_handles_labels()
    drawn.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2,
                 frameon=False)  # fmt: skip
