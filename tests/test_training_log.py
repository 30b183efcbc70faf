"""Logs of fine-tunings: read back, and where validation was best."""

import csv
from pathlib import Path

import pandas as pd
import pytest

from mergelib.core.errors import MergelibError
from mergelib.models.progress import LOG
from mergelib.models.recipe import Recipe, learning_rate
from studies.training_log import curves, read_logs, turning

FROZEN = Path(__file__).parents[1] / "book" / "tables" / "training_log"


def written(folder: Path, name: str, losses: list[float | None]) -> None:
    rows = [
        (k + 1, 0.1, 1.0, "" if v is None else v, "" if v is None else k / 10)
        for k, v in enumerate(losses)
    ]
    text = [",".join(LOG), *(",".join(map(str, row)) for row in rows)]
    (folder / f"{name}.csv").write_text("\n".join(text) + "\n")


def test_logs_are_read_by_task_and_seed(tmp_path):
    written(tmp_path, "two-words-3", [None, 0.5, None, 0.2, 0.2, 0.4])
    written(tmp_path, "mnist-0", [0.9, 0.8])
    logs = read_logs(tmp_path)
    assert list(logs.columns) == ["task", "seed", *LOG] and len(logs) == 8
    found = turning(logs).set_index("task")
    assert found.loc["two-words", ["seed", "steps", "lowest_at"]].tolist() == [3, 6, 4]
    assert found.loc["two-words", ["lowest", "last", "accuracy"]].tolist() == [0.2, 0.4, 0.5]
    assert found.loc["mnist", ["seed", "steps", "lowest_at"]].tolist() == [0, 2, 2]
    panels = curves(logs).axes
    assert [len(ax.lines) for ax in panels] == [2, 4, 2]


def test_what_is_no_log_is_named(tmp_path):
    with pytest.raises(MergelibError, match="has no log"):
        read_logs(tmp_path)
    (tmp_path / "mnist-0.csv").write_text("step,loss\n1,2\n")
    with pytest.raises(MergelibError, match="mnist-0.csv"):
        read_logs(tmp_path)


def test_the_frozen_logs_are_of_the_recipe_of_the_benchmark():
    recipe = Recipe(steps=120, learning_rate=1e-3)  # params/glyph20.yaml
    for file in sorted(FROZEN.glob("*.csv")):
        with file.open() as lines:
            rows = list(csv.DictReader(lines))
        assert len(rows) == recipe.steps
        for k, row in enumerate(rows):
            assert float(row["learning_rate"]) == pytest.approx(learning_rate(k, recipe), rel=1e-12)
            assert (row["validation_loss"] == "") == ((k + 1) % 10 != 0)
    tasks = pd.read_csv(FROZEN.parent / "glyph20" / "tasks.csv").set_index("task")
    for row in turning(read_logs(FROZEN)).itertuples():  # the same training on another processor
        n = tasks.loc[row.task, "n_calibration"]
        assert abs(row.accuracy - tasks.loc[row.task, "fine_tuned_calibration"]) <= 5 / n
