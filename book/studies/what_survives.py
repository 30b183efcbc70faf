"""What holds of the published claims: scores beside their nulls, leaks, noise and identities."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

import mergelib.published.predictors  # noqa: F401  registers the paper's predictors
from mergelib.core.errors import MergelibError
from mergelib.core.store import write_table
from mergelib.pairs.correlation import headline, score
from mergelib.pairs.tables import KEYS, Pairs, Tables
from mergelib.pairs.tables import identical as identical  # of the SGD setting
from mergelib.pairs.targets import TARGETS, additive_design, additive_fit
from mergelib.predict import baselines
from mergelib.predict.crossval import fold_seeds, held_out
from mergelib.predict.splits import HEADLINE, fold_masks, splitter
from mergelib.published.released import SETTINGS, read_setting
from studies.additive import additive_share
from studies.calibration_tables import checked_out_sizes
from studies.chance import beyond, holm, targets_of, with_mean
from studies.inputs import pairs_of
from studies.quick_qap import held_out_map
from studies.released_fits import fit_folder, read_fits

MAPPED_AT_ONCE = 50  # permutations in one product with the map from targets to forecasts
AT_ONCE = 5  # permutations in one batch of Adam problems under leave-two-tasks-out
BATCH, PERIOD = 128, 10  # of the published fine-tuning: images per step, epochs of its schedule
# epochs that the published recipe trains each task (arXiv 2601.22285, appendix)
EPOCHS = {
    "SUN397": 14, "Cars": 35, "RESISC45": 15, "EuroSAT": 12, "SVHN": 4, "GTSRB": 11, "MNIST": 5,
    "DTD": 76, "Flowers102": 147, "PCAM": 1, "FER2013": 10, "OxfordIIITPet": 82, "STL10": 6,
    "CIFAR100": 6, "CIFAR10": 6, "Food101": 4, "FashionMNIST": 5, "EMNIST": 2, "KMNIST": 5,
    "RenderedSST2": 39,
}  # fmt: skip


def audit(
    tables: Tables,
    pairs: Pairs,
    targets: Sequence[str] = TARGETS,
    splits: Sequence[str] = ("loto", "l2to", "halves"),
    relabel: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Ridge with its QAP null and every baseline, by split, target and method.

    split, target, model, method (the pairs' methods, then "mean" over them), r (the split's
    headline statistic; a pair counts once), and for ridge p, p_holm (over the methods), null_mean,
    null_95; the row "mean" compares the mean r with that of one permutation for all methods.
    """
    y, moved = targets_of(tables, pairs, targets, relabel, seed)
    m, methods = len(pairs.methods), [*pairs.methods, "mean"]
    frames = []
    for split in splits:
        _, train, test = fold_masks(splitter(split, seed), pairs.ends, pairs.tasks)
        with threadpool_limits(limits=1):
            hat = held_out_map("ridge", pairs.X, train, test)
        seen = headline(hat @ y, y, test).reshape(-1, m)
        null = [np.empty((0, *seen.shape))]
        for k in range(0, relabel, MAPPED_AT_ONCE):
            stacked = moved[k : k + MAPPED_AT_ONCE].transpose(1, 0, 2).reshape(len(pairs), -1)
            null.append(headline(hat @ stacked, stacked, test).reshape(-1, *seen.shape))
        null = np.concatenate(null)
        for k, name in enumerate(targets):
            found = beyond(with_mean(seen[k]), with_mean(null[:, k]))
            found["p_holm"] = np.append(holm(found["p"][:m]), np.nan)
            found.insert(0, "r", with_mean(seen[k]))
            frames.append(found.assign(split=split, target=name, model="ridge", method=methods))
            part = y[:, k * m : (k + 1) * m]
            for model, forecast in baselines.all_baselines(
                pairs, part, train, tables.tasks
            ).items():
                r = getattr(score(forecast, part, test), HEADLINE[split])
                row = {"split": split, "target": name, "model": model, "method": methods}
                frames.append(pd.DataFrame({"r": with_mean(r), **row}))
    columns = ["split", "target", "model", "method", "r", "p", "p_holm", "null_mean", "null_95"]
    return pd.concat(frames, ignore_index=True)[columns]


def paper_audit(
    tables: Tables,
    pairs: Pairs,
    targets: Sequence[str] = TARGETS,
    splits: Sequence[str] = ("loto", "l2to"),
    relabel: int = 100,
    starts: int = 10,
    seed: int = 0,
) -> pd.DataFrame:
    """The published predictor (paper-l1) with its QAP null, as `audit` has ridge.

    r is the mean over `starts` random starts, start_sd their standard deviation. Each permutation
    has one start of its own. p is of the mean over the starts.
    """
    y, moved = targets_of(tables, pairs, targets, relabel, seed)
    m, methods = len(pairs.methods), [*pairs.methods, "mean"]
    frames = []
    for split in splits:
        _, train, test = fold_masks(splitter(split, seed), pairs.ends, pairs.tasks)
        fold, pair = np.nonzero(test)
        size = AT_ONCE if split == "l2to" else 5 * AT_ONCE

        def scores(ys: np.ndarray, first: int, train=train, test=test, fold=fold, pair=pair):
            seeds = [
                np.tile(fold_seeds(first + k, pairs.methods, len(train)), (1, len(targets)))
                for k in range(len(ys))
            ]
            stacked = ys.transpose(1, 0, 2).reshape(len(pairs), -1)
            fit = held_out("paper-l1", pairs.X, stacked, pairs.ends, train, test, None,
                           np.hstack(seeds))  # fmt: skip
            r = headline(fit.prediction[fold, pair], stacked, test)
            return r.reshape(len(ys), len(targets), m)

        def batches(ys: np.ndarray, scores=scores, size=size):
            parts = [scores(ys[k : k + size], seed + k) for k in range(0, len(ys), size)]
            return np.concatenate([np.empty((0, len(targets), m)), *parts])

        seen = batches(np.broadcast_to(y, (starts, *y.shape)))
        null = batches(moved)
        for k, name in enumerate(targets):
            each = with_mean(seen[:, k])
            found = beyond(each.mean(axis=0), with_mean(null[:, k]))
            found["p_holm"] = np.append(holm(found["p"][:m]), np.nan)
            found["r"] = each.mean(axis=0)
            found["start_sd"] = each.std(axis=0, ddof=1) if starts > 1 else np.nan
            frames.append(found.assign(split=split, target=name, model="paper-l1", method=methods))
    columns = ["split", "target", "model", "method", "r", "start_sd", "p", "p_holm", "null_mean",
               "null_95"]  # fmt: skip
    return pd.concat(frames, ignore_index=True)[columns].assign(relabel=relabel, starts=starts)


def beside_baselines(audits: pd.DataFrame, setting: str, split: str, target: str) -> pd.DataFrame:
    """Rows of one question by predictor and method, each baseline's r as a column of its own.

    `audits`: tables of `audit` and `paper_audit` with the column setting. The mean over methods is
    left out; predictors stand in alphabetical order.
    """
    rows = audits["setting"].eq(setting) & audits["split"].eq(split) & audits["target"].eq(target)
    part = audits[rows & audits["method"].ne("mean")]
    predictors = part[part["model"].isin(["ridge", "paper-l1"])]
    wide = part.drop(predictors.index).pivot(index="method", columns="model", values="r")
    return predictors.sort_values("model", kind="stable").join(wide, on="method")


def freeze(released: str | Path, to: str | Path, relabel: int = 100, starts: int = 10) -> None:
    """Write `paper_audit` of the three released settings to the CSV file `to`.

    The nulls of the published optimizer take about a quarter of an hour on one core, so the chapter
    reads this table. Leave-two-tasks-out, the long part, is run for the two settings that have
    merges of their own, on raw and normalized accuracy.
    """
    parts = []
    for setting in SETTINGS:
        tables = read_setting(Path(released), setting)
        pairs = pairs_of(tables)
        runs = [(TARGETS, ("loto",))]
        if not setting.endswith("SGD"):
            runs.append((("raw", "normalized"), ("l2to",)))
        for targets, splits in runs:
            part = paper_audit(tables, pairs, targets, splits, relabel, starts)
            part.insert(0, "setting", setting)
            parts.append(part)
    write_table(Path(to), pd.concat(parts, ignore_index=True))


# ---- What leave-one-task-out gives away ---------------------------------------------------------


def task_dummies(pairs: Pairs) -> Pairs:
    """The pairs with one column per task, 1 for the pair's two tasks, in place of the metrics."""
    X = additive_design(pairs.ends, len(pairs.tasks))
    return replace(pairs, metrics=tuple(f"is {task}" for task in pairs.tasks), X=X)


def random_metrics(pairs: Pairs, seed: int = 0) -> Pairs:
    """The pairs with as many metrics u_i + u_j, u a random number per task, N(0, 1)."""
    rng = np.random.default_rng([seed, 7])
    u = rng.standard_normal((len(pairs.tasks), len(pairs.metrics)))
    return replace(pairs, X=u[pairs.ends].sum(axis=1))


def leak(
    tables: Tables, pairs: Pairs, target: str = "raw", repeats: int = 20, seed: int = 0
) -> pd.DataFrame:
    """Ridge on features that measure nothing, both splits: split, features, method, r.

    "metrics"; "who the tasks are", one column per task; "random numbers per task", the mean of
    `repeats` draws. `method` ends with "mean".
    """
    y, _ = targets_of(tables, pairs, (target,))
    sets = {
        "metrics": [pairs],
        "who the tasks are": [task_dummies(pairs)],
        "random numbers per task": [random_metrics(pairs, seed + k) for k in range(repeats)],
    }
    frames = []
    for split in ("loto", "l2to"):
        _, train, test = fold_masks(splitter(split, seed), pairs.ends, pairs.tasks)
        for name, made in sets.items():
            maps = [held_out_map("ridge", part.X, train, test) for part in made]
            r = np.mean([with_mean(headline(hat @ y, y, test)) for hat in maps], axis=0)
            row = {"split": split, "features": name, "method": [*pairs.methods, "mean"]}
            frames.append(pd.DataFrame({**row, "r": r}))
    return pd.concat(frames, ignore_index=True)


# ---- Signs --------------------------------------------------------------------------------------


def one_sign(
    tables: Tables,
    pairs: Pairs,
    predictor: str = "ridge",
    target: str = "raw",
    relabel: int = 200,
    seed: int = 0,
) -> tuple[list[str], pd.DataFrame]:
    """The metrics whose coefficient has one sign in all folds and methods, and their number's null.

    Leave-one-task-out. The table has one row: count, and p, null_mean, null_95 (see `beyond`) of as
    many fits to permuted tasks.
    """
    y, moved = targets_of(tables, pairs, (target,), relabel, seed)
    _, train, test = fold_masks(splitter("loto", seed), pairs.ends, pairs.tasks)
    stacked = np.hstack([y, *moved])
    seeds = [fold_seeds(seed + k, pairs.methods, len(train)) for k in range(relabel + 1)]
    fit = held_out(predictor, pairs.X, stacked, pairs.ends, train, test, None, np.hstack(seeds))
    signs = np.sign(fit.coef).reshape(len(train), relabel + 1, len(pairs.methods), -1)
    kept = np.abs(signs.sum(axis=(0, 2))) == len(train) * len(pairs.methods)
    count = kept.sum(axis=1).astype(float)
    table = beyond(count[:1], count[1:, None])
    table.insert(0, "count", int(count[0]))
    return [pairs.metrics[k] for k in np.flatnonzero(kept[0])], table


def released_signs(released: str | Path, setting: str, run: str) -> pd.DataFrame:
    """Signs of the stored coefficients of a run with random starts, over starts, folds, methods.

    Index metric; fits, negative, zero, positive (shares). Raises MergelibError if no start is held.
    """
    folder = fit_folder(Path(released), setting, run)
    starts = sorted(folder.glob("seed_*"))
    if not starts:
        raise MergelibError(f"{folder} holds no folder seed_*: check the checkout and the run")
    fits = [fit for start in starts for fit in read_fits(start).values()]
    names = fits[0].metrics
    coef = np.concatenate(
        [fit.coef[:, [fit.metrics.index(name) for name in names]] for fit in fits]
    )
    return pd.DataFrame(
        {
            "fits": len(coef),
            "negative": (coef < 0).mean(axis=0),
            "zero": (coef == 0).mean(axis=0),
            "positive": (coef > 0).mean(axis=0),
        },
        index=pd.Index(names, name="metric"),
    )


# ---- What the metrics are made of ---------------------------------------------------------------

KINDS = ("task_vector", "activation", "encoder_gradient", "input_gradient")


def cosine_against_dot(metrics: pd.DataFrame) -> pd.DataFrame:
    """Do a pair's stored cosine and dot product agree in sign, as those of two vectors must?

    Index kind; pairs, conflict (share of pairs with different signs), median |cosine|, and
    additive: the share of the squared distance's variance that task effects explain (1 if it is a
    sum of squared lengths).
    """
    rows = {}
    for kind in KINDS:
        cosine, dot, distance = (
            metrics[f"{kind}_{what}"]
            for what in ("cosine_similarity", "dot_product", "l2_distance")
        )
        both = cosine.notna() & dot.notna()
        rows[kind] = {
            "pairs": int(both.sum()),
            "conflict": float((np.sign(cosine) != np.sign(dot))[both].mean()),
            "median |cosine|": float(cosine.abs().median()),
            "additive": _additive(metrics, distance**2),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def additive_by_size(released: str | Path, setting: str = "ViT-B-16_AdamW") -> pd.DataFrame:
    """Additive share of the squared gradient distances by number of calibration images per task."""
    sizes = checked_out_sizes(released, setting)
    kinds = KINDS[2:]
    rows = {
        size: {kind: _additive(part, part[f"{kind}_l2_distance"] ** 2) for kind in kinds}
        for size, part in sizes.groupby("size")
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("images per task")


def _additive(keys: pd.DataFrame, values: pd.Series) -> float:
    known = values.notna().to_numpy()
    codes = np.unique(keys[KEYS].to_numpy()[known].astype(str), return_inverse=True)[1]
    return additive_share(values.to_numpy()[known], codes.reshape(-1, 2))


# ---- The SGD setting ----------------------------------------------------------------------------


def lengths(metrics: pd.DataFrame) -> tuple[pd.Series, float]:
    """Length of each task vector from stored values, and the largest relative misfit.

    dot / cosine = length_i x length_j for every pair; least squares on the logarithms.
    """
    known = metrics[metrics["task_vector_cosine_similarity"] != 0].dropna(
        subset=["task_vector_cosine_similarity", "task_vector_dot_product"]
    )
    product = known["task_vector_dot_product"] / known["task_vector_cosine_similarity"]
    names = list(dict.fromkeys(known[KEYS].to_numpy().ravel()))
    place = {name: k for k, name in enumerate(names)}
    ends = np.stack([known[key].map(place) for key in KEYS], axis=1)
    fitted, left = additive_fit(np.log(product.to_numpy()), ends, len(names))
    return pd.Series(np.exp(fitted), index=names), float(np.abs(np.expm1(left)).max())


def weighted_steps(n_train: Mapping[str, int], epochs: Mapping[str, int] = EPOCHS) -> pd.Series:
    """Sum over steps of (learning rate / its maximum), of the published schedule.

    Σ_e ⌈n / 128⌉ (1 + cos(π e / 10)) / 2 over the epochs e = 0, 1, …: a cosine that is not cut off
    after its period of ten epochs but rises again.
    """
    return pd.Series(
        {
            task: -(-n_train[task] // BATCH)
            * (0.5 * (1 + np.cos(np.pi * np.arange(count) / PERIOD))).sum()
            for task, count in epochs.items()
            if task in n_train
        }
    )
