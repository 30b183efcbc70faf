"""The tables of a run, gathered from its artifacts."""

import itertools
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from mergelib.checkpoints.reading import TEXT_MATRICES
from mergelib.core.store import digest, read_json
from mergelib.merging.registry import METHODS
from mergelib.metrics.inputs import read_inputs
from mergelib.metrics.registry import METRICS, published_metrics
from mergelib.metrics.table import pairwise
from mergelib.models.backbones import GLYPH_VIT
from mergelib.models.recipe import OPTIMIZERS
from mergelib.pipeline.keys import content_of, device, key, method_params, path, weights_digest
from mergelib.pipeline.loaded import one_thread
from mergelib.pipeline.params import Run
from mergelib.pipeline.task_data import stored_scores


def metrics_table(store: Path, run: Run) -> pd.DataFrame:
    """One row per pair, one column per metric."""
    names = run.metrics or published_metrics()
    by_pairs = {n for n in names if run.gradients_of_pairs and METRICS[n].category == "gradient"}
    with one_thread():
        held = read_inputs(
            path(store, run, "base"),
            [path(store, run, "tuned", task) for task in run.tasks],
            [path(store, run, "summary", task) for task in run.tasks],
            len(TEXT_MATRICES) if run.edition == "paper" else 0,
        )
        table = pairwise(held, run.tasks, [n for n in names if n not in by_pairs], run.edition)
    pairs = zip(table["task_a"], table["task_b"], strict=True)
    files = [path(store, run, "gradients", *pair) for pair in pairs if by_pairs]
    if files:
        published = pd.DataFrame([read_json(file) for file in files])
        table = pd.concat([table, published], axis=1)
    order = [row.name for row in METRICS.rows() if row.name in names]
    return table[["task_a", "task_b", *order]]


def merges_table(store: Path, run: Run) -> pd.DataFrame:
    """One row per pair and method: accuracies of the merge and of the single models."""
    single = {task: stored_scores(store, run, task)["test"]["fine_tuned"] for task in run.tasks}
    rows = []
    for first, second in itertools.combinations(run.tasks, 2):
        for method in run.methods:
            found = read_json(path(store, run, "merged", first, second, method))
            rows.append(
                {
                    "task_a": first,
                    "task_b": second,
                    "method": method,
                    "acc_a": found["acc_a"],
                    "acc_b": found["acc_b"],
                    "single_a": single[first],
                    "single_b": single[second],
                    "seed": run.seed,
                }
            )
    return pd.DataFrame(rows)


def tasks_table(store: Path, run: Run) -> pd.DataFrame:
    """One row per task: sizes, classes, accuracies on the test split and on calibration."""
    rows = []
    for task in run.tasks:
        row, scores = run.row(task), stored_scores(store, run, task)
        rows.append(
            {
                "task": task,
                "family": row.family,
                "source": row.source,
                "n_classes": len(row.class_names),
                "n_train": scores["n_train"],
                "n_calibration": scores["calibration"]["n"],
                "n_test": scores["test"]["n"],
                "zero_shot": scores["test"]["zero_shot"],
                "fine_tuned": scores["test"]["fine_tuned"],
                "zero_shot_calibration": scores["calibration"]["zero_shot"],
                "fine_tuned_calibration": scores["calibration"]["fine_tuned"],
            }
        )
    return pd.DataFrame(rows)


def meta(run: Run, made: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """What the tables are of: source, backbone, optimizer, calibration, edition, digests."""
    recipe = asdict(run.finetune)
    del recipe["save_every"]  # which no number depends on
    glyphs = run.backbone == GLYPH_VIT and not run.given
    return _of_given(run) | {
        "source": "glyph benchmark" if glyphs else run.backbone,
        "name": run.name,
        "backbone": run.backbone,
        "optimizer": {"name": OPTIMIZERS[recipe.pop("optimizer")], **recipe},
        "calibration": {
            "split": "test" if run.edition == "paper" else "calibration",
            "images_per_task": run.pool_per_task,
        },
        "edition": run.edition,
        "methods": {name: METHODS[name].check(method_params(run, name)) for name in run.methods},
        "seed": run.seed,
        "sizes": asdict(run.sizes),
        "device": device(run),
        "bfloat16": run.bfloat16,
        "compile": run.compile,
        "digests": {
            "weights": weights_digest(run.backbone, run.weights),
            "tuned": digest([key(run, "tuned", task) for task in run.tasks]),
            **{name: digest(table.to_csv(index=False)) for name, table in made.items()},
        },
    }


def _of_given(run: Run) -> dict[str, Any]:
    """What only runs have whose tasks are given, or whose heads are made of images."""
    held: dict[str, Any] = {}
    if run.given:
        held["tasks"] = {
            name: {
                "source": run.row(name).source,
                "licence": given.licence,
                "content": content_of(run, name),
            }
            for name, given in run.given.items()
        }
    if run.head != "zero_shot":
        held["head"] = {"kind": run.head, "split": run.head_split}
    if run.image_size:
        held["image_size"] = run.image_size
    return held
