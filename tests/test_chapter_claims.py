"""No sentence of a chapter contradicts its tables in any edition: target, split, backbone."""

from dataclasses import replace

import pytest
from editions import BOOK, Ran, check_ablations, check_fits, faults, run

from mergelib.core.errors import MergelibError
from studies.display import Prose

pytestmark = pytest.mark.slow

FITS = BOOK / "04_per_method_fits.ipynb"
# Few permutations and draws: what the sentences say changes with them, and so do the tables.
FEW = {"qap": 125, "qap_l1": 1, "draws": 60}
ASKED = (
    {"target": "raw", "setting": "ViT-B-32_AdamW"},
    {"split": "l2to"},
)


@pytest.fixture(scope="module")
def default() -> Ran:
    return run(FITS, **FEW)


@pytest.mark.parametrize("edition", ASKED, ids=lambda edition: "-".join(edition.values()))
def test_every_edition_states_its_own_truth(default, edition):
    ran = run(FITS, **FEW, **edition)
    assert check_fits(ran) == []
    assert faults(ran, default) == []
    changed = [cell for cell, text in ran.all(Prose).items() if text != default.all(Prose)[cell]]
    assert {"c04-03", "c04-10", "c04-16", "c04-42"} <= set(changed)


def test_the_default_edition_agrees_with_its_tables(default):
    assert check_fits(default) == []
    assert faults(default) == []


def with_sentence(ran: Ran, cell: str, before: str, after: str) -> Ran:
    told = ran.prose(cell)
    assert before in told
    return replace(ran, outputs=ran.outputs | {cell: Prose(told.replace(before, after))})


def test_a_sentence_that_contradicts_its_table_is_found(default):
    """The check itself can fail: a count, a mean or a verdict that is another one."""
    assert check_fits(
        with_sentence(default, "c04-16", "for all six methods", "for two of six methods")
    )
    assert check_fits(with_sentence(default, "c04-03", "mean r of 0.74", "mean r of 0.64"))
    assert check_fits(with_sentence(default, "c04-23", "(TSV)", "(TIES)"))
    verdict = default.prose("c04-40").split("*(")[1].split(".)*")[0]
    other = "Holds" if verdict != "Holds" else "Does not hold in this edition"
    assert check_fits(with_sentence(default, "c04-40", f"*({verdict}.)*", f"*({other}.)*"))


def test_stale_numbers_and_undefined_ones_are_found(default):
    assert faults(with_sentence(default, "c04-19", "Over all", "nan Over all"))
    moved = {
        cell: replace(out, caption="other") if hasattr(out, "caption") else out
        for cell, out in default.outputs.items()
    }
    assert any(
        "same decimals" in fault for fault in faults(replace(default, outputs=moved), default)
    )


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"method": "emr"}, "unknown method 'emr'"),
        ({"method": "isotropic"}, "methods of both sources"),
        ({"setting": "ViT-L-14_AdamW"}, "unknown source"),
    ],
)
def test_a_choice_that_a_source_lacks_is_refused_at_once(parameters, said):
    with pytest.raises(MergelibError, match=said):
        run(FITS, **parameters)


def test_an_unknown_parameter_is_refused():
    with pytest.raises(KeyError, match="targt"):
        run(FITS, targt="raw")


def test_ablations_name_the_category_that_their_matrix_shows_first():
    ran = run(BOOK / "05_ablations.ipynb", qap=9, starts=2, draws=60, target="raw")
    assert check_ablations(ran) == []
    assert faults(ran) == []
    assert check_ablations(with_sentence(ran, "c05-03", " metrics", " measures"))
