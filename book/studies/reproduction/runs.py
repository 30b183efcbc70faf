"""The fits that the paper reports: on which pairs, metrics and methods, and by which predictor."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mergelib.core.errors import MergelibError
from mergelib.core.store import read_json
from mergelib.pairs.tables import FINAL_METHODS, Pairs, Tables, assemble, excluded_metrics
from mergelib.pairs.targets import target as target_of
from mergelib.predict.splits import fold_masks, splitter
from mergelib.published import released
from studies import released_fits

FIRST_METHODS = ("weight_avg", "arithmetic", "tsv", "isotropic")
CATEGORIES = {
    "gradient": "grad_based",
    "activation": "activation",
    "subspace": "subspace",
    "task vector": "task_vector",
    "effective rank": "eff_rank",
}


@dataclass(frozen=True)
class Run:
    """One published fit of all methods of a version of the paper.

    version: "v1" or "v8"; setting: one of `published.SETTINGS`; name: what the figures call it;
    predictor and alpha as in `mergelib.predict`; folder: the released run, None where there is
    none; left_out: a metric category left out whole (the released ablations without one hold
    their own list of metrics); split: loto or l2to; one_start: every fold starts from the same
    random weights, else each from its own.
    """

    version: str
    setting: str
    name: str
    predictor: str
    alpha: float | None = None
    folder: str | None = None
    left_out: str | None = None
    split: str = "loto"
    one_start: bool = False

    @property
    def methods(self) -> tuple[str, ...]:
        """The version's merging methods."""
        return FIRST_METHODS if self.version == "v1" else FINAL_METHODS

    @property
    def historic(self) -> bool:
        """Whether the 29th metric was among the inputs: in v1 and in the network."""
        return self.version == "v1" or self.predictor == "paper-mlp"

    def path(self, source: Path) -> Path:
        """The folder of the released run."""
        setting = None if self.version == "v1" else self.setting
        return released_fits.fit_folder(source, setting, self.folder)


def _runs() -> tuple[Run, ...]:
    b16, b32, sgd = released.SETTINGS
    made = []
    for setting in (b16, b32, sgd):
        final = ("v8", setting)
        made += [
            Run(*final, "l1", "paper-l1", 1.0, "loto_cv_l1_lambda1.0"),
            Run(*final, "no penalty", "paper-l1", 0.0, "loto_cv_l1_lambda0.0"),
            Run(*final, "mse", "paper-mse", None, "loto_cv_mse"),
            Run(*final, "backward", "paper-backward", None, "loto_cv_reverse_greedy_selection"),
        ]
    made += [Run("v8", s, "mlp", "paper-mlp", one_start=True) for s in (b16, sgd)]
    made.append(Run("v8", b16, "mlp, a start per fold", "paper-mlp"))
    made.append(Run("v8", b16, "backward, winner kept", "paper-backward"))
    for name, short in CATEGORIES.items():
        for setting in (b16, b32):
            folder = f"l1_loto_cv_no_{short}"
            made.append(Run("v8", setting, f"without {name}", "paper-l1", 1.0, folder))
        whole = f"without all {name}"
        made.append(Run("v8", b16, whole, "paper-l1", 1.0, left_out=name))
    first = ("v1", b16)
    made += [
        Run(*first, "dense", "paper-dense", None, "loto_cv_no_leakage(MAIN)"),
        Run(*first, "l1", "paper-l1", 1.0, "loto_cv_l1_lambda1.0"),
        Run(*first, "l1 0.1", "paper-l1", 0.1, "loto_cv_l1_lambda0.1"),
        Run(*first, "mse", "paper-mse", None, "loto_cv_mse"),
        Run(*first, "forward", "paper-forward", None, "loto_cv_greedy_selection"),
        Run(*first, "backward", "paper-backward", None, "loto_cv_reverse_greedy_selection"),
        Run(*first, "l2to", "paper-l1", 1.0, "l2to_cv_l1_lambda1.0", split="l2to"),
        Run(*first, "mlp", "paper-mlp", one_start=True),
    ]
    for way in ("forward", "backward"):
        made.append(Run(*first, f"{way}, winner kept", f"paper-{way}"))
    for name, short in CATEGORIES.items():
        folder = f"loto_cv_no_{short}"
        made.append(Run(*first, f"without {name}", "paper-dense", None, folder))
    return tuple(made)


RUNS = _runs()


@dataclass(frozen=True)
class Data:
    """A checkout, its tables by setting (with the 29th metric), and the pairs that enter the fits
    of a version and setting."""

    source: Path
    tables: dict[str, Tables]
    pairs: dict[tuple[str, str], Pairs]


def read_all(source: Path) -> Data:
    """The released tables of all settings."""
    source = Path(source)
    tables = {s: released.read_setting(source, s, historic=True) for s in released.SETTINGS}
    pairs = {}
    for run in RUNS:
        at = (run.version, run.setting)
        if at not in pairs:
            held = tables[run.setting]
            pairs[at] = assemble(held.metrics, held.merges, run.methods)
    return Data(source, tables, pairs)


@dataclass(frozen=True)
class Problem:
    """A run's pairs, its targets (n, m) and its folds (F, n)."""

    pairs: Pairs
    y: np.ndarray
    names: list[str]
    train: np.ndarray
    test: np.ndarray


def problem(run: Run, data: Data, target: str = "raw") -> Problem:
    """The released data as the run saw them: pairs with all its methods and all 29 metrics."""
    pairs = data.pairs[run.version, run.setting]
    keep = metrics_of(run, pairs.metrics, data.source)
    X = pairs.X[:, [pairs.metrics.index(m) for m in keep]]
    pairs = replace(pairs, metrics=keep, X=X)
    names, train, test = fold_masks(splitter(run.split), pairs.ends, pairs.tasks)
    return Problem(pairs, target_of(pairs, target), names, train, test)


def metrics_of(run: Run, known: tuple[str, ...], source: Path) -> tuple[str, ...]:
    """The run's metrics in the table's order: what its released files list, else all of them.

    The released files of v1's main run lack one of the metrics that it was fitted with.
    Raises MergelibError if the run's folder holds no file.
    """
    if run.folder is None or run.name == "dense":
        out = set(excluded_metrics(known, [run.left_out] if run.left_out else []))
        return tuple(m for m in known if m not in out and (run.historic or m != released.HISTORIC))
    paths = sorted(run.path(source).glob("*_results.json"))
    if not paths:
        raise MergelibError(f"{run.path(source)} holds no *_results.json: check the checkout")
    held = read_json(paths[0])["average_coefficients"]
    return tuple(m for m in known if m in held)


def left_out(run: Run, source: Path) -> list[str]:
    """The metrics, of the 28, that the run did not have."""
    known = tuple(released.metric_names())
    return [m for m in known if m not in metrics_of(run, known, source)]
