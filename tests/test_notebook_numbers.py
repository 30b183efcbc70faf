"""What counts as the same output: numbers to a unit of the last digit, words exactly."""

import os
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from notebook_numbers import OutputText, masked, moved, report

TABLE = (
    "                r   n\nmethod               \ntsv          0.71  28\nties        -0.05  28\n"
)


def same(test: str, reference: str) -> bool:
    return OutputText(reference) == OutputText(test)


@pytest.mark.parametrize(
    ("reference", "test"),
    [
        ("r = 0.71", "r = 0.72"),
        ("0.70", "0.69"),
        ("-0.00", "0.00"),
        ("r -0.00, r", "r 0.00, r"),
        ("0.01", "-0.00"),
        ("\N{MINUS SIGN}0.41", "-0.42"),
        ("+0.00 more", "-0.00 more"),
        ("0.5", "0.500001"),  # pandas drops the zeros that all of a column's numbers end on
        ("0.1", "0.0999"),
        ("1", "0.999"),
        ("3.15e-04", "3.16e-04"),
        ("2e+05", "3e+05"),
        ("0.123456789012", "0.123456789991"),
        ("1,234.5 of 7", "1,234.6 of 7"),
        ("[-0.21, 0.30]", "[-0.22, 0.31]"),
        ("<td>0.99</td>", "<td>1.00</td>"),
        ("0.40*", "0.41*"),
        ("9.99 a", "10.00 a"),
        ("12.3%", "12.4%"),
        ("0.1-0.2", "0.2-0.2"),
        (TABLE, TABLE.replace("-0.05", "-0.04")),
        ("a   0.00\nb  -0.01\n", "a  0.00\nb  0.00\n"),
        ("|    a |\n|-----:|\n| -0.00 |", "|   a |\n|----:|\n| 0.00 |"),
    ],
)
def test_a_unit_of_the_last_digit_may_move(reference, test):
    assert test != reference
    assert same(test, reference)
    assert (OutputText(reference) != OutputText(test)) is False


@pytest.mark.parametrize(
    ("reference", "test"),
    [
        ("r = 0.71", "r = 0.73"),
        ("0.01", "-0.01"),
        ("3.15e-04", "3.17e-04"),
        ("3.15e-04", "3.15e-05"),
        ("1.000000000", "1.000002000"),
        ("n = 28", "n = 29"),
        ("1,234", "1,235"),
        ("about 5.", "about 6."),
        ("0.5", "0.58"),
        ("0.10", "\N{EN DASH}"),
        ("0.40*", "0.40"),
        ("nan", "0.00"),
        ("ViT-B-32", "ViT-B-31"),
        ("l2 0.10", "l1 0.10"),
        ("version 1.2.3", "version 1.3.3"),
        ("#aabb12", "#aabb13"),
        ("fewer 0.10", "more 0.10"),
        ("a\nb", "a b"),
        ("<td>0.10</td>", "<th>0.10</th>"),
        (TABLE, TABLE.replace("tsv ", "iso ")),
        (TABLE, TABLE.replace("tsv          0.71  28\n", "")),
        (TABLE, TABLE + "dare         0.71  28\n"),
        ("a 0.10\nb 0.20", "b 0.20\na 0.10"),
        ("a 0.10\nb 0.10", "b 0.10\na 0.10"),
        ("0.10\n0.20", "0.20\n0.10"),
    ],
)
def test_anything_more_is_a_difference(reference, test):
    assert not same(test, reference)
    assert OutputText(reference) != OutputText(test)


def test_identifiers_hold_no_numbers():
    text, numbers = masked("l2to null_95 ViT-B-32 v1.5 x -0.5 (1, 2) 1e-3")
    assert [n.text for n in numbers] == ["32", "-0.5", "1", "2", "1e-3"]
    assert text == "l2to null_95 ViT-B-\0 v1.5 x \0 (\0, \0) \0"


def test_failures_name_the_numbers_and_how_far_they_moved():
    assert [(a.text, b.text) for a, b in moved("0.10 0.20 3", "0.11 0.29 4")] == [
        ("0.20", "0.29"),
        ("3", "4"),
    ]
    assert moved("a 1", "b 1") is None
    assert report("0.10 0.20", "0.11 0.29", "x.ipynb, cell 3") == [
        "x.ipynb, cell 3: 0.29 became 0.20, 0.09 apart"
    ]
    assert report("a 1", "b 1", "here") == ["here: more than numbers differs"]


def test_nbval_compares_numbers_and_still_everything_else(tmp_path, root):
    stored = {
        "print('r 0.704')": "r 0.705\n",
        "print('r 0.704, n 3')": "r 0.707, n 3\n",
        "print('at 0x123456789')": "at 0x987654321\n",
        "print('fewer')": "more\n",
    }
    cells = [
        new_code_cell(source, execution_count=1, outputs=[new_output("stream", text=text)])
        for source, text in stored.items()
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "x.ipynb")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "notebook_numbers", "--nbval"),
            *("--nbval-current-env", "--nbval-sanitize-with", root / "tests" / "nbval.cfg"),
            *("--rootdir", tmp_path, "-p", "no:cacheprovider", "--color=no", "x.ipynb"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root / "tests")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "2 failed, 2 passed" in done.stdout, done.stdout
    assert "x.ipynb, cell 1, stdout: 0.707 became 0.704, 0.003 apart" in done.stdout
    assert "x.ipynb, cell 3, stdout: more than numbers differs" in done.stdout
