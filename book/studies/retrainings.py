"""The released re-trainings of one setting: merges of every pair, and single models.

Read from a checkout, or from the small tables that `studies.freeze` makes of one.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mergelib.core.errors import MergelibError
from mergelib.core.store import (
    digest,
    file_digest,
    read_json,
    read_table,
    write_json,
    write_table,
)
from mergelib.pairs.tables import KEYS
from mergelib.published.released import (
    BACKBONES,
    COMMIT,
    METHODS,
    REPOSITORY,
    read_accuracies,
    read_merges,
)

DOWNLOADED = "downloaded"
INERT = "no gradient"
SETTING = "ViT-B-16_AdamW"  # the one setting with regularized re-trainings
SIDES = ("a", "b")
PAIRWISE, MANY = "all_pairwise_summary_N20", ("8", "20")
FILES = ("retrained_merges", "retrained_singles", "retrained_many", "retrained")

# penalty in a folder's name: whether its term has a gradient in the weights (arXiv 2601.22285)
PENALTIES = {
    "moderate_update": True,  # |w - w0|^2
    "grad_magnitude": False,  # |g|^2 of the gradient that the last backward pass stored
    "tv_subspace": True,  # part of w - w0 outside the top singular directions of w0
    "gargiulo": False,  # |I - U0'U|^2 of singular vectors found without a gradient
}
_PENALTY = re.compile(
    rf"({'|'.join(PENALTIES)})(?:_(uv|u|v)(?=_|$))?(?:_(\d[\d.]*(?:e-\d+)?)(?=_|$))?(?:_|$)"
)


@dataclass(frozen=True)
class Retrainings:
    """Accuracies of the downloaded models, of the re-trained ones, and of their merges.

    merges: task_a, task_b, method, acc_a, acc_b, variant, run, by method and run. singles: task,
    variant, run, fine_tuned. many: merges of 8 and of all 20 models (see `read_many`).
    """

    merges: pd.DataFrame
    singles: pd.DataFrame
    many: pd.DataFrame
    meta: dict[str, Any]


def named(suffix: str) -> tuple[str, str]:
    """Variant and run of a released folder name without its method, or of an accs_*.json name.

    "tv_subspace_u_0.0001_gargiulo_u_0.0001" gives "tv_subspace_u 0.0001" (gargiulo has no
    gradient) and the whole as run. Raises MergelibError for a name of another form.
    """
    if suffix in ("", DOWNLOADED):
        return DOWNLOADED, DOWNLOADED
    rest = re.sub(r"(?<=_)0_(?=\d)", "0.", suffix)  # accs_*.json write 0_001
    acting, every = [], []
    while rest:
        found = _PENALTY.match(rest)
        if not found:
            raise MergelibError(f"{suffix!r} names no penalty of {', '.join(PENALTIES)}")
        penalty, kind, strength = found.groups()
        name = "_".join(filter(None, (penalty, kind))) + (f" {strength}" if strength else "")
        every.append(name)
        acting += [name] if PENALTIES[penalty] else []
        rest = rest[found.end() :]
    return " + ".join(acting) or INERT, " + ".join(every)


def _folder(run: str) -> str:
    """The released name of a run, as `named` reads it."""
    return run.replace(" + ", "_").replace(" ", "_")


def _order(run: str) -> tuple:
    """Downloaded first, then by penalty, the strongest first."""
    penalty, _, rest = run.partition(" ")
    strength = float(rest.split(" ")[0]) if rest[:1].isdigit() else 0.0
    return run != DOWNLOADED, penalty, " + " in run, -strength


def _method(folder: str) -> tuple[str, str]:
    """Method and suffix of a released folder of merges."""
    method = next(m for m in METHODS if f"{folder}_".startswith(f"{m}_"))
    return method, folder.removeprefix(method).removeprefix("_")


# ---- From a checkout ----------------------------------------------------------------------------


def checked_out(checkout: str | Path) -> Retrainings:
    """The re-trainings of a checkout of the published repository.

    Raises MergelibError, naming the file, if absent or not of the released shape.
    """
    results = Path(checkout) / "results"
    singles: dict[tuple[str, str], dict[str, float]] = {}
    backbone = BACKBONES[SETTING]
    for path in sorted((results / "finetuning").glob("accs*.json")):
        suffix = path.stem.removeprefix("accs").removeprefix("_")
        if suffix == "baseline":  # the SGD run, whose models were not merged
            continue
        singles[named(suffix)] = read_accuracies(path).get(backbone, {})
    base = singles.get((DOWNLOADED, DOWNLOADED))
    if not base:
        raise MergelibError(f"{results / 'finetuning' / 'accs.json'} holds no {backbone}")
    parts = {}
    for path in sorted((results / SETTING).glob(f"*/{PAIRWISE}.json")):
        method, suffix = _method(path.parent.name)
        variant, run = named(suffix)
        part = read_merges(path, method, base)[[*KEYS, "method", "acc_a", "acc_b"]]
        parts[METHODS.index(method), _order(run)] = part.assign(variant=variant, run=run)
    rows = [
        (task, *key, accuracies[task])
        for key, accuracies in sorted(singles.items(), key=lambda item: _order(item[0][1]))
        for task in base
    ]
    meta = {
        "source": "released tables",
        "repository": f"{REPOSITORY}@{COMMIT}",
        "paper": "arXiv 2601.22285",
        "setting": SETTING,
        "backbone": backbone,
        "edition": "paper",
        "digest": digest([file_digest(path) for path in _files(results)]),
    }
    return Retrainings(
        pd.concat([_placed(parts[key], list(base)) for key in sorted(parts)], ignore_index=True),
        pd.DataFrame(rows, columns=["task", "variant", "run", "fine_tuned"]),
        read_many(results / SETTING),
        meta,
    )


def _placed(part: pd.DataFrame, tasks: Sequence[str]) -> pd.DataFrame:
    """The pairs in one order: the files have several."""
    a, b = (part[key].map(tasks.index) for key in KEYS)
    return part.iloc[np.argsort((a * len(tasks) + b).to_numpy(), kind="stable")]


def _by_method(frame: pd.DataFrame) -> pd.DataFrame:
    order = frame["method"].map(METHODS.index).to_numpy()
    return frame.iloc[np.argsort(order, kind="stable")].reset_index(drop=True)


def _files(results: Path) -> list[Path]:
    """All that is read: the digest in `meta` is over these."""
    merges = [p for p in (results / SETTING).glob("*/*.json") if p.stem in (*MANY, PAIRWISE)]
    return sorted([*(results / "finetuning").glob("accs*.json"), *merges])


def read_many(folder: Path) -> pd.DataFrame:
    """Merges of 8 and of all 20 released models: tasks, method, run, normalized, gain, same_bits.

    Normalized by the downloaded models' accuracies; `gain` over the merge of the downloaded models;
    `same_bits`: every accuracy equals that merge's bit for bit.
    """
    rows = []
    for path in sorted(folder.glob("*/*.json")):
        if path.stem not in MANY:
            continue
        held = read_json(path)
        method, suffix = _method(path.parent.name)
        try:
            mean = held["avg"][0]["normalized_acc/test/avg"]
            bits = tuple(held[t][0][f"acc/test/{t}"] for t in held if t != "avg")
        except (KeyError, IndexError, TypeError) as error:
            raise MergelibError(f"{path} is not of the released shape ({error})") from None
        rows.append((int(path.stem), method, named(suffix)[1], mean, bits))
    frame = pd.DataFrame(rows, columns=["tasks", "method", "run", "normalized", "bits"])
    keys = ["tasks", "method"]
    start = frame[frame["run"] == DOWNLOADED].drop(columns="run")
    joined = frame[frame["run"] != DOWNLOADED].merge(start, on=keys, suffixes=("", "_start"))
    joined["gain"] = joined["normalized"] - joined["normalized_start"]
    joined["same_bits"] = (joined["bits"] == joined["bits_start"]).astype(bool)
    return joined[[*keys, "run", "normalized", "gain", "same_bits"]]


# ---- As small tables ----------------------------------------------------------------------------


def write_retrainings(held: Retrainings, folder: Path) -> None:
    """Write the tables FILES: one column a run, accuracies as the shortest text of a float32.

    The released accuracies are float32, so that reading the text as float32 gives their bits.
    Raises MergelibError where one is not.
    """
    long = pd.concat(
        [
            held.merges[[*KEYS, "method", "run"]].assign(
                side=side, value=held.merges[f"acc_{side}"]
            )
            for side in SIDES
        ]
    )
    tasks = list(dict.fromkeys(held.singles["task"]))
    long = _by_method(_placed(long, tasks))
    rows = ["method", *KEYS, "side"]
    write_table(folder / f"{FILES[0]}.csv", _wide(long, rows, "value"))
    write_table(folder / f"{FILES[1]}.csv", _wide(held.singles, ["task"], "fine_tuned"))
    write_table(folder / f"{FILES[2]}.csv", held.many)
    write_json(folder / f"{FILES[3]}.json", held.meta)


def _wide(long: pd.DataFrame, rows: Sequence[str], value: str) -> pd.DataFrame:
    runs = sorted(dict.fromkeys(long["run"]), key=_order)
    keys = long[list(rows)].drop_duplicates()
    wide = long.pivot(index=list(rows), columns="run", values=value)[runs]
    wide = wide.loc[keys.itertuples(index=False, name=None) if len(rows) > 1 else keys[rows[0]]]
    return wide.map(_text).rename(columns=_folder).reset_index()


def _text(value: float) -> str:
    if np.isnan(value):
        return ""
    short = np.float32(value)
    if float(short) != value:
        raise MergelibError(f"the accuracy {value!r} is no float32: store it with all digits")
    return np.format_float_positional(short, unique=True, trim="-")


def _long(wide: pd.DataFrame, rows: Sequence[str], value: str) -> pd.DataFrame:
    """One row a run and row of `wide`, run after run, without the empty ones."""
    parts = []
    for name in [column for column in wide.columns if column not in rows]:
        variant, run = named(name)
        values = wide[name].to_numpy(np.float32).astype(np.float64)
        part = wide[list(rows)].assign(variant=variant, run=run, **{value: values})
        parts.append(part.dropna(subset=value))
    return pd.concat(parts, ignore_index=True)


def read_retrainings(folder: Path) -> Retrainings:
    """The tables that `write_retrainings` wrote. Raises MergelibError as `read_table` does."""
    folder = Path(folder)
    merges, singles, many = (read_table(folder / f"{name}.csv") for name in FILES[:3])
    first, second = (
        _long(merges[merges["side"] == side].drop(columns="side"), ["method", *KEYS], f"acc_{side}")
        for side in SIDES
    )
    keys = ["method", *KEYS, "variant", "run"]
    joined = first.merge(second, on=keys)
    return Retrainings(
        _by_method(joined)[[*KEYS, "method", "acc_a", "acc_b", "variant", "run"]],
        _long(singles, ["task"], "fine_tuned")[["task", "variant", "run", "fine_tuned"]],
        many,
        read_json(folder / f"{FILES[3]}.json"),
    )
