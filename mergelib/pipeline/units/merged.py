"""The merges of a pair."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from mergelib.core.store import write_json
from mergelib.merging.engine import merge
from mergelib.merging.knowledge import weights_of_knowledge
from mergelib.merging.registry import METHODS
from mergelib.pipeline.keys import method_params, path
from mergelib.pipeline.loaded import checkpoint, evaluating, one_thread, scratch
from mergelib.pipeline.params import Run
from mergelib.pipeline.task_data import score, stored_scores


def make(store: Path, run: Run, first: str, second: str) -> list[Path]:
    """Merge a pair by every method; store the merged model's accuracy on both test splits."""
    files = []
    for method in run.methods:
        file = path(store, run, "merged", first, second, method)
        files.append(file)
        if not file.is_file():
            with one_thread():
                write_json(file, accuracies(store, run, (first, second), method))
    return files


def accuracies(store: Path, run: Run, pair: tuple[str, str], method: str) -> dict[str, float]:
    """Accuracy of a pair's merge on each one's test split."""
    # one encoder, whose weights every merge writes over
    merged_state(store, run, pair, method, scratch(run).state_dict())
    sides = zip(("acc_a", "acc_b"), pair, strict=True)
    return {side: score(store, run, evaluating(run), task, "test") for side, task in sides}


def merged_state(
    store: Path,
    run: Run,
    tasks: Sequence[str],
    method: str,
    into: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The merge of the models of tasks; `into` as `merging.engine.merge` takes it.

    A method that takes weights and was given none gets those of `weights_of_knowledge`.
    """
    files = [path(store, run, "base"), *(path(store, run, "tuned", task) for task in tasks)]
    params = method_params(run, method)
    if "weights" in params and params["weights"] is None:
        params["weights"] = knowledge(store, run, tasks)
    factors = None
    if METHODS[method].factored:
        factors = [path(store, run, "factors", task) for task in tasks]
    base, *tuned = (checkpoint(run, file) for file in files)
    return merge(base, tuned, method, run.seed, factors, into, **params)


def knowledge(store: Path, run: Run, tasks: Sequence[str]) -> list[float]:
    """Weights for a merge by what the base knows of the tasks, seen on their calibration splits."""
    scores = [stored_scores(store, run, task)["calibration"] for task in tasks]
    before, after = ([score[k] for score in scores] for k in ("zero_shot", "fine_tuned"))
    return weights_of_knowledge(before, after)
