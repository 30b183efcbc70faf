"""The book's figures: each function draws on one Axes, returns it, and adds nothing random.

Call `style()` once at the top of a chapter. Colours stay apart for colour-blind readers, and text
stays legible when a figure is shrunk to the width of a phone.
"""

from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from mergelib.core.errors import MergelibError
from studies.display import label

PALETTE = sns.color_palette("colorblind")
BASELINE = "0.35"

# Over the whole book one colour a method, predictor, category or source; one marker a baseline.
METHOD_COLORS = dict(
    zip(
        ("weight_avg", "arithmetic", "ties", "dare", "tsv", "isotropic", "iso_cts", "tall_masks",
         "emr", "base_protecting"),
        sns.color_palette("colorblind", 10),
        strict=True,
    )
)  # fmt: skip
PREDICTOR_COLORS = {
    "ridge": PALETTE[0], "lasso": PALETTE[2], "ols": PALETTE[4], "paper-l1": PALETTE[1],
}  # fmt: skip
CATEGORY_COLORS = {
    "task_vector": PALETTE[0], "effective_rank": PALETTE[1], "subspace": PALETTE[2],
    "activation": PALETTE[3], "gradient": PALETTE[4],
}  # fmt: skip
SOURCE_COLORS = {
    "benchmark": PALETTE[0], "ViT-B-16_AdamW": PALETTE[1], "ViT-B-32_AdamW": PALETTE[2],
    "ViT-B-16_SGD": PALETTE[7],
}  # fmt: skip
COLORS = METHOD_COLORS | PREDICTOR_COLORS | CATEGORY_COLORS | SOURCE_COLORS
BASELINE_MARKERS = {
    "constant": "x", "additive_task_effects": "D", "base_knowledge": "s", "best_single_metric": "v",
    "single_task_accuracy": "o", "null_95": "^", "null_mean": "2", "zero_shot": "P",
    "fine_tuned": "*", "chance": "|",
}  # fmt: skip


def color(name: object, otherwise: int = 0):
    """The book's colour of a method, predictor, category or source; of others, one by number."""
    return COLORS.get(str(name), PALETTE[otherwise % len(PALETTE)])


def style() -> None:
    """Set fonts, palette and reproducible files for all figures that follow."""
    sns.set_theme(context="notebook", style="whitegrid", palette=PALETTE)
    mpl.rcParams.update(
        {
            "figure.figsize": (6.4, 4.4),
            "figure.dpi": 110,
            "savefig.dpi": 110,
            "font.size": 12,
            "axes.titlesize": 13,
            "axes.labelsize": 12,
            "legend.fontsize": 10,
            "svg.hashsalt": "mergelib",
        }
    )
    try:
        from matplotlib_inline.config import InlineBackend
    except ImportError:  # not in a notebook
        return
    # A version or a date inside the file would make each build's figures differ.
    InlineBackend.instance().print_figure_kwargs = {
        "bbox_inches": "tight",
        "metadata": {"Software": None},
    }


def save(figure: Figure, path: str) -> None:
    """Write a figure without date or version, so that equal figures are equal files."""
    metadata = {"Date": None} if str(path).endswith(".svg") else {"Software": None}
    figure.savefig(path, bbox_inches="tight", metadata=metadata)


def square(table: pd.DataFrame, column: str, tasks: Sequence[str]) -> np.ndarray:
    """The symmetric (T, T) matrix of a pair table's column; NaN on the diagonal.

    Raises MergelibError if a column is missing, a task is unknown or a pair comes twice.
    """
    missing = [name for name in ("task_a", "task_b", column) if name not in table]
    if missing:
        raise MergelibError(f"the table has no column {missing[0]}: it has {list(table.columns)}")
    place = {task: index for index, task in enumerate(tasks)}
    values = np.full((len(tasks), len(tasks)), np.nan)
    for a, b, value in zip(table["task_a"], table["task_b"], table[column], strict=True):
        if a not in place or b not in place:
            raise MergelibError(f"the pair {a}, {b} is not of the tasks {list(tasks)}")
        i, j = place[a], place[b]
        if not np.isnan(values[i, j]):
            raise MergelibError(f"the pair {a}, {b} comes twice: choose one method and seed first")
        values[i, j] = values[j, i] = value
    return values


def heatmap(
    table: pd.DataFrame,
    column: str,
    tasks: Sequence[str],
    *,
    title: str = "",
    center: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A pair table's column as a task-by-task matrix; with `center`, colours diverge from it."""
    values = square(table, column, tasks)
    side = 1.6 + 0.32 * len(tasks)
    ax = ax or plt.subplots(figsize=(side + 0.8, side))[1]
    sns.heatmap(
        values,
        ax=ax,
        square=True,
        center=center,
        cmap="viridis" if center is None else "vlag",
        xticklabels=list(tasks),
        yticklabels=list(tasks),
        cbar_kws={"shrink": 0.75},
    )
    ax.tick_params(axis="x", labelrotation=90)
    ax.tick_params(axis="y", labelrotation=0)
    ax.grid(visible=False)
    ax.set_title(title or column)
    return ax


def bars(
    frame: pd.DataFrame,
    x: str,
    y: str,
    *,
    low: str | None = None,
    high: str | None = None,
    baselines: Sequence[str] = (),
    hue: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Horizontal bars, one per `x`, with whiskers from `low` to `high`.

    `baselines` names columns of BASELINE_MARKERS, drawn on each bar: what must be beaten. With
    `hue`, each group has one bar per value of that column.
    """
    groups = list(dict.fromkeys(frame[x]))
    kinds = list(dict.fromkeys(frame[hue])) if hue else [None]
    height = 0.8 / len(kinds)
    ax = ax or plt.subplots(figsize=(6.4, 1.2 + 0.42 * len(groups) * max(1, 0.6 * len(kinds))))[1]
    for k, kind in enumerate(kinds):
        part = frame if kind is None else frame[frame[hue] == kind]
        places = np.array([groups.index(g) for g in part[x]]) + (k - (len(kinds) - 1) / 2) * height
        values = part[y].to_numpy(float)
        told = None if kind is None else label(kind)
        ax.barh(places, values, height=0.9 * height, color=color(kind, k), label=told)
        if low and high:
            ax.hlines(places, part[low], part[high], color="black", linewidth=1.4, zorder=3)
        for name in baselines:
            ax.plot(
                part[name].to_numpy(float),
                places,
                BASELINE_MARKERS[name],
                color="white",
                markeredgecolor=BASELINE,
                markeredgewidth=1.6,
                zorder=4,
                label=None if k else label(name),
            )
    ax.set_yticks(range(len(groups)), [label(group) for group in groups])
    ax.invert_yaxis()
    ax.set_xlabel(label(y))
    ax.grid(axis="y", visible=False)
    if hue or baselines:
        below = 0.6 * ax.figure.dpi / ax.bbox.height  # inches under the axes, however tall they are
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -below), ncols=2, frameon=False)
    return ax


def scatter_fit(
    predicted: ArrayLike, actual: ArrayLike, *, title: str = "", ax: Axes | None = None
) -> Axes:
    """Actual against predicted with the diagonal of a perfect prediction; r and n in the title."""
    x, y = np.asarray(predicted, float).ravel(), np.asarray(actual, float).ravel()
    if x.shape != y.shape or len(x) < 2:
        raise MergelibError(
            f"{len(x)} predictions and {len(y)} actual values: give as many, and at least two"
        )
    ax = ax or plt.subplots(figsize=(4.8, 4.6))[1]
    ends = [min(x.min(), y.min()), max(x.max(), y.max())]
    ax.plot(ends, ends, "--", color=BASELINE, linewidth=1.2)
    ax.scatter(x, y, s=28, alpha=0.6, color=PALETTE[0], edgecolor="white", linewidth=0.4)
    varies = x.std() > 0 and y.std() > 0
    told = f"r = {np.corrcoef(x, y)[0, 1]:.2f}, n = {len(x)}" if varies else f"n = {len(x)}"
    ax.set(xlabel="predicted", ylabel="actual", title=f"{title}\n{told}" if title else told)
    return ax


def coefficients(
    frame: pd.DataFrame,
    name: str = "metric",
    value: str = "coefficient",
    low: str = "low",
    high: str = "high",
    *,
    ax: Axes | None = None,
) -> Axes:
    """Coefficients as dots, largest size first, with an interval where the frame has one."""
    frame = frame.iloc[np.argsort(-frame[value].abs().to_numpy(), kind="stable")]
    places = np.arange(len(frame))
    ax = ax or plt.subplots(figsize=(6.4, 1.0 + 0.32 * len(frame)))[1]
    if low in frame and high in frame:
        ax.hlines(places, frame[low], frame[high], color=PALETTE[0], linewidth=2, alpha=0.5)
    ax.plot(frame[value], places, "o", color=PALETTE[0])
    ax.axvline(0, color=BASELINE, linewidth=1)
    ax.set_yticks(places, [str(item) for item in frame[name]])
    ax.invert_yaxis()
    ax.set_xlabel(value)
    return ax


def image_grid(
    images: ArrayLike, titles: Sequence[str] | None = None, *, columns: int = 7
) -> Figure:
    """uint8 images (N, 3, H, W) without smoothing; titles break at each underscore."""
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != np.uint8:
        raise MergelibError(
            f"images of shape {images.shape}, {images.dtype}: give uint8 of shape (N, 3, H, W)"
        )
    rows = -(-len(images) // columns)
    size = (columns, rows) if titles is None else (1.25 * columns, 1.6 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for index, ax in enumerate(axes.flat):
        ax.axis("off")
        if index < len(images):
            ax.imshow(images[index].transpose(1, 2, 0), interpolation="nearest")
            if titles is not None:
                ax.set_title(str(titles[index]).replace("_", "\n"), fontsize=9)
    figure.tight_layout(pad=0.3)
    return figure


def mosaic(images: ArrayLike, columns: int = 3) -> np.ndarray:
    """Images (N, 3, H, W) side by side, row after row, as one (3, rows·H, columns·W).

    Raises MergelibError unless N fills the rows.
    """
    images = np.asarray(images)
    n, channels, height, width = images.shape
    if not n or n % columns:
        raise MergelibError(f"{n} images do not fill rows of {columns}: give a multiple")
    rows = n // columns
    tiles = images.reshape(rows, columns, channels, height, width)
    return tiles.transpose(2, 0, 3, 1, 4).reshape(channels, rows * height, columns * width)


def dots(
    frame: pd.DataFrame,
    rows: str,
    value: str,
    ax: Axes,
    *,
    order: Sequence[str],
    low: str | None = None,
    high: str | None = None,
    hue: str | None = None,
    kinds: Sequence[str] | None = None,
    baselines: Sequence[str] = (),
) -> Axes:
    """Dots in rows `order`, with whiskers from `low` to `high`; a zero line.

    With `hue` the values of that column (in the order of `kinds`) lie below each other in a row,
    in their colours. `baselines` names columns of BASELINE_MARKERS, drawn in the same row.
    """
    kinds = list(kinds or (dict.fromkeys(frame[hue]) if hue else [value]))
    step = 0.72 / len(kinds)
    for k, kind in enumerate(kinds):
        part = frame[frame[hue] == kind] if hue else frame
        places = np.array([order.index(row) for row in part[rows]], dtype=float)
        places += (k - (len(kinds) - 1) / 2) * step
        tint = color(kind, k)
        if low and high:
            ax.hlines(places, part[low], part[high], color=tint, linewidth=1.8, alpha=0.6)
        ax.plot(part[value].to_numpy(float), places, "o", color=tint, markersize=6, zorder=4,
                label=label(kind))  # fmt: skip
        for name in baselines:
            known = part[name].to_numpy(float)
            ax.plot(known, places, BASELINE_MARKERS[name], color="white", markeredgecolor=BASELINE,
                    markeredgewidth=1.3, markersize=6, zorder=3,
                    label=None if k or np.isnan(known).all() else label(name))  # fmt: skip
    ax.axvline(0, color=BASELINE, linewidth=1)
    ax.set_yticks(range(len(order)), [label(row) for row in order])
    ax.set_ylim(len(order) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    return ax
