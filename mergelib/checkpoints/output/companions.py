"""The small files beside a model's weights: configuration, tokenizer, processor, code, licence."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from mergelib.checkpoints.output.shards import Spec, bytes_of
from mergelib.core.store import read_json

# By name, so that no weights, adapters, optimizers or states of a training come along.
KEPT = (
    "config.json",
    "generation_config.json",
    "open_clip_config.json",
    "*processor_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "normalizer.json",
    "*.model",  # of sentencepiece
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates/*.jinja",
    "*.py",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
)
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf")
DTYPE_KEYS = ("torch_dtype", "dtype")  # of transformers 4 and 5
NAMED = (torch.float64, torch.float32, torch.float16, torch.bfloat16)  # types of configurations


def library(folder: Path) -> str | None:
    """The library that reads a model folder, as Hugging Face names it; None where it is not known.

    Raises MergelibError, naming the file, if its config.json is no JSON.
    """
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else None
    if isinstance(config, dict) and "model_type" in config:
        return "transformers"
    if (folder / "open_clip_config.json").is_file():
        return "open_clip"
    return "timm" if isinstance(config, dict) and "architecture" in config else None


def companions(folder: Path) -> list[Path]:
    """The files to copy, relative to a model folder; none of a folder without configuration."""
    if not any((folder / name).is_file() for name in ("config.json", "open_clip_config.json")):
        return []
    found = {path for pattern in KEPT for path in folder.glob(pattern)}
    kept = (path for path in found if path.is_file() and path.suffix not in WEIGHTS)
    return sorted(path.relative_to(folder) for path in kept)


def copy_companions(like: Path, folder: Path, spec: Spec) -> None:
    """Copy them; config.json says the type that is written now, where it says one.

    Raises MergelibError, naming the file, if config.json is no JSON.
    """
    dtype = main_type(spec)
    for path in companions(like):
        (folder / path).parent.mkdir(exist_ok=True)
        if path.name == "config.json" and dtype in NAMED:
            config = retyped(read_json(like / path), str(dtype).removeprefix("torch."))
            text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
            (folder / path).write_text(text, encoding="utf-8")
        else:
            shutil.copyfile(like / path, folder / path)


def main_type(spec: Spec) -> torch.dtype | None:
    """The floating point type that takes most bytes; None if there is none."""
    sizes: Counter[torch.dtype] = Counter()
    for dtype, shape in spec.values():
        if dtype.is_floating_point:
            sizes[dtype] += bytes_of(dtype, shape)
    return max(sizes, key=sizes.__getitem__, default=None)


def retyped(config: Any, dtype: str) -> Any:
    """A configuration, and those of its parts (text_config, …), that say `dtype` if any type."""
    if not isinstance(config, dict):
        return config
    out = {}
    for key, value in config.items():
        if key in DTYPE_KEYS and isinstance(value, str):
            value = dtype
        elif key.endswith("_config"):
            value = retyped(value, dtype)
        out[key] = value
    return out
