"""The forecast asked about worlds that it was not fitted on: errors, and whether intervals hold."""

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path

import numpy as np
import pandas as pd

from mergelib.core.store import read_table
from mergelib.forecasting import features
from mergelib.forecasting.bank import Bank, read_bank, weight_metrics
from mergelib.forecasting.forecaster import Forecaster, Level
from mergelib.forecasting.transfer import asked, beyond, holds, widened, wrong
from mergelib.pairs.correlation import pearson
from mergelib.pairs.tables import KEYS
from studies.forecasting.protocol import Outcome
from studies.forecasting.scores import LEVELS, inside

# of the released settings those with outcomes of their own: the third repeats the first one's
RELEASED = ("ViT-B-16_AdamW", "ViT-B-32_AdamW")
COVERED = ["plain80", "plain95", "wide80", "wide95"]
COLUMNS = ["world", "reach", "pairs", "forecast", "n", "r", "mae", "bias", *COVERED, "width"]
WITHIN, BEYOND, ANY = "within", "beyond", "any"


def worlds(probed: Path, published: Path, methods: Sequence[str]) -> dict[str, Bank]:
    """Worlds to ask about, by name: those of the tables in `probed`, and the released ones."""
    found = {}
    if (probed / "probes.parquet").is_file():
        bank = read_bank(probed)
        found = {name: bank.of(bank.world == name) for name in dict.fromkeys(bank.world.tolist())}
    for setting in RELEASED:
        if (published / setting / "merges.csv").is_file():
            found[setting] = released(published / setting, setting, methods)
    return found


def released(folder: Path, name: str, methods: Sequence[str]) -> Bank:
    """The released tables as a world without images: the pairs for which they hold everything."""
    metrics, merges, tasks = (
        read_table(folder / f"{t}.csv") for t in ("metrics", "merges", "tasks")
    )
    for side in "ab":
        merges[side] = merges[f"acc_{side}"] / merges[f"single_{side}"]
    kept = merges.pivot(index=KEYS, columns="method", values=["a", "b"])
    methods = [m for m in methods if m in set(merges["method"])]
    kept = kept[[(side, m) for m in methods for side in "ab"]].dropna()
    of_pair = metrics.set_index(KEYS)[weight_metrics()].dropna()
    pairs = of_pair.index[of_pair.index.isin(kept.index)]
    ends = np.stack(
        [pd.Index(tasks["task"]).get_indexer(pairs.get_level_values(k)) for k in KEYS], 1
    )
    before, after = (tasks[name].to_numpy()[ends] for name in ("zero_shot", "fine_tuned"))
    known = features.known(before, after, before[:, ::-1], after[:, ::-1])
    columns = [*of_pair.loc[pairs].to_numpy().T[..., None], *known.values()]
    X = np.stack([np.broadcast_to(x, ends.shape) for x in columns], axis=-1)
    return Bank(
        world=np.full(len(pairs), name),
        tasks=tuple(f"{name}:{task}" for task in tasks["task"]),
        ends=ends,
        methods=tuple(methods),
        names=(*of_pair.columns, *known),
        sizes=np.array([1]),  # no image is looked at
        X=np.repeat(X[:, None], len(methods), axis=1)[:, :, :, None, None],
        images=np.ones((*ends.shape, 1), dtype=int),
        kept=kept.loc[pairs].to_numpy().reshape(len(pairs), len(methods), 2),
    )


def transfer(
    fitted: Forecaster, asked_about: Mapping[str, Bank], levels: Mapping[str, Level]
) -> pd.DataFrame:
    """One row per world, reach, level of evidence and n (0: without images), means over the rest.

    `fitted` on the bank alone. Columns world, reach (pairs whose known accuracies lie within the
    bank's, or some beyond; any where none is known), pairs, forecast, n, r, mae, bias (mean of
    outcome - forecast); plain80 and plain95: the share of outcomes inside the intervals as
    calibrated on the bank, wide80 and wide95: inside those that the *other* worlds ask for; width
    of wide80.
    """
    few, rows = _at(fitted, levels), []
    for name, world in asked_about.items():
        wide = widened(few, [other for key, other in asked_about.items() if key != name])
        for called, level in levels.items():
            if holds(world, level):
                for reach, part in _parts(fitted, world, level).items():
                    of = [_judged(each, part, level) for each in (few, wide)]
                    for n, plain, other in _sizes(part, level, *of):
                        shown = (name, reach, len(part.ends), called, n)
                        rows.append((*shown, *other[:3], *plain[3:5], *other[3:]))
    return pd.DataFrame(rows, columns=COLUMNS)


def halves(
    fitted: Forecaster,
    world: Bank,
    others: Sequence[Bank],
    levels: Mapping[str, Level],
    splits: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """A world asked about by halves of its tasks: widened by the others and by its other half.

    What it buys that a world like one's own is among those that widen. A row per reach, level of
    evidence and n: forecast, reach, n, asked (halves that hold such pairs), pairs (mean), mae,
    wide80 and wide95 (means over `splits` drawn halvings, each asked both ways) and low80 and
    low95, the least of them.
    """
    few, rng, rows = _at(fitted, levels), np.random.default_rng(seed), []
    tasks = np.unique(world.ends)
    for _ in range(splits):
        order = rng.permutation(tasks)
        cut = len(tasks) // 2
        parts = [world.of(np.isin(world.ends, x).all(axis=1)) for x in (order[:cut], order[cut:])]
        for known, asked_about in (parts, parts[::-1]):
            wide = widened(few, [*others, known])
            for called, level in levels.items():
                for reach, part in _parts(fitted, asked_about, level).items():
                    for n, found in _sizes(part, level, _judged(wide, part, level)):
                        rows.append((called, reach, n, len(part.ends), found[1], *found[3:5]))
    table = pd.DataFrame(rows, columns=["forecast", "reach", "n", "pairs", "mae", "80", "95"])
    return table.groupby(["forecast", "reach", "n"], sort=False, as_index=False).agg(
        asked=("pairs", "size"),
        pairs=("pairs", "mean"),
        mae=("mae", "mean"),
        wide80=("80", "mean"),
        wide95=("95", "mean"),
        low80=("80", "min"),
        low95=("95", "min"),
    )


def _at(fitted: Forecaster, levels: Mapping[str, Level]) -> Forecaster:
    """The forecaster with no more than some levels of evidence, which spares the others' time."""
    few = copy(fitted)
    few.calibration_ = {level: fitted.calibration_[level] for level in levels.values()}
    return few


def _parts(fitted: Forecaster, world: Bank, level: Level) -> dict[str, Bank]:
    """A world's pairs by where their known accuracies lie; those of no pair are left out."""
    if not level[1]:
        return {ANY: world}
    far = beyond(fitted, world, level)
    found = {WITHIN: world.of(~far), BEYOND: world.of(far)}
    return {reach: part for reach, part in found.items() if len(part.ends)}


def _sizes(world: Bank, level: Level, *of: list) -> Iterator[tuple]:
    """What was judged at each size of a world, after its n; once, as 0, where images count not."""
    for n, *found in zip(world.sizes.tolist(), *of, strict=True):
        yield (n if level[2] else 0, *found)
        if not level[2]:
            return


def _judged(fitted: Forecaster, world: Bank, level: Level) -> list[tuple[float, ...]]:
    """r, error, bias, coverage of LEVELS and width of the first, at each size of a world."""
    before, sides = asked(fitted, world, level)
    far = beyond(fitted, world, level)
    calibration = [(fitted.beyond_ if one else fitted.calibration_)[level] for one in far]
    outcome = Outcome(sides.mean(axis=2), sides.min(axis=2), calibration)
    places = [fitted.methods_.index(method) for method in world.methods]
    off, found = wrong(world, before, sides)["mean"], []
    for s in range(len(world.sizes)):
        made = outcome.mean[..., s]
        true = np.broadcast_to(world.mean[:, :, None], made.shape)
        r = pearson(made, true, np.ones_like(made, dtype=bool), axis=0)
        known = r[np.isfinite(r)]
        held = [inside(world, outcome, s, share, places) for share in LEVELS]
        found.append(
            (
                float(known.mean()) if known.size else float("nan"),
                float(np.abs(off[..., s]).mean()),
                float(off[..., s].mean()),
                *(float(share.mean()) for share, _ in held),
                float(held[0][1].mean()),
            )
        )
    return found
