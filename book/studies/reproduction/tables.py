"""Published figures as a reader's tables: one row a figure, with both ways of getting at it."""

import pandas as pd

from studies.display import ABSENT, label, number
from studies.inputs import NAMES
from studies.reproduction.figures import (
    EVERY_WAY,
    IMPOSSIBLE,
    NO_WAY,
    SOME_WAY,
    by_figure,
)

OUTCOMES = (EVERY_WAY, SOME_WAY, NO_WAY, IMPOSSIBLE)
QUANTITIES = {
    "r_fold_mean": "r, mean over held-out tasks",
    "r_concatenated": "r, folds side by side",
    "top5_overlap": "top-five overlap, %",
    "sign_agreement": "sign agreement, %",
    "n_metrics": "metrics with a weight",
    "n_universal": "metrics in all fits",
    "n_core": "metrics in most fits, one sign",
    "percent": "normalized accuracy, %",
    "gain": "gain, points",
    "normalized": "normalized accuracy",
    "raw": "raw accuracy",
    "contribution": "share of the weights, %",
}
RUNS_SAID = {
    "l1": "penalized",
    "l1 0.1": "penalized, 0.1",
    "l1, ten seeds": "penalized, ten seeds",
    "mse": "squared error",
    "backward": "backward elimination",
    "forward": "forward selection",
    "dense": "main run",
    "mlp": "network",
    "mlp, a start per fold": "network, a start a fold",
    "l2to": "both tasks held out",
    "backward, winner kept": "backward elimination, best start kept",
    "forward, winner kept": "forward selection, best start kept",
}
FIGURES = {
    "figure": "Fit and method",
    "what": "Quantity",
    "printed": "Published",
    "data": "From the released data",
    "own": "Own fits ± sd",
    "outcome": "Comes back",
}


def run_said(name: str) -> str:
    """A reader's words for a published fit."""
    return RUNS_SAID.get(name, label(name))


def figure_rows(table: pd.DataFrame) -> pd.DataFrame:
    """One row a figure of `reproduce`'s table, as text, columns FIGURES, and id, where, note.

    data: what the released data determine; own: mean and standard deviation over our seeds.
    """
    own = table["how"].str.startswith("own")
    data, fits = (table[kept].set_index("id") for kept in (~own, own))
    each = table.drop_duplicates("id").set_index("id")
    outcome = by_figure(table).set_index("id")["outcome"]
    rows = []
    for id_, row in each.iterrows():
        spec = f".{int(row['digits'])}f"
        more = f".{int(row['digits']) + 1}f"
        fit = fits.loc[id_] if id_ in fits.index else None
        item = f": {label(row['item'])}" if row["item"] else ""
        who = [row["version"], NAMES[row["setting"]], run_said(row["run"])]
        who += [label(row["method"])] if row["method"] != "none" else []
        rows.append(
            {
                "id": id_,
                "where": row["where"],
                "figure": ", ".join(who),
                "what": QUANTITIES.get(row["quantity"], label(row["quantity"])) + item,
                "printed": number(float(row["published"]), spec),
                "data": number(float(data["ours"].get(id_, float("nan"))), more),
                "own": ABSENT if fit is None else spread(fit["ours"], fit["ours_sd"], more),
                "outcome": outcome[id_],
                "note": row["note"],
            }
        )
    return pd.DataFrame(rows)


def spread(mean: float, sd: float, spec: str = ".3f") -> str:
    """ "mean ± sd" as text; the mean alone without sd."""
    told = number(float(mean), spec)
    return told if pd.isna(sd) else f"{told} ± {number(float(sd), spec)}"


def by_place(table: pd.DataFrame) -> pd.DataFrame:
    """Figures of each place of the paper by outcome: where, figures, then OUTCOMES."""
    each = by_figure(table)
    counts = each.groupby(["where", "outcome"], sort=False).size().unstack(fill_value=0)
    counts = counts.reindex(columns=list(OUTCOMES), fill_value=0).rename_axis(columns=None)
    counts.insert(0, "figures", counts.sum(axis=1))
    return counts.reset_index()


def outcomes(table: pd.DataFrame) -> dict[str, int]:
    """How many figures have each of OUTCOMES."""
    counts = by_figure(table)["outcome"].value_counts()
    return {name: int(counts.get(name, 0)) for name in OUTCOMES}


def ablation_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """`ablations` as text: setting, category, left_out ("4 of 6"), published, ours, whole."""
    return pd.DataFrame(
        {
            "setting": frame["setting"].map(NAMES),
            "category": frame["category"].map(label),
            "left_out": [
                f"{a} of {b}" for a, b in zip(frame["left out"], frame["in category"], strict=True)
            ],
            "published": [number(float(v), "+.3f") for v in frame["published"]],
            "ours": [
                spread(a, b, "+.3f").replace("± +", "± ")
                for a, b in zip(frame["ours"], frame["sd"], strict=True)
            ],
            "whole": [
                ABSENT if pd.isna(a) else spread(a, b, "+.3f").replace("± +", "± ")
                for a, b in zip(frame["ours, whole"], frame["sd, whole"], strict=True)
            ],
        }
    )
