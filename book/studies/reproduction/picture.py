"""Published figures beside ours: all correlations at once, and r beside the spread of own fits."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from studies import plots
from studies.display import label
from studies.inputs import NAMES
from studies.reproduction.tables import run_said

WAYS = {"From the released data": False, "Own fits, mean over seeds": True}


def correlations(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `reproduce`'s table that are correlations, with `own`: whether ours is a fit."""
    kept = table["quantity"].str.startswith(("r_", "r with", "rho")) & table["ours"].notna()
    kept &= ~table["quantity"].str.endswith(" sd")
    return table[kept].assign(own=table["how"].str.startswith("own"))


def draw_all(table: pd.DataFrame) -> Figure:
    """Every published correlation against ours, one panel a way; what differs is filled."""
    rows = correlations(table)
    figure, axes = plt.subplots(1, 2, figsize=(6.8, 3.8), sharex=True, sharey=True)
    ends = [rows[["published", "ours"]].min().min(), rows[["published", "ours"]].max().max()]
    for ax, (title, own) in zip(axes, WAYS.items(), strict=True):
        part = rows[rows["own"] == own]
        differs = part["verdict"] == "differs"
        ax.plot(ends, ends, color=plots.BASELINE, linewidth=1)
        ax.plot(part["published"], part["ours"], "o", markersize=5, markerfacecolor="none",
                color=plots.PALETTE[0], label="agrees")  # fmt: skip
        ax.plot(part["published"][differs], part["ours"][differs], "o", markersize=6,
                color=plots.PALETTE[1], label="differs")  # fmt: skip
        ax.set(aspect="equal", xlabel="published")
        ax.set_title(f"{title}\n({len(part)})", fontsize=11)
    axes[0].set_ylabel("ours")
    axes[1].legend(loc="lower right", frameon=False)
    figure.tight_layout()
    return figure


def draw_r(table: pd.DataFrame, runs: list[tuple[str, str, str]]) -> Figure:
    """One panel per (version, setting, run): each method's mean r over folds.

    A diamond is the published r, a dot the mean of our seeds with a line of two standard
    deviations of one run to each side. `table` is that of `reproduce`.
    """
    kept = table[(table["quantity"] == "r_fold_mean") & (table["method"] != "average")]
    kept = kept[~kept["id"].str.endswith("-older") & kept["how"].str.startswith("own")]
    rows = -(-len(runs) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(6.8, 2.1 * rows), sharex=True)
    for k, (ax, (version, setting, run)) in enumerate(zip(axes.flat, runs, strict=False)):
        at = (kept["version"] == version) & (kept["setting"] == setting) & (kept["run"] == run)
        part = kept[at & ~kept["method"].isin(["lowest", "highest"])]
        places = np.arange(len(part))
        low, high = part["ours"] - 2 * part["ours_sd"], part["ours"] + 2 * part["ours_sd"]
        ax.hlines(places, low, high, color=plots.PALETTE[0], linewidth=3, alpha=0.5)
        ax.plot(part["ours"], places, "o", color=plots.PALETTE[0], label="ours, two sd each way")
        ax.plot(
            part["published"],
            places,
            "D",
            markerfacecolor="none",
            markeredgecolor=plots.BASELINE,
            markeredgewidth=1.6,
            label="published",
        )
        ax.set_yticks(places, [label(m) for m in part["method"]] if k % 2 == 0 else [])
        ax.set_ylim(len(part) - 0.5, -0.5)
        ax.set_title(f"{version}, {NAMES[setting]}: {run_said(run)}", fontsize=10)
        ax.grid(axis="y", visible=False)
    for ax in axes.flat[len(runs) :]:
        ax.set_visible(False)
    for ax in axes[-1]:
        ax.set_xlabel("mean r over the folds")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2,
                  frameon=False)  # fmt: skip
    figure.tight_layout()
    return figure
