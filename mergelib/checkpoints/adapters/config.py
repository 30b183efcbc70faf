"""The configuration beside a PEFT adapter: what its factors are scaled by, and what it may be."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergelib.core.errors import MergelibError
from mergelib.core.store import read_json

# Options of PEFT's LoRA whose weights are not θ0 + s·B·A, or not of the base's tensors.
VARIANTS = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "loftq_config": "LoftQ, on a quantized base",
    "alora_invocation_tokens": "activated LoRA",
    "monteclora_config": "MonteCLoRA",
    "kasa_config": "KaSA",
    "arrow_config": "Arrow",
    "layer_replication": "replicated layers",
    "target_parameters": "LoRA of bare parameters",
    "trainable_token_indices": "trained tokens",
}
# Initial values that are taken off the base, which then is another one.
REBASED = ("pissa", "olora", "corda", "lora_ga", "loftq")
# Up to this version PEFT adds what it learns for the inner projection of torch's attention twice,
# in training too, so that the model is θ0 + 2·s·B·A there (huggingface/peft#3774).
TWICE = (0, 21, 2)
INNER = ".base_layer."  # in the name of that projection: attn.base_layer.out_proj
WHOLE = "merge it with PEFT (merge_and_unload) and give the model"


@dataclass(frozen=True)
class Settings:
    """What scales the factors: alpha/r, or alpha/√r for `rslora`, r and alpha perhaps by module."""

    path: Path
    r: float
    alpha: float
    rank_pattern: Mapping[str, float]
    alpha_pattern: Mapping[str, float]
    rslora: bool
    transposed: bool
    version: tuple[int, ...]  # of PEFT; () before it was written down

    def scale(self, module: str, rank: int, given: float | None = None) -> float:
        """The scale of a module whose factors have that rank; `given` is an alpha beside them.

        Raises MergelibError if the configuration says another rank, or another alpha.
        Source: Kalajdzievski 2023, "A rank stabilization scaling factor", for alpha/√r.
        """
        module, *inner = module.split(INNER)  # which follows its module's patterns
        if inner and self.version > TWICE:
            raise MergelibError(
                f"{self.path}: {module!r} is an attention, whose {inner[0]} PEFT adds twice up to "
                f"version {'.'.join(map(str, TWICE))}; whether this one's does is unknown: {WHOLE}"
            )
        r = _by_pattern(self.path, self.rank_pattern, module, self.r)
        alpha = _by_pattern(self.path, self.alpha_pattern, module, self.alpha)
        for what, said, is_so in (("r", r, rank), ("lora_alpha", alpha, given)):
            if is_so is not None and said != is_so:
                raise MergelibError(
                    f"{self.path}: {what} of {module!r} is {said:g}, but {is_so:g} where its "
                    "weights lie: give the configuration that was saved with them"
                )
        return (2 if inner else 1) * alpha / (math.sqrt(r) if self.rslora else r)


def _by_pattern(path: Path, patterns: Mapping[str, float], module: str, default: float) -> float:
    """The value of the first pattern that a module's name ends with.

    Source: PEFT's `get_pattern_key`.
    """
    for pattern, value in patterns.items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            raise MergelibError(f"{path}: {pattern!r} is no pattern ({error}): mend it") from None
    return default


def read_settings(path: Path) -> Settings:
    """What `adapter_config.json` says.

    Raises MergelibError if it is missing or no JSON object, lacks what the scale needs, or is of an
    adapter other than plain LoRA.
    """
    config = read_json(path)
    if not isinstance(config, dict):
        raise MergelibError(f"{path} holds no object of settings: copy it again")
    if (kind := config.get("peft_type")) != "LORA":
        raise MergelibError(f"{path}: peft_type is {kind!r}, and only LORA is read: {WHOLE}")
    for option, name in VARIANTS.items():
        if config.get(option):
            raise MergelibError(f"{path}: {option} is set: {name} is no plain LoRA; {WHOLE}")
    initial = str(config.get("init_lora_weights")).lower()
    if initial.startswith(REBASED):
        raise MergelibError(
            f"{path}: init_lora_weights is {initial!r}, so the adapter stands on another base than "
            "the model: save it with path_initial_model_for_weight_conversion, or merge it with "
            "PEFT and give the model"
        )
    return Settings(
        path,
        _positive(path, "r", config.get("r")),
        _number(path, "lora_alpha", config.get("lora_alpha")),
        {k: _positive(path, k, v) for k, v in _patterns(path, config, "rank_pattern").items()},
        {k: _number(path, k, v) for k, v in _patterns(path, config, "alpha_pattern").items()},
        bool(config.get("use_rslora")),
        bool(config.get("fan_in_fan_out")),
        tuple(int(part) for part in re.findall(r"\d+", str(config.get("peft_version")))[:3]),
    )


def _patterns(path: Path, config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    held = config.get(key) or {}
    if not isinstance(held, dict):
        raise MergelibError(f"{path}: {key} is {held!r}, no object of patterns: mend it")
    return held


def _number(path: Path, key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise MergelibError(
            f"{path}: {key} is {value!r}, no number, and the scale of the update hangs on it: "
            "give the configuration that PEFT wrote"
        )
    return value


def _positive(path: Path, key: str, value: object) -> float:
    if (number := _number(path, key, value)) <= 0:
        raise MergelibError(f"{path}: the rank {key!r} is {value!r}, not positive: mend it")
    return number
