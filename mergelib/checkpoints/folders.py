"""Model folders as Hugging Face's libraries write them: a config beside weights or their shards."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from mergelib.checkpoints.formats import open_weights
from mergelib.checkpoints.weights import Weights
from mergelib.core.documents import read_mapping
from mergelib.core.errors import MergelibError

WEIGHTS = (
    "model.safetensors",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)


def config_of(path: Path) -> Mapping:
    """The model's config.json; empty if there is none (open_clip writes its own).

    Raises MergelibError, naming the file, if it is no JSON object.
    """
    file = path / "config.json"
    return read_mapping(file) if file.is_file() else {}


def open_folder(path: Path, stack: ExitStack) -> Weights:
    """A folder's model under its own names, open as long as `stack`.

    Raises MergelibError, naming the file, if weights or a shard are missing or cannot be read.
    """
    quantized = config_of(path).get("quantization_config")
    if quantized:
        method = quantized.get("quant_method", "") if isinstance(quantized, Mapping) else ""
        raise MergelibError(
            f"{path} is quantized ({method or 'says its config.json'}): merge the models that it "
            "was made from, and quantize the merge"
        )
    for name in WEIGHTS:
        if (path / name).is_file():
            return open_weights(path / name, stack)
        if (path / f"{name}.index.json").is_file():
            return open_shards(path / f"{name}.index.json", stack)
    there = sorted(each.name for each in path.iterdir())
    held = f"it holds {', '.join(there[:5])}{', …' * (len(there) > 5)}" if there else "it is empty"
    raise MergelibError(
        f"{path} has neither {' nor '.join(WEIGHTS[:2])} ({held}): give a model folder with its "
        "weights, or a checkpoint file"
    )


def open_shards(index: Path, stack: ExitStack) -> Weights:
    """The shards that an index file beside them names. Raises MergelibError as `open_folder`."""
    where = read_mapping(index).get("weight_map")
    if not isinstance(where, Mapping) or not where:
        raise MergelibError(f"{index} says no file for any tensor (weight_map): copy it again")
    for name, file in where.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise MergelibError(f"{index} puts {name!r} into {file!r}, no file beside it")
    files = {file: open_weights(index.parent / file, stack) for file in sorted(set(where.values()))}
    for name, file in where.items():
        if name not in files[file].shapes:
            raise MergelibError(
                f"{index.parent / file} lacks tensor {name!r}, which the index puts there: copy it "
                "again"
            )
    beside = [(f, n) for f, weights in files.items() for n in weights.shapes if n not in where]
    if beside:
        file, name = beside[0]
        raise MergelibError(
            f"{index} does not know tensor {name!r}, which {file} holds: copy both again"
        )
    return Weights(
        str(index.parent),
        {name: files[file].shapes[name] for name, file in where.items()},
        {name: files[file].dtypes[name] for name, file in where.items()},
        lambda name: files[where[name]].get(name),
        tuple(note for weights in files.values() for note in weights.notes),
        lambda name, rows: files[where[name]].part(name, rows),
    )
