"""What encoders make of the pools: features, from which everything else in the bank follows."""

from pathlib import Path

import torch
from torch import Tensor

from mergelib.core.store import digest, load_tensors, save_tensors
from mergelib.models.accuracy import BATCH
from mergelib.pipeline import loaded
from mergelib.pipeline.keys import device, key, path
from mergelib.pipeline.params import Run
from mergelib.pipeline.units.merged import merged_state
from studies.forecasting.pools import pool, pool_file, pool_key


def singles_file(store: Path, run: Run, task: str, size: int) -> Path:
    """Where the features of base and expert on a task's pool are stored."""
    name = digest("singles", key(run, "tuned", task), pool_key(run, task, size))[:24]
    return Path(store) / "probed" / f"{task}-{name}.safetensors"


def merge_file(store: Path, run: Run, first: str, second: str, method: str, size: int) -> Path:
    """Where the features of a pair's merge on both pools are stored."""
    pools = [pool_key(run, task, size) for task in (first, second)]
    name = digest("probed", key(run, "merged", first, second, method), pools)[:24]
    return Path(store) / "probed" / f"{first}-{second}-{method}-{name}.safetensors"


@torch.inference_mode()
def features(store: Path, run: Run, task: str, size: int) -> Tensor:
    """Features (N, d) float32 that the scratch encoder, as it stands, gives a task's pool."""
    images, _ = pool(pool_file(store, run, task, size))
    visual, normalize = loaded.evaluating(run), loaded.backbone(run).normalize
    on = device(run)
    parts = images.split(BATCH[on])
    return torch.cat([visual(normalize(part.to(on))).float().cpu() for part in parts])


def probe_single(store: Path, run: Run, task: str, size: int) -> Path:
    """Store features of base and expert on the expert's pool."""
    file = singles_file(store, run, task, size)
    if not file.is_file():
        found = {}
        with loaded.one_thread():
            for name, names in (("base", ()), ("tuned", (task,))):
                at = path(store, run, name, *names)
                loaded.encoder(run, load_tensors(at), at)
                found[name] = features(store, run, task, size)
        save_tensors(file, found)
    return file


def probe_pair(store: Path, run: Run, first: str, second: str, size: int) -> None:
    """Store features of a pair's merges by every method on both pools."""
    for method in run.methods:
        file = merge_file(store, run, first, second, method, size)
        if file.is_file():
            continue
        with loaded.one_thread():
            merged_state(store, run, (first, second), method, loaded.scratch(run).state_dict())
            found = {
                side: features(store, run, task, size)
                for side, task in (("a", first), ("b", second))
            }
        save_tensors(file, found)
