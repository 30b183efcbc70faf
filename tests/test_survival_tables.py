"""Small tables of chapter 9 against the checkout; verdicts that follow the numbers."""

from dataclasses import replace

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from mergelib.core.errors import MergelibError
from mergelib.published.released import SETTINGS
from studies import survival_claims, survival_tables, what_survives
from studies.inputs import pairs_of, read_source
from studies.method_fits import agreement_table
from studies.survival_claims import (
    AS_STATED,
    FAILS,
    HOLDS,
    LEADING,
    NO_JUDGE,
    NO_REPLICATE,
    NUMBERS_ONLY,
    PART,
    REPLICATES,
    Found,
    claim_table,
)

pytestmark = pytest.mark.slow

B16, B32, SGD = SETTINGS
# 1e-6 is the single precision of the stored fits; the figures are checked in test_reproduction
DETERMINED = {
    "survival_signs": 1e-12,
    "survival_distances": 1e-9,
    "survival_targets": 1e-6,
}


@pytest.fixture(scope="module")
def stored():
    return survival_tables.read_frozen()


@pytest.mark.parametrize("name", DETERMINED)
def test_small_tables_are_what_the_checkout_gives(released, stored, name):
    made = survival_tables.MADE[name](released)
    frozen = stored[name.removeprefix("survival_")]
    assert_frame_equal(
        made.reset_index(drop=True), frozen, check_dtype=False, rtol=1e-9, atol=DETERMINED[name]
    )


def test_a_small_table_that_is_absent_is_named(tmp_path):
    with pytest.raises(MergelibError, match="survival_signs"):
        survival_tables.read_frozen(tmp_path)


def test_frozen_agreement_is_that_of_fits_made_here(stored):
    frozen = stored["agreement"].set_index(["setting", "statistic"])
    for setting in (B16, B32):
        table, _ = agreement_table(pairs_of(read_source(setting, "")), "raw", {"paper-l1": 0}, 0)
        now = table.set_index("statistic")["value"]
        # The optimizer amplifies rounding: few of 28 signs and of the top five move.
        assert now.to_dict() == pytest.approx(frozen["value"].xs(setting).to_dict(), abs=0.1)
    assert stored["agreement"]["p"].between(0, 1).all()
    assert all(LEADING in names.split() for names in stored["one_sign"]["metrics"])


def found_with(stored, p: float, equal: int = 0) -> Found:
    """What the chapter would have found with this p everywhere."""
    rows = [
        (setting, split, target, model, method, 0.5, p, p, 0.4, 0.5)
        for setting in SETTINGS
        for split in ("loto", "l2to", "halves")
        for target in ("raw", "normalized", "residual")
        for model in ("ridge", "paper-l1")
        for method in ("tsv", "ties", "mean")
    ]
    columns = ["setting", "split", "target", "model", "method", "r", "p", "p_holm", "null_mean",
               "null_95"]  # fmt: skip
    every = pd.DataFrame(rows, columns=columns)
    every.loc[every["method"] == "mean", "p_holm"] = float("nan")
    wide = pd.MultiIndex.from_product([(B16, B32), ("raw", "normalized")])
    shares = pd.DataFrame(0.9, index=["tsv", "ties"], columns=wide)
    conflict = {s: what_survives.cosine_against_dot(read_source(s, "").metrics) for s in SETTINGS}
    same = pd.DataFrame({"equal": [equal], "of": [10]})
    forecasts = pd.DataFrame(
        {"setting": [B16, B32], "forecast": survival_claims.EVERYTHING, "mean": 0.4, "p": p}
    )
    lead = forecasts.assign(low=0.1 if p < 0.05 else -0.1, high=0.5)
    placebo = pd.DataFrame({"mean": [0.004, 0.006], "published": [0.004, float("nan")]})
    return Found(every, shares, conflict, same, forecasts, lead, placebo, stored)


def test_verdicts_follow_the_numbers(stored):
    yes, no = (claim_table(found_with(stored, p, n)) for p, n in ((0.01, 0), (0.5, 10)))
    assert len(yes) == len(no) == 11
    verdicts = pd.DataFrame({"yes": yes["verdict"], "no": no["verdict"]})
    assert verdicts.iloc[1].tolist() == [HOLDS, FAILS]
    assert verdicts.iloc[2].tolist() == [HOLDS, FAILS]
    assert verdicts.iloc[7].tolist() == [REPLICATES, NO_REPLICATE]
    assert verdicts.iloc[8].tolist() == [REPLICATES, NO_JUDGE]
    assert verdicts.iloc[10].tolist() == [HOLDS, FAILS]
    assert "on both backbones" in yes["here"].iloc[1] and "neither" in no["here"].iloc[1]


def test_verdicts_that_rest_on_small_tables_follow_them(stored):
    found = found_with(stored, 0.01)
    before = claim_table(found)["verdict"]
    assert before.iloc[[3, 4, 5, 6]].tolist() == [AS_STATED, NUMBERS_ONLY, PART, FAILS]
    other = dict(stored)
    other["targets"] = stored["targets"].assign(raw=0.5)
    other["agreement"] = stored["agreement"].assign(p=0.01)
    other["one_sign"] = stored["one_sign"].assign(p=0.01)
    conflict = {s: table.assign(conflict=0.0) for s, table in found.conflict.items()}
    after = claim_table(replace(found, frozen=other, conflict=conflict))["verdict"]
    assert after.iloc[[3, 4, 5, 6]].tolist() == [HOLDS] * 4


def test_one_backbone_alone_holds_in_part(stored):
    found = found_with(stored, 0.01)
    every = found.every.copy()
    every.loc[(every["setting"] == B16) & (every["model"] == "ridge"), ["p", "p_holm"]] = 0.5
    table = claim_table(replace(found, every=every))
    assert table["verdict"].iloc[1] == PART
    assert "on ViT-B/32 alone" in table["here"].iloc[1]
