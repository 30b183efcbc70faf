"""Published r beside the spread of our own fits."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from studies import plots


def draw_r(table: pd.DataFrame, runs: list[tuple[str, str, str]]) -> Figure:
    """One panel per (version, setting, run): each method's mean r over folds.

    A diamond is the published r, a dot the mean of our seeds with a line of two standard
    deviations of one run to each side. `table` is that of `reproduce`.
    """
    kept = table[(table["quantity"] == "r_fold_mean") & (table["method"] != "average")]
    kept = kept[~kept["id"].str.endswith("-older") & kept["how"].str.startswith("own")]
    columns = 2
    rows = -(-len(runs) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(9.6, 2.6 * rows), sharex=True)
    for ax, (version, setting, run) in zip(axes.flat, runs, strict=False):
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
        ax.set_yticks(places, list(part["method"]))
        ax.set_ylim(len(part) - 0.5, -0.5)
        ax.set_title(f"{version} {setting.replace('_', ', ')}: {run}", fontsize=11)
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
