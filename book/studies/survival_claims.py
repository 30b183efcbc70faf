"""The published claims beside what is found here, with verdicts derived from the numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from mergelib.published.released import SETTINGS
from studies.display import Prose, answer, count, listed, say
from studies.inputs import NAMES
from studies.regularization import PUBLISHED_RUN
from studies.reproduction.figures import EVERY_WAY
from studies.retrainings import PENALTIES

B16, B32, SGD = SETTINGS
LEVEL = 0.05  # of a p-value that counts as beyond chance
PREDICTORS = ("paper-l1", "ridge")
FAIR = ("l2to", "halves")  # splits that keep both tasks of a test pair out of training
HOLDS, PART, FAILS = "holds", "holds in part", "does not hold"
REPLICATES, NO_REPLICATE = "replicates", "does not replicate"
NUMBERS_ONLY, NO_JUDGE = "the numbers hold, the conclusion does not", "cannot be judged"
AS_STATED = "does not hold as stated"
GRADIENTS = ("encoder_gradient", "input_gradient")
EVERYTHING = "ridge on metrics + known"
LEADING = "encoder_gradient_l2_distance"


@dataclass(frozen=True)
class Found:
    """What chapter 9 computed and read.

    every: tables of `audit` and `paper_audit` with the column setting; shares: additive share of
    the variance, index method, columns (setting, value); conflict: `cosine_against_dot` by setting;
    same: `identical` of the SGD merges; forecasts: `forecast_table` by setting, and `lead` its
    frozen version; placebo: `control_over_base`,
    with the printed gain as `published`; frozen: `survival_tables.read_frozen`.
    """

    every: pd.DataFrame
    shares: pd.DataFrame
    conflict: dict[str, pd.DataFrame]
    same: pd.DataFrame
    forecasts: pd.DataFrame
    lead: pd.DataFrame
    placebo: pd.DataFrame
    frozen: dict[str, pd.DataFrame]

    def row(self, setting: str, model: str, split="loto", target="raw", method="mean") -> pd.Series:
        """One row of `every`."""
        asked = {"setting": setting, "model": model, "split": split, "target": target}
        asked["method"] = method
        kept = self.every
        for column, value in asked.items():
            kept = kept[kept[column] == value]
        return kept.iloc[0]

    def beyond(self, setting: str) -> bool:
        """Whether both predictors' mean r, one task held out, raw accuracy, is beyond chance."""
        return all(self.row(setting, model)["p"] < LEVEL for model in PREDICTORS)

    def steady(self, target: str, settings: Sequence[str] = (B16, B32)) -> list[str]:
        """Methods (and "mean") that ridge predicts beyond chance in both fair splits everywhere.

        By p corrected for the number of methods; for the mean over methods its own.
        """
        at = (self.every["model"] == "ridge") & self.every["split"].isin(FAIR)
        part = self.every[at & (self.every["target"] == target)]
        part = part[part["setting"].isin(settings)]
        p = part["p_holm"].fillna(part["p"]) < LEVEL
        kept = p.groupby(part["method"], sort=False).all()
        return [str(name) for name in kept[kept].index]

    def forecast(self, setting: str, name: str = EVERYTHING) -> pd.Series:
        """One row of `forecasts`."""
        at = (self.forecasts["setting"] == setting) & (self.forecasts["forecast"] == name)
        return self.forecasts[at].iloc[0]

    def ahead(self, setting: str, name: str = EVERYTHING) -> pd.Series:
        """One row of `lead`."""
        at = (self.lead["setting"] == setting) & (self.lead["forecast"] == name)
        return self.lead[at].iloc[0]


def degree(n: int, of: int) -> str:
    """The verdict on a claim that n of `of` questions bear out."""
    return HOLDS if n == of else PART if n else FAILS


def where(held: Sequence[bool], settings: Sequence[str] = (B16, B32)) -> str:
    """On which backbones: "on both backbones", "on ViT-B/32 alone", "on neither backbone"."""
    kept = [NAMES[s] for s, yes in zip(settings, held, strict=True) if yes]
    if len(kept) == len(settings):
        return "on both backbones"
    return f"on {listed(kept)} alone" if kept else "on neither backbone"


def claim_table(found: Found) -> pd.DataFrame:
    """claim, published, here, verdict: one row for each published claim, in the book's order."""
    rows = [
        _released(found), _predict(found), _unseen(found), _normalized(found), _agreement(found),
        _steadiest(found), _aligned(found), _other_backbone(found), _sgd(found), _penalty(found),
        _forecast(found),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["claim", "published", "here", "verdict"])


def _released(found: Found) -> tuple[str, str, str, str]:
    counts = found.frozen["reproduced"].groupby("outcome")["figures"].sum()
    all_, back = int(counts.sum()), int(counts[EVERY_WAY])
    here = say("{back} of {all} printed figures come back in every way that can be asked "
               "(chapter 8)", back=back, all=all_)  # fmt: skip
    verdict = HOLDS if back >= 0.9 * all_ else PART
    return "Released numbers let the paper be computed again", "data and fits", str(here), verdict


def _predict(found: Found) -> tuple[str, str, str, str]:
    one, two = (found.row(s, "paper-l1") for s in (B16, B32))
    held = [found.beyond(s) for s in (B16, B32)]
    here = say(
        "chance alone gives {a:.2f} and {b:.2f}; both predictors are beyond it {where}",
        a=one["null_mean"], b=two["null_mean"], where=where(held),
    )  # fmt: skip
    printed = "r = 0.54 and 0.65, one task held out"
    return "Metrics predict mergeability", printed, str(here), degree(sum(held), 2)


def _unseen(found: Found) -> tuple[str, str, str, str]:
    kept = {target: found.steady(target) for target in ("normalized", "residual")}
    here = say(
        "ridge, both backbones, two splits: normalized accuracy of {n}; the pair's own part of {r}",
        n=_methods(kept["normalized"]), r=_methods(kept["residual"]),
    )  # fmt: skip
    methods = [m for m in found.every["method"].unique() if m != "mean"]
    reached = [m for m in kept["normalized"] if m != "mean"]
    some = degree(len(reached), len(methods)) if reached or not kept["residual"] else PART
    printed = "version 1: r = 0.39 (weight average), 0.25 (TSV)"
    return "… of tasks never seen", printed, str(here), some


def _methods(names: Sequence[str]) -> str:
    return listed(["the mean over methods" if n == "mean" else n for n in names], "no method")


def _normalized(found: Found) -> tuple[str, str, str, str]:
    at = found.frozen["targets"]
    raw = found.shares.xs("raw", axis=1, level=1)
    here = say(
        "stored fits give the stored r with raw accuracy (at most {raw:.6f} off), not with "
        "normalized (up to {normalized:.2f} off); task effects are {low:.1%} or more of raw",
        raw=at["raw"].max(), normalized=at["normalized"].max(), low=raw.to_numpy().min(),
    )  # fmt: skip
    fitted_raw = at["raw"].max() < 0.01 < at["normalized"].max()
    return (
        "… and its normalized accuracy",
        "so the text",
        str(here),
        AS_STATED if fitted_raw else HOLDS,
    )


def _agreement(found: Found) -> tuple[str, str, str, str]:
    at = found.frozen["agreement"]
    at = at[at["setting"] == B16].set_index("statistic")
    here = say(
        "fits to permuted tasks agree as much: {top:.0%} and {sign:.0%}, p = {p:p} and {q:p}",
        top=at.at["top5_overlap", "null_mean"], sign=at.at["sign_agreement", "null_mean"],
        p=at.at["top5_overlap", "p"], q=at.at["sign_agreement", "p"],
    )  # fmt: skip
    more = int((at["p"] < LEVEL).sum())
    verdict = degree(more, len(at)) if more else NUMBERS_ONLY
    printed = "64.0 % of the top five, 79.3 % of signs"
    return "Methods share what matters", printed, str(here), verdict


def _steadiest(found: Found) -> tuple[str, str, str, str]:
    signs = found.frozen["signs"].set_index("metric").loc[LEADING]
    chance = found.frozen["one_sign"].set_index("setting").loc[B16]
    here = say(
        "negative in {n} of {fits} stored fits; {count} metrics keep one sign, by chance up to "
        "{null:.0f}, p = {p:p}",
        n=round(signs["negative"] * signs["fits"]), fits=int(signs["fits"]),
        count=int(chance["count"]), null=chance["null_95"], p=chance["p"],
    )  # fmt: skip
    steady, more = signs["negative"] == 1, chance["p"] < LEVEL
    printed = "negative in all methods"
    claim = "The encoder gradients' distance is the steadiest predictor"
    return claim, printed, str(here), degree(int(steady) + int(more), 2)


def _aligned(found: Found) -> tuple[str, str, str, str]:
    shares = [found.conflict[s].loc[kind, "conflict"] for s in (B16, B32) for kind in GRADIENTS]
    here = say(
        "signs of cosine and dot product differ in {low:.0%} to {high:.0%} of the pairs; of two "
        "vectors they never do",
        low=min(shares), high=max(shares),
    )  # fmt: skip
    verdict = FAILS if min(shares) > 0.25 else PART if max(shares) > 0 else HOLDS
    claim = "… as gradient metrics measure how gradients align"
    return claim, "cosine, dot product, distance", str(here), verdict


def _other_backbone(found: Found) -> tuple[str, str, str, str]:
    at = found.row(B32, "paper-l1")
    here = say("r = {r:.2f}, p = {p:p}; ridge p = {q:p}", r=at["r"], p=at["p"],
               q=found.row(B32, "ridge")["p"])  # fmt: skip
    verdict = REPLICATES if found.beyond(B32) else NO_REPLICATE
    return "The study repeated on ViT-B/32", "r = 0.65", str(here), verdict


def _sgd(found: Found) -> tuple[str, str, str, str]:
    equal, all_ = int(found.same["equal"].sum()), int(found.same["of"].sum())
    here = say("{equal} of {all} merge accuracies are those of the AdamW models, bit for bit",
               equal=equal, all=all_)  # fmt: skip
    copied = equal > 0.5 * all_
    verdict = NO_JUDGE if copied else REPLICATES if found.beyond(SGD) else NO_REPLICATE
    return "The study repeated with SGD", "r = 0.59", str(here), verdict


def _penalty(found: Found) -> tuple[str, str, str, str]:
    at = found.placebo.dropna(subset="published")
    here = say(
        "the penalty has no gradient; re-trainings without an acting penalty gain "
        "{low:.2f} to {high:.2f} points, by method",
        low=100 * at["mean"].min(), high=100 * at["mean"].max(),
    )  # fmt: skip
    penalty = PUBLISHED_RUN.split(" ")[0]
    verdict = PART if PENALTIES[penalty] else FAILS
    claim, printed = "Penalizing gradients makes models mergeable", "+0.55, later +0.41 points"
    return claim, printed, str(here), verdict


def _forecast(found: Found) -> tuple[str, str, str, str]:
    at = [found.forecast(s) for s in (B16, B32)]
    ahead = [found.ahead(s)["low"] > 0 for s in (B16, B32)]
    here = say(
        "metrics with numbers of the single tasks: r = {a:.2f} and {b:.2f} on unseen tasks, "
        "p = {p:p} and {q:p}; its lead over the published predictor is safe {where}",
        a=at[0]["mean"], b=at[1]["mean"], p=at[0]["p"], q=at[1]["p"], where=where(ahead),
    )  # fmt: skip
    verdict = degree(sum(row["p"] < LEVEL for row in at), 2)
    return "What is known before merging can forecast a merge", "the premise", str(here), verdict


def answer_of(found: Found, table: pd.DataFrame) -> Prose:
    """The chapter's answer in short."""
    one, two = (found.row(s, "paper-l1") for s in (B16, B32))
    at = [found.forecast(s) for s in (B16, B32)]
    held = table["verdict"].isin([HOLDS, REPLICATES]).sum()
    part = (table["verdict"] == PART).sum()
    premise = table["verdict"].iloc[-1]
    unseen = [m for m in found.steady("normalized") if m != "mean"]
    opening = {HOLDS: "The premise holds", PART: "The premise holds in part"}
    return answer(
        say(
            "{opening}; of {n} published claims {held} hold and {part} hold in part.",
            opening=opening.get(premise, "The premise does not hold"),
            n=count(len(table)),
            held=count(int(held)),
            part=count(int(part)),
        ),  # fmt: skip
        say(
            "With one task held out the published predictor has r = {a:.2f} and {b:.2f} on two "
            "backbones where chance gives {c:.2f} and {d:.2f}: beyond chance {where}.",
            a=one["r"],
            b=two["r"],
            c=one["null_mean"],
            d=two["null_mean"],
            where=where([found.beyond(s) for s in (B16, B32)]),
        ),  # fmt: skip
        say(
            "With both tasks held out, metrics foretell the normalized accuracy of {methods}. "
            "Metrics joined with numbers of the single tasks forecast merges of unseen tasks, "
            "r = {r:.2f} and {s:.2f}: beyond chance {where}.",
            methods=listed(unseen, "no method"),
            r=at[0]["mean"],
            s=at[1]["mean"],
            where=where([row["p"] < LEVEL for row in at]),
        ),  # fmt: skip
    )
