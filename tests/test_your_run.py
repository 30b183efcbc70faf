"""The chapter on any run: what it computes, and that few tasks or odd names do not stop it."""

import html
import itertools
import json
import math
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from editions import BOOK, faults, run
from scipy.stats import spearmanr

from mergelib.book import own
from mergelib.cli import main
from mergelib.core.errors import MergelibError
from studies import your_run
from studies.display import Drawn, Prose, Shown, show

CHAPTER = BOOK / "16_your_run.ipynb"
ODD = ["<b>x</b>", "a`b", "$x$ and $y", "a*b*c_d", "[l](u) | 1 2 3 4 5 6 7 8", "NA", "01", "tsv"]
N = 40  # test images


def write(folder: Path, tasks, methods=("weight_avg", "ties"), metrics=3, bare=False, zero=()):
    """Tables as `mergelib run` writes them, of made-up accuracies; `bare` without meta.json."""
    rng = np.random.default_rng(0)
    tuned = {task: 0.0 if task in zero else rng.integers(20, N) / N for task in tasks}
    pairs = list(itertools.combinations(tasks, 2))
    known = [
        {"task": task, "source": "folder x", "n_classes": 5, "n_train": 50, "n_test": N}
        | {"zero_shot": rng.integers(5, 25) / N, "fine_tuned": tuned[task]}
        for task in tasks
    ]
    merges = [
        {"task_a": a, "task_b": b, "method": method}
        | {"acc_a": rng.integers(8, N) / N, "acc_b": rng.integers(8, N) / N}
        | {"single_a": tuned[a], "single_b": tuned[b], "seed": 0}
        for a, b in pairs
        for method in methods
    ]
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(known).to_csv(folder / "tasks.csv", index=False)
    pd.DataFrame(merges).to_csv(folder / "merges.csv", index=False)
    if metrics:
        values = {f"m_{k}": rng.normal(size=len(pairs)) for k in range(metrics)}
        table = pd.DataFrame(pairs, columns=["task_a", "task_b"]).assign(**values)
        table.to_csv(folder / "metrics.csv", index=False)
    if not bare:
        meta = {"name": "mine", "backbone": "timm/x", "head": {"kind": "probe", "split": "train"}}
        (folder / "meta.json").write_text(json.dumps(meta | {"methods": {m: {} for m in methods}}))
    return folder


def letters(n: int) -> list[str]:
    return list("abcdefgh"[:n])


def test_enough_tasks_are_those_whose_interval_no_single_pair_decides():
    for tasks in range(2, your_run.tasks_for_intervals() + 1):
        drawn = list(itertools.product(range(tasks), repeat=tasks))
        alone = sum(set(each) == {0, 1} for each in drawn) / len(drawn)
        assert (alone < 0.025) == (tasks == your_run.tasks_for_intervals())


@pytest.mark.parametrize("metrics", [1, 6, 7, 28, 36, 37])
def test_enough_tasks_for_metrics_have_renamings_enough(metrics):
    tasks = your_run.tasks_for_metrics(metrics)
    assert metrics / math.factorial(tasks) <= 0.05 + 1e-12
    least = your_run.tasks_for_intervals()
    assert tasks == least or metrics / math.factorial(tasks - 1) > 0.05
    assert your_run.pairs_of(tasks) == len(list(itertools.combinations(range(tasks), 2)))


@pytest.mark.parametrize("n", [2, 4, 6])
def test_summary_pairs_and_tasks_against_loops(tmp_path, n):
    ran = your_run.read(write(tmp_path, letters(n)))
    table = your_run.summary(ran, 200, 0)
    known = ran.tasks.set_index("task")
    kept = {"zero_shot": []} | {method: [] for method in ran.methods}
    sides: dict = {task: [] for task in letters(n)}
    for row in ran.merges.itertuples():
        shares = row.acc_a / row.single_a, row.acc_b / row.single_b
        kept[row.method].append(sum(shares) / 2)
        if row.method == "ties":
            kept["zero_shot"].append(
                sum(known.zero_shot[t] / known.fine_tuned[t] for t in (row.task_a, row.task_b)) / 2
            )
            sides[row.task_a].append(shares)
            sides[row.task_b].append(shares[::-1])
    for name, values in kept.items():
        assert table.loc[name, "normalized"] == pytest.approx(np.mean(values))
        assert table.loc[name, "pairs"] == len(values)
    assert table["low"].notna().all() == table["low"].notna().any() == (n >= 5)
    pairs = your_run.pair_table(ran, "ties")
    assert pairs["normalized"].tolist() == sorted(kept["ties"], reverse=True)
    well = sum(min(both) >= 0.9 for part in sides.values() for both in part)
    assert 2 * pairs["well"].sum() == well
    assert pairs["pays"].sum() == sum(np.array(kept["ties"]) > np.array(kept["zero_shot"]))
    for row in your_run.by_task(pairs).itertuples():
        own, others = np.array(sides[row.task]).T
        assert (row.kept, row.left) == (pytest.approx(own.mean()), pytest.approx(others.mean()))
        assert row.least == own.min()
    best = your_run.ranked(table, ran)
    assert best == sorted(ran.methods, key=lambda m: -np.mean(kept[m]))
    behind = your_run.leads(ran, best[0], 200, 0)
    assert (behind is None) == (n < 5)
    assert behind is None or list(behind.index) == best[1:]


def test_metrics_are_asked_where_there_are_enough_pairs(tmp_path):
    few = your_run.read(write(tmp_path / "few", letters(5), metrics=20))
    assert your_run.rank_correlations(few, "ties", 50, 0) is None
    enough = your_run.read(write(tmp_path / "enough", letters(6), metrics=20))
    found = your_run.rank_correlations(enough, "ties", 50, 0)
    y = your_run.with_baselines(enough)["ties"].to_numpy()
    for name in your_run.measured(enough):
        rho = spearmanr(enough.metrics[name], y).statistic
        assert found.loc[name, "rho"] == pytest.approx(rho)
    assert found["rho"].abs().round(9).is_monotonic_decreasing
    assert found["p_holm"].isna().tolist() == [name == "zero_shot" for name in found.index]
    holed = enough.metrics.assign(m_0=1.0, m_1=[np.nan, *enough.metrics["m_1"][1:]])
    (tmp_path / "enough" / "metrics.csv").write_text(holed.to_csv(index=False))
    assert len(your_run.measured(your_run.read(tmp_path / "enough"))) == 18
    (tmp_path / "enough" / "metrics.csv").unlink()
    without = your_run.read(tmp_path / "enough")
    assert your_run.measured(without) == []
    assert your_run.rank_correlations(without, "ties", 50, 0) is None


def test_names_stay_what_their_user_wrote(tmp_path):
    ran = your_run.read(write(tmp_path, ODD))
    assert ran.tasks["task"].tolist() == ODD and set(ran.merges["task_b"]) == set(ODD[1:])
    assert your_run.named("a_b`c\nd") == "`a_b'c d`"
    assert your_run.names(["x", "y", "z"], 2) == "`x`, `y` and 1 more"
    table = show(pd.DataFrame({"task": list(map(your_run.named, ODD))}), "odd", {"task": "Task"})
    shown = re.findall(r"<code>(.*?)</code>", table._repr_html_())
    assert [html.unescape(text) for text in shown] == [name.replace("`", "'") for name in ODD]
    assert your_run.ticks(["$a$", "x" * 99]) == [r"\$a\$", "x" * 23 + "…"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tasks", "more"),
    [
        (letters(2), {"methods": ["tsv"], "metrics": 0, "bare": True}),
        (letters(2), {}),
        (letters(3), {"methods": ["ties"], "zero": ("b",)}),
        (letters(4), {}),
        (ODD, {"metrics": 30}),
    ],
    ids=["one pair and method, bare", "one pair", "a task left out", "four tasks", "odd names"],
)
def test_the_chapter_speaks_of_any_run(tmp_path, tasks, more):
    folder = write(tmp_path, tasks, **more)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        ran = run(CHAPTER, tables=str(folder), draws=60)
    assert faults(ran) == []
    said = " ".join(text for kind in (Prose, Shown, Drawn) for text in ran.all(kind).values())
    assert not re.search(r"\b(nan|inf)\b", said)
    shown = repr(ran.outputs["run-regime"])
    assert all(your_run.named(task) in shown for task in tasks)
    few = len(tasks) < your_run.tasks_for_intervals()
    assert ("no interval" in repr(ran.outputs["run-methods"])) == few
    if few and more.get("metrics", 1):
        assert "too few pairs" in ran.prose("run-correlations")


def test_the_committed_page_is_of_the_second_world():
    shown = your_run.read(BOOK / "tables" / "real20")
    text = CHAPTER.read_text(encoding="utf-8")
    assert all(your_run.named(task)[1:-1] in text for task in shown.tasks["task"])


def test_tables_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(MergelibError, match="no folder of tables .*gone"):
        your_run.read(tmp_path / "gone")
    with pytest.raises(MergelibError, match="merges.csv is missing"):
        your_run.read(tmp_path)
    folder = write(tmp_path, letters(2), zero=("a", "b"))
    with pytest.raises(MergelibError, match="no pair of two models"):
        your_run.read(folder)
    write(tmp_path, letters(2))
    pd.read_csv(folder / "tasks.csv").drop(columns="n_test").to_csv(folder / "tasks.csv")
    with pytest.raises(MergelibError, match="tasks.csv: no column n_test"):
        your_run.read(folder)
    write(tmp_path, letters(2))
    with pytest.raises(MergelibError, match="unknown method 'tvs'"):
        run(CHAPTER, tables=str(folder), method="tvs")


def command(words: list[str]) -> int:
    return main(["book", *map(str, words)])


def test_tables_of_other_tasks_or_fewer_methods_are_not_the_benchmarks(tmp_path):
    ours = BOOK / "tables" / "glyph20"
    assert own.left_out(BOOK.parent, ours) == ""
    assert "not the benchmark's 20" in own.left_out(BOOK.parent, BOOK / "tables" / "real20")
    assert own.left_out(tmp_path, write(tmp_path / "t", letters(2))) == ""  # a book without either
    for name in ("tasks", "merges"):
        table = pd.read_csv(ours / f"{name}.csv")
        few = table[table["method"] != "dare"] if name == "merges" else table
        few.to_csv(tmp_path / "t" / f"{name}.csv", index=False)
    assert own.left_out(BOOK.parent, tmp_path / "t").endswith("a method of the benchmark, dare")
    assert own.edition_of(tmp_path / "my tables") == "run-my_tables"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tables", "gone"], "gone/merges.csv is missing: make it with"),
        (["--tables", "gone", "--out", "p.html"], "gone/merges.csv is missing: make it with"),
        (["--tables", "empty", "--out", "p.html"], "empty/merges.csv has no row"),
        (["--tables", "other", "--out", "p.html"], "other/merges.csv: no column task_b"),
        (["--tables", "t", "--out", "t/p.html"], "t/p.html is a part of the input t"),
        (["--tables", "t", "--out", "p.html", "-p", "epochs", "3"], "parameter epochs"),
        (["--tables", "t", "--out", "p.html", "--only", "04"], "one page about a run: give"),
        (["--out", "p.html"], "one page about a run: give --tables"),
    ],
)
def test_what_the_command_cannot_use_is_one_line(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    write(Path("t"), letters(2))
    write(Path("empty"), letters(2))
    header = Path("empty/merges.csv").read_text().splitlines()[0]
    Path("empty/merges.csv").write_text(header + "\n")
    Path("other").mkdir()
    Path("other/merges.csv").write_text("task_a\nx\n")
    before = sorted(Path().rglob("*"))
    assert command(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0]
    assert sorted(Path().rglob("*")) == before


@pytest.mark.slow
def test_a_page_that_fails_leaves_the_old_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("p.html").write_text("old")
    words = ["--tables", write(Path("t"), letters(2)), "--out", "p.html", "-p", "method", "tvs"]
    assert command(words) == 2
    assert "unknown method 'tvs'" in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == ["p.html", "t"]
    assert Path("p.html").read_text() == "old"
