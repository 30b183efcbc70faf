"""The pair that the chapter "Will these two merge?" asks about when it is given none.

    python -m studies.will_merge --to tables/forecast_pair     (in book; two minutes)

fine-tunes two models, which are frozen with the book: what the chapter says of them must not depend
on a processor's rounding, which training enlarges.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from mergelib.checkpoints.reading import opened
from mergelib.core.store import digest, read_json, save_tensors, write_json
from mergelib.face import forecast
from mergelib.forecasting.answer import Answer, Judged, from_json
from mergelib.forecasting.verdict import THRESHOLD
from mergelib.forecasting.words import by_name, in_shell, models_of
from mergelib.merging.engine import merge
from mergelib.merging.registry import METHODS, preset
from mergelib.models.accuracy import accuracy
from mergelib.models.backbones import GLYPH_VIT, Backbone, load
from mergelib.models.finetune import Recipe, finetune
from mergelib.models.heads import zero_shot_head
from mergelib.tasks.registry import Task
from mergelib.tasks.splits import build
from studies import plots
from studies.display import label

PAIR = {name: f"{name}.safetensors" for name in ("latin_lower", "braille")}
SIZES = {"train": 2400, "calibration": 100, "test": 300}  # the benchmark's
RECIPE = Recipe(steps=40, batch=64, learning_rate=1e-3, weight_decay=0.1, seed=1)
UNLABELLED = "and unlabelled images"  # the usual level of evidence
WORLDS = {  # that the forecast was asked about, in words
    "glyph6_recipe": "glyphs, another recipe",
    "glyph6_lora": "glyphs, LoRA",
    "real20": "photographs and scans, DeiT-Tiny",
    "ViT-B-16_AdamW": "released tables, CLIP ViT-B/16",
    "ViT-B-32_AdamW": "released tables, CLIP ViT-B/32",
}
TRAVELLED = ("weights", "known", "unlabelled + known", "unlabelled + known + weights")
TRAVELLED += ("labelled + known",)


@dataclass(frozen=True)
class Made:
    """What a user would give, in a folder, and what the test images say afterwards.

    `given` are arguments of `ml.forecast`; `known` accuracies (zero-shot, fine-tuned) by task.
    """

    given: Mapping[str, object]
    known: Mapping[str, tuple[float, float]]
    tasks: Mapping[str, Task]


def freeze(folder: Path) -> None:
    """Fine-tune the pair; two checkpoints, float16, and how they came about."""
    backbone = load(GLYPH_VIT)
    folder.mkdir(parents=True, exist_ok=True)
    known, digests = {}, {}
    for name, file in PAIR.items():
        task = build(name, SIZES)
        head = zero_shot_head(backbone, task.class_names, task.templates)
        images = backbone.normalize(task.train.images)
        state = finetune(backbone.model.visual, images, task.train.labels, head, RECIPE)
        half = {n: tensor.half() for n, tensor in state.items()}
        save_tensors(folder / file, half)
        digests[file] = digest(half)
        before = score(backbone, backbone.visual_state(), task)
        known[name] = [before, score(backbone, {n: t.float() for n, t in half.items()}, task)]
    about = {"backbone": GLYPH_VIT, "recipe": asdict(RECIPE), "sizes": SIZES}
    write_json(folder / "meta.json", about | {"known": known, "digests": digests})


def prepare(frozen: Path, folder: Path) -> Made:
    """The frozen pair as a user has it: a base, models, images of either task, class names."""
    meta = read_json(frozen / "meta.json")
    save_tensors(folder / "base.safetensors", load(GLYPH_VIT).visual_state())
    tasks = {name: build(name, SIZES) for name in PAIR}
    for name, task in tasks.items():
        held = {"images": task.calibration.images, "labels": task.calibration.labels}
        save_tensors(folder / f"{name}.safetensors", held)
        np.savez(folder / f"{name}.npz", images=held["images"].numpy())  # no labels in it
        words = {"classes": list(task.class_names), "templates": list(task.templates)}
        (folder / f"{name}.json").write_text(json.dumps(words), encoding="utf-8")
    given = {
        "base": folder / "base.safetensors",
        "models": {name: frozen / file for name, file in PAIR.items()},
        "images": {name: folder / f"{name}.safetensors" for name in PAIR},
        "classes": {name: folder / f"{name}.json" for name in PAIR},
    }
    known = {name: (before, after) for name, (before, after) in meta["known"].items()}
    return Made(given, known, tasks)


def levels(made: Made, n: int, seed: int) -> dict[str, dict[str, object]]:
    """Arguments of `ml.forecast` at each level of evidence."""
    weights = {name: made.given[name] for name in ("base", "models")}
    flat = {name: Path(str(path)).with_suffix(".npz") for name, path in _images(made).items()}
    known = {"known": made.known}
    drawn = {"classes": made.given["classes"], "n": n, "seed": seed}
    return {
        "weights alone": weights,
        "known accuracies": weights | known,
        UNLABELLED: weights | known | drawn | {"images": flat},
        "and their labels": weights | known | drawn | {"images": made.given["images"]},
    }


def _images(made: Made) -> Mapping[str, Path]:
    held = made.given["images"]
    assert isinstance(held, Mapping)
    return held


def travelled(transfer: pd.DataFrame, images: int = 20) -> pd.DataFrame:
    """The rows of the table transfer.csv that the chapter shows, a world's pairs in words."""
    shown = transfer[transfer["forecast"].isin(TRAVELLED) & transfer["n"].isin((0, images))]
    where = shown["reach"].map({"beyond": " beyond the bank"}).fillna("")
    worlds = shown["world"].map(lambda name: WORLDS.get(name, name))
    return shown.assign(world=worlds + ": " + shown["pairs"].astype(str) + " pairs" + where)


def ask(words: Mapping[str, str], answered: str, **settings: object) -> Answer:
    """The answer to what the chapter is given: the one that is there, or a new one.

    `words` by the names of the command's arguments, each as it is written there.
    """
    if answered:
        return from_json(read_json(Path(answered)))
    models = models_of(in_shell(words["models"]))
    given: dict[str, object] = {
        name: by_name(in_shell(words[name]), models, name)
        for name in ("images", "labels", "heads", "classes")
        if words[name]
    }
    known = words["known"] or None
    methods = words["methods"].split(",")
    return forecast(words["base"], models, methods, known=known, **given, **settings)


def moved(of: Judged, most: int = 6) -> pd.DataFrame:
    """What moved the recommended method's forecast most: evidence, by. Rounded before the order."""
    found = pd.DataFrame(of.best.drivers.items(), columns=["evidence", "by"])
    found = found.assign(size=found["by"].abs().round(9))
    return found.sort_values("size", ascending=False, kind="stable")[["evidence", "by"]].head(most)


def draw(of: Judged, kept: pd.Series | None = None) -> Figure:
    """Forecasts with both intervals, a line a method; and what merges kept, where it is known."""
    table = of.table()
    fig, ax = plt.subplots(figsize=(6.4, 0.5 * len(table) + 1.6))
    for k, row in enumerate(table.to_dict("records")):
        color = plots.color(row["method"], k)
        ax.plot([row["low95"], row["high95"]], [k, k], color=color, linewidth=1.2)
        ax.plot([row["low80"], row["high80"]], [k, k], color=color, linewidth=5, alpha=0.5)
        ax.plot(row["mean"], k, "o", color=color)
        if kept is not None:
            ax.plot(kept[row["method"]], k, "D", color="black", fillstyle="none")
    ax.axvline(THRESHOLD, color=plots.BASELINE, linestyle="--", linewidth=1.2)
    ax.set_yticks(range(len(table)), [label(name) for name in table["method"]])
    ax.invert_yaxis()
    ax.set(
        xlabel="normalized accuracy, mean of the tasks", title="What merging is forecast to keep"
    )
    return fig


def truth(made: Made, methods: Sequence[str]) -> pd.DataFrame:
    """What merges keep on the test images: method, a column a task, and the mean, normalized."""
    backbone = load(GLYPH_VIT)
    base = backbone.visual_state()
    models = made.given["models"]
    assert isinstance(models, Mapping)
    tuned = [_state(path) for path in models.values()]
    rows = []
    for method in methods:
        params = {"seed": 0} if METHODS[method].random else {}
        merged = merge(base, tuned, method, **params, **preset(method))
        kept = {
            name: score(backbone, merged, task) / made.known[name][1]
            for name, task in made.tasks.items()
        }
        rows.append({"method": method, **kept, "kept": sum(kept.values()) / len(kept)})
    return pd.DataFrame(rows)


def score(backbone: Backbone, state: Mapping[str, Tensor], task: Task) -> float:
    """Accuracy of an image tower on a task's test images."""
    visual = load(GLYPH_VIT).model.visual
    visual.load_state_dict(dict(state))
    head = zero_shot_head(backbone, task.class_names, task.templates)
    test = task.test
    return accuracy(visual, test.images, test.labels, head, normalize=backbone.normalize)


def _state(path: Path) -> dict[str, Tensor]:
    with opened(path) as weights:
        return {name: weights.read(name).float() for name in weights.shapes}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, required=True)
    freeze(parser.parse_args().to)
