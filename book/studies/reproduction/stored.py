"""Released fits checked: what the stored coefficients give on the released metrics."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.stats import t as student

from mergelib.core.errors import MergelibError
from mergelib.core.store import read_json
from mergelib.pairs.correlation import score
from mergelib.pairs.targets import target as target_of
from mergelib.predict.folds import Linear, scaled, scaling
from mergelib.published import released
from studies.reproduction.folds import Released, read_released
from studies.reproduction.own import COMPARED, KEYS, agreement_percent
from studies.reproduction.runs import RUNS, Data, Problem, Run, problem

SEEDED = "loto_cv_l1_lambda1.0_random_seeds/seed_{}"
# the 29th metric's: right_subspace_overlap = right_subspace_overlap_top_k / sqrt(10)
TWIN = "right_subspace_overlap_top_k"
# the two that carry the paper's conclusion
GRADIENT_L2 = ("encoder_gradient_l2_distance", "input_gradient_l2_distance")


def refit(run: Run, at: Problem, coef: np.ndarray) -> Linear:
    """The predictor that stored coefficients stand for: scaled to [-1, 1] on the training pairs,
    and for the squared-error runs on all pairs, as published."""
    rows = np.ones_like(at.train) if run.predictor == "paper-mse" else at.train
    low, span = scaling(at.pairs.X, rows)
    return Linear(low, span, coef, np.zeros(coef.shape[:2]))


def missing_weight(
    known: np.ndarray,
    column: np.ndarray,
    y: np.ndarray,
    sides: tuple[np.ndarray, np.ndarray],
    r: tuple[float, float],
    start: float,
) -> float:
    """The weight of one metric that a released fit lacks, from its two stored correlations.

    With the other weights' prediction `known` (n,) and the metric scaled, `column` (n,), the w
    within 0.5 of `start` at which known + w column has the correlations `r` with y on both
    `sides` (training and held-out rows): one unknown for two numbers.
    """

    def miss(w: float) -> float:
        return sum(
            (np.corrcoef((known + w * column)[rows], y[rows])[0, 1] - stored) ** 2
            for rows, stored in zip(sides, r, strict=True)
        )

    tried = start + np.linspace(-0.5, 0.5, 101)
    best = tried[int(np.argmin([miss(w) for w in tried]))]
    found = minimize_scalar(
        miss, bounds=(best - 0.01, best + 0.01), method="bounded", options={"xatol": 1e-12}
    )
    return float(found.x)


def completed(run: Run, at: Problem, held: Released) -> np.ndarray:
    """The coefficients (F, m, p) with the weight that v1's main run left out of its files.

    Its files list 28 metrics; it was fitted with 29, whose weights sum to about one (the last
    step of the optimizer follows the division by their sum).
    """
    place = at.pairs.metrics.index(released.HISTORIC)
    low, span = scaling(at.pairs.X, at.train)
    Z = scaled(at.pairs.X, low, span)
    coef = held.coef.copy()
    for f, k in np.ndindex(coef.shape[:2]):
        coef[f, k, place] = missing_weight(
            Z[f] @ held.coef[f, k],
            Z[f][:, place],
            at.y[:, k],
            (at.train[f], at.test[f]),
            (held.train_r[f, k], held.r[f, k]),
            1.0 - held.coef[f, k].sum(),
        )
    return coef


def p_value(r: np.ndarray, n: int) -> np.ndarray:
    """Two-sided p of Pearson's r over n points taken as independent, as the paper gives it."""
    return 2 * student.sf(np.abs(r) * np.sqrt((n - 2) / (1 - r**2)), n - 2)


def check(run: Run, data: Data) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Values (KEYS, value) and checks of one released run.

    checks: per method n_pairs, n_metrics, and the largest distance over the folds of our r from
    the stored one, for the target raw accuracy (`raw`), for normalized accuracy (`normalized`),
    and for raw accuracy with the listed coefficients alone (`as_listed`).
    """
    at = problem(run, data)
    held = read_released(run, at, data.source)
    coef = completed(run, at, held) if run.name == "dense" else held.coef
    prediction = refit(run, at, coef).predict(at.pairs.X)
    found = score(prediction, at.y, at.test)
    other = score(prediction, target_of(at.pairs, "normalized"), at.test)
    listed = found
    if coef is not held.coef:
        listed = score(refit(run, at, held.coef).predict(at.pairs.X), at.y, at.test)
    pick = (lambda s: s.r_pooled[None]) if run.split == "l2to" else (lambda s: s.r_folds)
    distance = {
        name: np.abs(pick(s) - held.r).max(axis=0)
        for name, s in (("raw", found), ("normalized", other), ("as_listed", listed))
    }
    base = {"version": run.version, "setting": run.setting, "run": run.name}
    checks = pd.DataFrame(
        base
        | {"method": run.methods, "n_pairs": len(at.pairs), "n_metrics": len(at.pairs.metrics)}
        | distance
    )
    values = {
        "r_fold_mean": found.r_fold_mean,
        "r_concatenated": found.r_concatenated,
        "p_concatenated": p_value(found.r_concatenated, int(at.test.sum())),
        "n_metrics": (held.coef != 0).sum(axis=-1).mean(axis=0),
    }
    rows = [
        base | {"method": m, "quantity": name, "item": "", "value": v}
        for name, column in values.items()
        for m, v in zip(run.methods, column, strict=True)
        if not np.isnan(v)
    ]
    if run.name in COMPARED:
        rows += [base | row for row in _coefficients(held.coef, at.pairs.metrics, run.methods)]
    return pd.DataFrame(rows)[[*KEYS, "value"]], checks


def _coefficients(coef: np.ndarray, metrics, methods) -> list[dict]:
    """Mean coefficients, the two gradient distances' share, and how the methods agree."""
    mean, often = coef.mean(axis=0), (coef != 0).mean(axis=0)
    same = (mean > 0).all(axis=0) | (mean < 0).all(axis=0)
    share = np.abs(mean) / np.abs(mean).sum(axis=1, keepdims=True)
    leading = share[:, [metrics.index(name) for name in GRADIENT_L2]].sum(axis=1)
    rows = [
        {"method": method, "quantity": "coefficient", "item": name, "value": mean[k, p]}
        for k, method in enumerate(methods)
        for p, name in enumerate(metrics)
        if name != released.HISTORIC
    ]
    rows += [
        {"method": method, "quantity": "contribution", "item": "gradient L2", "value": 100 * v}
        for method, v in zip(methods, leading, strict=True)
    ]
    counts = {
        "n_universal": (often == 1).all(axis=0).sum(),
        "n_core": (same & (often >= 0.8).all(axis=0)).sum(),
        "n_one_sign": same.sum(),
    } | agreement_percent(coef, metrics, methods)
    rows += [
        {"method": "all", "quantity": name, "item": "", "value": float(v)}
        for name, v in counts.items()
    ]
    return rows


def check_all(data: Data) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`check` of every released run of RUNS, and the statistics over the ten seeded runs."""
    done = [check(run, data) for run in RUNS if run.folder]
    seeded, checks = seeds_released(data)
    values = pd.concat([*(v for v, _ in done), seeded], ignore_index=True)
    return values, pd.concat([*(c for _, c in done), checks], ignore_index=True)


def seeds_released(data: Data, n: int = 10) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`over_seeds` of the n seeded runs, and the checks of each."""
    main = next(run for run in RUNS if run.name == "l1")
    parts, checks = [], []
    for seed in range(n):
        run = replace(main, name="l1", folder=SEEDED.format(seed))
        values, checked = check(run, data)
        parts.append(values.assign(seed=seed))
        checks.append(checked.assign(run=f"l1, seed {seed}"))
    frame = pd.concat(parts, ignore_index=True)
    frame["run"] = "l1, ten seeds"
    kept = ["r_fold_mean", "r_concatenated", "n_metrics", "top5_overlap", "sign_agreement"]
    frame = frame[frame["quantity"].isin(kept) | (frame["item"] == GRADIENT_L2[0])]
    return over_seeds(frame), pd.concat(checks, ignore_index=True)


def over_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """Statistics over `seed` as quantities of their own: NAME (the mean) and NAME with sd (over n,
    as published), min, max."""
    grouped = frame.groupby(KEYS, sort=False)["value"]
    parts = []
    for name, values in (
        ("", grouped.mean()),
        (" sd", grouped.std(ddof=0)),
        (" min", grouped.min()),
        (" max", grouped.max()),
    ):
        part = values.reset_index()
        parts.append(part.assign(quantity=part["quantity"] + name))
    return pd.concat(parts, ignore_index=True)[[*KEYS, "value"]]


def stored_networks(source: Path) -> pd.DataFrame:
    """r of the released networks as their files state it: no weights were released to check it."""
    rows = []
    for setting in ("ViT-B-16_AdamW", "ViT-B-16_SGD"):
        folder = Path(source) / "results" / "mlp_mergeability" / setting.rpartition("_")[2]
        path = folder / "loto_cv" / "loto_results.json"
        held = read_json(path)
        for method, fit in held.items():
            try:
                values = {
                    "r_fold_mean": fit["per_fold_stats"]["val_r_mean"],
                    "r_concatenated": fit["aggregate_metrics"]["validation"]["pearson_r"],
                }
            except (KeyError, TypeError):
                raise MergelibError(
                    f"{path} is not of the released shape; check it out again"
                ) from None
            rows += [("v8", setting, "mlp", method, name, "", v) for name, v in values.items()]
    return pd.DataFrame(rows, columns=[*KEYS, "value"])


def recovered(data: Data) -> tuple[pd.DataFrame, dict[str, float]]:
    """What the weight that v1's main run left out explains.

    The table has one row per method: the largest distance over the folds from the stored held-out
    and training r, and the range of the sum of the weights, with the weights as listed and with
    the 29th weight recovered (`completed`). The 29th metric is a listed one over sqrt(10), so in
    the fit both act as one; the dictionary has the methods' agreement with that weight added to
    its twin's.
    """
    run = next(run for run in RUNS if run.name == "dense")
    at = problem(run, data)
    held = read_released(run, at, data.source)
    full = completed(run, at, held)
    columns: dict[str, np.ndarray] = {}
    for name, coef in (("as listed", held.coef), ("completed", full)):
        prediction = refit(run, at, coef).predict(at.pairs.X)
        for side, rows, stored in (
            ("held-out", at.test, held.r),
            ("training", at.train, held.train_r),
        ):
            r = score(prediction, at.y, rows).r_folds
            columns[f"{side} r, {name}"] = np.abs(r - stored).max(axis=0)
        total = coef.sum(axis=-1)
        columns |= {f"least sum, {name}": total.min(0), f"largest sum, {name}": total.max(0)}
    names = list(at.pairs.metrics)
    full[..., names.index(TWIN)] += full[..., names.index(released.HISTORIC)]
    return pd.DataFrame(columns, index=list(run.methods)), agreement_percent(
        full, names, run.methods
    )
