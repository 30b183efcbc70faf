"""The released data-driven metrics from calibration pools of several sizes: a checkout's, frozen.

A table of sizes has the columns size, task_a, task_b and one per metric.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from mergelib.core.errors import MergelibError
from mergelib.core.store import read_table, write_table
from mergelib.metrics.registry import METRICS
from mergelib.pairs.tables import KEYS
from mergelib.published.released import read_metrics

SETTING = "ViT-B-16_AdamW"  # the one setting that was measured with several sizes
SIZES = (2, 5, 10, 30, 100, 200)
MAIN = 10  # the size of the released metrics proper
DATA_DRIVEN = tuple(r.name for r in METRICS.rows() if r.category in ("activation", "gradient"))
DOUBLE = ("activation_magnitude_ratio",)  # divided as Python's numbers; all others are float32
FILE = "calibration_sizes.csv"


def checked_out_sizes(checkout: str | Path, setting: str = SETTING) -> pd.DataFrame:
    """The data-driven metrics of a checkout of the released tables at all six sizes.

    Size 10 is the setting's own file. Raises MergelibError, naming the file, if one is absent.
    """
    folder = Path(checkout) / "results" / "mergeability" / setting
    parts = []
    for size in SIZES:
        inside = folder if size == MAIN else folder / "calibration_sensitivity" / str(size)
        table = read_metrics(inside / "pairwise_metrics_N20.json")
        table = table[[*KEYS, *DATA_DRIVEN]]
        table.insert(0, "size", size)
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


def write_sizes(table: pd.DataFrame, path: Path) -> None:
    """Write a table of sizes, each metric as the shortest text that gives its bits.

    Raises MergelibError where a metric that was released as float32 is none.
    """
    texts = {name: [_text(value, name) for value in table[name]] for name in DATA_DRIVEN}
    write_table(path, table.assign(**texts))


def _text(value: float, metric: str) -> str:
    if np.isnan(value):
        return ""
    if metric in DOUBLE:
        return repr(float(value))
    short = np.float32(value)
    if float(short) != value:
        raise MergelibError(f"{metric} {value!r} is no float32: store it with all digits")
    return str(short)


def read_sizes(folder: Path) -> pd.DataFrame:
    """The table that `write_sizes` wrote in a setting's folder. Raises as `read_table` does."""
    table = read_table(Path(folder) / FILE)
    single = [name for name in DATA_DRIVEN if name not in DOUBLE]
    return table.astype(dict.fromkeys(single, np.float32)).astype(dict.fromkeys(single, np.float64))
