"""Audit statistics against literal forms on made tables, and the numbers of the released ones."""

import numpy as np
import pandas as pd
import pytest

from mergelib.metrics.registry import published_metrics
from mergelib.pairs import correlation
from mergelib.pairs.correlation import score
from mergelib.pairs.tables import Tables
from mergelib.pairs.targets import target
from mergelib.predict.crossval import fold_seeds, held_out
from mergelib.predict.evaluate import evaluate
from mergelib.predict.predictors import estimator
from mergelib.predict.splits import fold_masks, splitter
from mergelib.published.released import SETTINGS, read_setting
from studies import what_survives
from studies.chance import targets_of
from studies.inputs import pairs_of

pytestmark = [pytest.mark.numeric, pytest.mark.slow]

METHODS = ("tsv", "ties")


def made_tables(n_tasks: int = 8, missing: int = 0, seed: int = 3) -> Tables:
    """28 metrics, one of them informative; the last `missing` pairs lack the last method."""
    rng = np.random.default_rng(seed)
    tasks = [f"t{k}" for k in range(n_tasks)]
    i, j = np.triu_indices(n_tasks, 1)
    names = published_metrics()
    factor = rng.normal(size=(n_tasks, len(names)))
    X = factor[i] + factor[j] + rng.normal(size=(len(i), len(names)))
    metrics = pd.DataFrame(X, columns=names)
    metrics.insert(0, "task_a", [tasks[k] for k in i])
    metrics.insert(1, "task_b", [tasks[k] for k in j])
    single, rows = rng.uniform(0.8, 0.99, n_tasks), []
    for method in METHODS:
        effect = rng.normal(0, 0.02, n_tasks)
        for k, (a, b) in enumerate(zip(i, j, strict=True)):
            if method == METHODS[-1] and k >= len(i) - missing:
                continue
            kept = 0.9 + effect[a] + effect[b] + 0.01 * X[k, 0] + rng.normal(0, 0.01, 2)
            rows.append((tasks[a], tasks[b], method, *(single[[a, b]] * kept), single[a],
                         single[b], 0))  # fmt: skip
    columns = ["task_a", "task_b", "method", "acc_a", "acc_b", "single_a", "single_b", "seed"]
    known = pd.DataFrame(
        {
            "task": tasks,
            "zero_shot": rng.uniform(0.2, 0.6, n_tasks),
            "fine_tuned": single,
            "n_classes": rng.integers(2, 100, n_tasks),
            "n_train": rng.integers(1000, 9000, n_tasks),
        }
    )
    return Tables(metrics, pd.DataFrame(rows, columns=columns), known, {"source": "made"}, METHODS)


@pytest.fixture(scope="module")
def tables():
    return made_tables()


@pytest.fixture(scope="module")
def pairs(tables):
    return pairs_of(tables)


@pytest.mark.parametrize(("split", "name"), [("loto", "r_fold_mean"), ("l2to", "r_pooled")])
def test_headline_is_the_splits_statistic(pairs, split, name):
    y = target(pairs, "raw")
    _, train, test = fold_masks(splitter(split), pairs.ends)
    forecast = np.random.default_rng(0).normal(size=(len(train), *y.shape))
    held = forecast[np.nonzero(test)]
    assert correlation.headline(held, y, test) == pytest.approx(
        getattr(score(forecast, y, test), name)
    )


def test_a_renaming_moves_every_target_alike_and_fills_only_what_was_never_merged():
    tables = made_tables(missing=2)
    pairs = pairs_of(tables)
    y, moved = targets_of(tables, pairs, ("raw", "normalized"), relabel=4, seed=5)
    assert y == pytest.approx(np.hstack([target(pairs, "raw"), target(pairs, "normalized")]))
    assert not np.isnan(moved).any()
    rng = np.random.default_rng([5, 1])
    merges = tables.merges.set_index(["method", "task_a", "task_b"])
    for draw in moved:
        order = rng.permutation(8)
        for k, (a, b) in enumerate(pairs.ends):
            names = sorted(f"t{order[e]}" for e in (a, b))
            for c, method in enumerate(METHODS):
                if (method, *names) in merges.index:
                    row = merges.loc[(method, *names)]
                    assert draw[k, c] == pytest.approx((row["acc_a"] + row["acc_b"]) / 2)


def test_audit_agrees_with_one_fit_at_a_time(tables, pairs):
    found = what_survives.audit(tables, pairs, relabel=3)
    found = found.set_index(["split", "target", "model", "method"]).sort_index()
    for split, name in (("loto", "r_fold_mean"), ("l2to", "r_pooled"), ("halves", "r_fold_mean")):
        for goal in ("raw", "normalized"):
            each = [
                evaluate(tables.metrics, tables.merges, m, target=goal, split=split,
                         tasks=tables.tasks)
                for m in METHODS
            ]  # fmt: skip
            r = [one[name] for one in each]
            here = found.loc[(split, goal, "ridge")]["r"]
            assert here[list(METHODS)].tolist() == pytest.approx(r)
            assert found.loc[(split, goal, "ridge", "mean"), "r"] == pytest.approx(np.mean(r))
            lines = [one["baselines"]["base_knowledge"][name] for one in each]
            here = found.loc[(split, goal, "base_knowledge")]["r"]
            assert here[list(METHODS)].tolist() == pytest.approx(lines)


def test_the_null_refits_every_relabelling(tables, pairs):
    relabel = 4
    found = what_survives.audit(tables, pairs, ("raw",), ("loto",), relabel, seed=2)
    _, moved = targets_of(tables, pairs, ("raw",), relabel, seed=2)
    _, train, test = fold_masks(splitter("loto"), pairs.ends)
    null = np.empty((relabel, 2))
    for d, y in enumerate(moved):
        for c in range(2):
            each = []
            for inside, outside in zip(train, test, strict=True):
                fit = estimator("ridge").fit(pairs.X[inside], y[inside, c])
                each.append(np.corrcoef(fit.predict(pairs.X[outside]), y[outside, c])[0, 1])
            null[d, c] = np.mean(each)
    ridge = found[found["model"] == "ridge"].set_index("method")
    assert ridge.loc[list(METHODS), "null_mean"].tolist() == pytest.approx(null.mean(axis=0))
    joint = null.mean(axis=1)
    assert ridge.loc["mean", "null_95"] == pytest.approx(np.quantile(joint, 0.95))
    beaten = (joint >= ridge.loc["mean", "r"]).sum()
    assert ridge.loc["mean", "p"] == pytest.approx((1 + beaten) / (1 + relabel))


def test_paper_audit_averages_its_starts(tables, pairs):
    names, starts = ("normalized", "raw"), 3
    found = what_survives.paper_audit(tables, pairs, names, ("loto",), 2, starts=starts)
    # One batch, as the audit runs it: an optimizer whose sums are split otherwise rounds otherwise,
    # and stops elsewhere.
    _, train, test = fold_masks(splitter("loto"), pairs.ends)
    columns = [(k, name) for k in range(starts) for name in names]
    y = np.hstack([target(pairs, name) for _, name in columns])
    seeds = np.hstack([fold_seeds(k, METHODS, len(train)) for k, _ in columns])
    fit = held_out("paper-l1", pairs.X, y, pairs.ends, train, test, None, seeds)
    each = score(fit.prediction, y, test).r_fold_mean.reshape(starts, len(names), len(METHODS))
    table = found[found["target"] == "raw"].set_index("method")
    assert table["r"][list(METHODS)].tolist() == pytest.approx(each[:, 1].mean(axis=0), abs=1e-9)
    assert table["start_sd"][list(METHODS)].tolist() == pytest.approx(
        each[:, 1].std(axis=0, ddof=1)
    )
    assert table["r"]["mean"] == pytest.approx(table["r"][list(METHODS)].mean())
    assert table["p"].between(1 / 3, 1).all()
    one = what_survives.paper_audit(tables, pairs, ("raw",), ("loto",), 0, starts=1)
    seeds, y = fold_seeds(0, METHODS, len(train)), target(pairs, "raw")
    fit = held_out("paper-l1", pairs.X, y, pairs.ends, train, test, None, seeds)
    assert one["r"][:2].tolist() == score(fit.prediction, y, test).r_fold_mean.tolist()
    assert one[["p", "start_sd"]].isna().all(axis=None)


def test_baselines_stand_beside_each_predictor(tables, pairs):
    ridge = what_survives.audit(tables, pairs, ("raw",), ("loto",), relabel=1).assign(
        setting="made"
    )
    other = ridge[ridge["model"] == "ridge"].assign(model="paper-l1", r=0.5)
    found = what_survives.beside_baselines(
        pd.concat([ridge, other], ignore_index=True), "made", "loto", "raw"
    )
    assert found["model"].tolist() == ["paper-l1"] * 2 + ["ridge"] * 2
    assert found["method"].tolist() == [*METHODS] * 2
    base = ridge[(ridge["model"] == "base_knowledge") & (ridge["method"] != "mean")]["r"]
    assert found["base_knowledge"].tolist() == base.tolist() * 2


def test_features_that_only_name_the_tasks(tables, pairs):
    dummies = what_survives.task_dummies(pairs)
    assert (dummies.X.sum(axis=1) == 2).all()
    assert [set(np.flatnonzero(row)) for row in dummies.X] == [set(e) for e in pairs.ends]
    noise = what_survives.random_metrics(pairs, 1)
    assert noise.X.shape == pairs.X.shape
    design = dummies.X
    left = noise.X - design @ np.linalg.lstsq(design, noise.X, rcond=None)[0]
    assert np.abs(left).max() < 1e-10
    found = what_survives.leak(tables, pairs, repeats=2).set_index(["split", "features", "method"])[
        "r"
    ]
    _, train, test = fold_masks(splitter("loto"), pairs.ends)
    y, r = target(pairs, "raw")[:, 0], []
    for inside, outside in zip(train, test, strict=True):
        fit = estimator("ridge").fit(design[inside], y[inside])
        r.append(np.corrcoef(fit.predict(design[outside]), y[outside])[0, 1])
    assert found["loto", "who the tasks are", METHODS[0]] == pytest.approx(np.mean(r))


def test_one_sign_counts_over_all_folds_and_methods(tables, pairs):
    names, table = what_survives.one_sign(tables, pairs, relabel=3)
    _, train, _ = fold_masks(splitter("loto"), pairs.ends)
    y = target(pairs, "raw")
    signs = np.array(
        [
            np.sign(estimator("ridge").fit(pairs.X[rows], y[rows, c])[-1].coef_)
            for rows in train
            for c in range(2)
        ]
    )
    same = (signs == signs[0]).all(axis=0)
    assert names == [m for m, kept in zip(pairs.metrics, same, strict=True) if kept]
    assert table["count"].item() == same.sum()


def vectors_table(v: np.ndarray, flip: int = 0) -> pd.DataFrame:
    """Pair metrics of vectors v (T, d), all kinds; the first `flip` cosines negated."""
    i, j = np.triu_indices(len(v), 1)
    dot = (v[i] * v[j]).sum(1)
    cosine = dot / np.linalg.norm(v[i], axis=1) / np.linalg.norm(v[j], axis=1)
    cosine[:flip] *= -1
    frame = pd.DataFrame({"task_a": [f"t{k}" for k in i], "task_b": [f"t{k}" for k in j]})
    for kind in what_survives.KINDS:
        frame[f"{kind}_cosine_similarity"], frame[f"{kind}_dot_product"] = cosine, dot
        frame[f"{kind}_l2_distance"] = np.linalg.norm(v[i] - v[j], axis=1)
    return frame


def test_signs_of_one_pair_of_vectors_agree_and_orthogonal_distances_are_sums():
    v = np.random.default_rng(0).normal(size=(6, 50)) * np.arange(1, 7)[:, None]
    assert (what_survives.cosine_against_dot(vectors_table(v))["conflict"] == 0).all()
    found = what_survives.cosine_against_dot(vectors_table(v, flip=5))
    assert found["conflict"].tolist() == pytest.approx([5 / 15] * 4)
    orthogonal = np.linalg.qr(v.T)[0].T * np.arange(1, 7)[:, None]
    assert what_survives.cosine_against_dot(vectors_table(orthogonal))["additive"].min() > 1 - 1e-9


def test_lengths_come_back_from_stored_products():
    v = np.random.default_rng(1).normal(size=(7, 30)) * np.arange(1, 8)[:, None]
    found, misfit = what_survives.lengths(vectors_table(v))
    assert found.to_numpy() == pytest.approx(np.linalg.norm(v, axis=1))
    assert list(found.index) == [f"t{k}" for k in range(7)]
    assert misfit < 1e-9


def test_weighted_steps_follow_the_schedule_step_by_step():
    def literal(images, epochs):
        total, optimizer_steps = 0.0, 0
        for epoch in range(epochs):
            for _ in range(int(np.ceil(images / 128))):
                total += 0.5 * (1 + np.cos(np.pi * epoch / 10))
                optimizer_steps += 1
        return total, optimizer_steps

    found = what_survives.weighted_steps({"STL10": 5000, "SUN397": 19850})
    assert found["STL10"] == pytest.approx(literal(5000, 6)[0])
    assert found["SUN397"] == pytest.approx(literal(19850, 14)[0])
    assert literal(5000, 6)[1] == 240
    assert literal(19850, 14)[1] == 2184


def test_identical_counts_both_sides(tables):
    other = tables.merges.copy()
    assert (what_survives.identical(tables.merges, other)["equal"] == 2 * 28).all()
    other.loc[other["method"] == "ties", "acc_b"] += 1e-9
    found = what_survives.identical(tables.merges, other)
    assert found["equal"].to_dict() == {"tsv": 56, "ties": 28}
    assert (found["of"] == 56).all()


# ---- The released tables ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def released(shared):
    """The checkout beside the repository and its three settings."""
    root = shared / "published"
    if not (root / "results").is_dir():
        pytest.skip("the released tables are not beside the repository (shared/published)")
    return root, {setting: read_setting(root, setting) for setting in SETTINGS}


def test_gradients_of_random_heads_disagree_with_themselves(released):
    root, tables = released
    found = {s: what_survives.cosine_against_dot(t.metrics)["conflict"] for s, t in tables.items()}
    encoder = [100 * found[s]["encoder_gradient"] for s in SETTINGS]
    assert encoder == pytest.approx([50.8, 52.1, 47.7], abs=0.05)
    pixels = [100 * found[s]["input_gradient"] for s in SETTINGS]
    assert pixels == pytest.approx([53, 48, 53], abs=0.5)
    assert all(found[s][["task_vector", "activation"]].eq(0).all() for s in SETTINGS)
    sizes = what_survives.additive_by_size(root)["encoder_gradient"]
    assert sizes[10] == pytest.approx(0.42, abs=0.005)
    assert sizes[[100, 200]].between(0.93, 0.955).all()


def test_the_sgd_setting_merges_adamw_and_its_vectors_are_weight_decay(released):
    _, tables = released
    sgd, adamw = tables["ViT-B-16_SGD"], tables["ViT-B-16_AdamW"]
    found = what_survives.identical(adamw.merges, sgd.merges)
    assert found["equal"].sum() == found["of"].sum() == 1896
    length, _ = what_survives.lengths(sgd.metrics)
    steps = what_survives.weighted_steps(sgd.tasks.set_index("task")["n_train"])
    ratio = length / steps
    assert ratio.min() == pytest.approx(3.15e-4, abs=5e-7)
    assert ratio.max() == pytest.approx(3.19e-4, abs=5e-7)
    assert length.corr(steps) == pytest.approx(0.99998, abs=5e-6)
    assert steps[["STL10", "Food101"]].tolist() == pytest.approx([193, 2175], abs=0.5)


def test_leave_one_task_out_on_the_released_tables(released):
    _, tables = released
    held = tables["ViT-B-16_AdamW"]
    pairs = pairs_of(held)
    assert len(pairs) == 185
    found = what_survives.audit(held, pairs, ("raw",), ("loto",), relabel=200)
    ridge = found[found["model"] == "ridge"].set_index("method")
    order = ["weight_avg", "arithmetic", "tsv", "ties", "dare"]
    assert ridge.loc[order, "r"].tolist() == pytest.approx(
        [0.618, 0.478, 0.651, 0.501, 0.617], abs=6e-4
    )
    assert ridge.loc["mean", "null_mean"] == pytest.approx(0.50, abs=0.02)
    additive = found[found["model"] == "additive_task_effects"].set_index("method")["r"]
    assert additive[order].tolist() == pytest.approx([0.957, 0.991, 0.950, 0.997, 0.954], abs=6e-4)


def test_a_gradient_distance_is_negative_in_every_stored_fit(released):
    root, _ = released
    found = what_survives.released_signs(
        root, "ViT-B-16_AdamW", "loto_cv_l1_lambda1.0_random_seeds"
    )
    assert found.loc["encoder_gradient_l2_distance", ["fits", "negative"]].tolist() == [1000, 1]
