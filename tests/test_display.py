"""What chapters show: sentences with computed numbers, tables and figures that can be read."""

import base64
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from mergelib.core.errors import MergelibError
from studies.display import answer, beside, claim, claims, count, figure, listed, number, say, show

TABLE = pd.DataFrame(
    {"method": ["tsv", "ties"], "r": [0.404, -0.2], "p": [0.0199, np.nan], "pairs": [190, 180]}
)


@pytest.mark.parametrize(
    ("value", "spec", "told"),
    [
        (0.404, ".2f", "0.40"),
        (-0.2, ".1f", "−0.2"),
        (-0.0004, ".2f", "0.00"),
        (0.25, "+.2f", "+0.25"),
        (float("nan"), ".2f", "–"),
        (None, "", "–"),
        (float("-inf"), ".2f", "−∞"),
        (0.834, "%", "83 %"),
        (-0.0304, ".1%", "−3.0 %"),
        (0.0124, "p", "0.012"),
        (0.4218, "p", "0.42"),
        (7, "", "7"),
        (np.int64(1234), ",", "1,234"),
        (True, "", "yes"),
        ("tsv", "", "tsv"),
    ],
)
def test_numbers_as_a_reader_wants_them(value, spec, told):
    assert number(value, spec) == told


def test_sentences_hold_their_numbers():
    assert str(say("r {r:+.2f}, p {p:p}, {n} pairs", r=-0.051, p=0.0312, n=190)) == (
        "r −0.05, p 0.031, 190 pairs"
    )
    assert str(say("{a[tsv]:.1f} of {a[ties]:.1f}", a={"tsv": 0.4, "ties": 0.5})) == "0.4 of 0.5"
    with pytest.raises(MergelibError, match="names 'n'"):
        say("{n} pairs", r=1)


def test_the_verdict_is_that_of_the_test():
    told = {held: str(claim("Fewer, {n}.", held, "As many, {n}.", n=3)) for held in (True, False)}
    assert told[True].startswith("Fewer, 3.") and "Holds" in told[True]
    assert "As many" not in told[True]
    assert "not hold" in told[False] and told[False].endswith("As many, 3.")
    assert "Not asked" in str(claim("Fewer.", None))
    assert "Holds" in str(claim("Numpy's truth.", np.bool_(True)))
    assert str(claims(say("a"), say("b"))) == "- a\n- b"


def test_an_answer_in_short_is_short():
    assert (
        str(answer("Yes.", say("r is {r:.2f}.", r=0.5))) == "**Answer in short.** Yes. r is 0.50."
    )
    assert answer("ViT-B/16, arXiv 2601.22285v8, and 1 2 3 4 5")  # names are no numbers
    with pytest.raises(MergelibError, match="7 numbers"):
        answer("1 2 3 4 5 6 7.5")
    with pytest.raises(MergelibError, match="111 words"):
        answer("word " * 111)


def test_names_and_counts_in_words():
    assert [count(n, 6) for n in (0, 2, 6)] == ["none of six", "two of six", "all six"]
    assert [count(n) for n in (0, 5, 40)] == ["none", "five", "40"]
    assert listed(["tsv", "ties", "dare"]) == "TSV, TIES and DARE"
    assert [listed(["tsv"]), listed([])] == ["TSV", "none"]


def test_a_table_has_human_heads_and_formats_by_column():
    heads = {"method": "Method", "r": ("Glyphs", "r"), "p": ("Glyphs", "p"), "pairs": "Pairs"}
    shown = show(TABLE, "Ridge, *n* < 200", heads, {"p": "p"})
    page = shown._repr_html_()
    rows = re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", page)
    assert rows == [
        *("", "Glyphs", "", "Method", "r", "p", "Pairs"),
        *("TSV", "0.40", "0.020", "190", "TIES", "−0.20", "–", "180"),
    ]
    assert "<figcaption>Ridge, <em>n</em> &lt; 200</figcaption>" in page and 'colspan="2"' in page
    assert page.count('<td class="ml-number">') == 6 and "<details" not in page
    assert repr(shown).splitlines()[0] == "Ridge, *n* < 200"
    assert repr(shown).splitlines()[2].split() == ["TSV", "0.40", "0.020", "190"]


def test_a_long_table_opens_on_demand_and_a_wide_one_is_refused():
    long = show(pd.DataFrame({"n": range(13)}), "Many")
    assert "<summary>13 rows</summary>" in long._repr_html_()
    with pytest.raises(MergelibError, match="7 columns"):
        show(pd.DataFrame(np.zeros((1, 7))), "Wide")
    with pytest.raises(MergelibError, match="no column 'q'"):
        show(TABLE, "Wrong", {"q": "Q"})
    with pytest.raises(MergelibError, match="no column 'q'"):
        show(TABLE, "Wrong", formats={"q": ".1f"})


def test_a_named_index_is_a_column():
    shown = show(TABLE.set_index("method"), "By method", {"method": "Method", "r": "r"})
    assert [row[0] for row in shown.rows] == ["TSV", "TIES"]


def test_a_figure_carries_caption_and_words():
    drawn, ax = plt.subplots()
    ax.plot([0, 1])
    shown = figure(drawn, "A line; n = 2", "one line that rises")
    data, told = shown._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert told == {"image/png": {"alt": "one line that rises", "caption": "A line; n = 2"}}
    assert data["text/plain"] == "A line; n = 2\n[one line that rises]"
    assert not plt.fignum_exists(drawn.number)  # shown once
    with pytest.raises(MergelibError, match="caption and an alt text"):
        figure(plt.figure(), "A line", " ")
    plt.close("all")


def test_sources_stand_side_by_side():
    one, other = TABLE[["method", "r"]], TABLE.assign(r=TABLE["r"] + 1).iloc[:1][["method", "r"]]
    found = beside({"a": one, "b": other}, "method")
    assert list(found.columns) == ["method", "a: r", "b: r"]
    assert found["a: r"].to_list() == [0.404, -0.2] and found["b: r"].iloc[0] == 1.404
    assert np.isnan(found["b: r"].iloc[1])  # what a source lacks
