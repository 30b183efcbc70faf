"""What turns features into class scores: heads of files, of class names, of classifiers."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.nn.functional import normalize as unit

from mergelib.checkpoints.folders import config_of
from mergelib.checkpoints.layouts import beside_images
from mergelib.checkpoints.reading import Source, opened, raw
from mergelib.checkpoints.wrappers import plain
from mergelib.core.errors import MergelibError
from mergelib.core.store import load_tensors
from mergelib.forecasting.transformers_models import transformers
from mergelib.models.backbones import GLYPH_VIT, Backbone
from mergelib.models.heads import logits, zero_shot_head
from mergelib.models.towers import text_tower
from mergelib.tasks.words import TEMPLATES as CLIP_S
from mergelib.tasks.words import Classes

TEMPLATES = {GLYPH_VIT: ("a {}",), "": CLIP_S}  # the tasks' first, and CLIP's
CLASSIFIER = "classifier.weight"


@dataclass(frozen=True)
class Head:
    """Class scores of features (n, d).

    Of a zero-shot head normalize(z) · weightᵀ; of a classifier, which has a `bias` (C,),
    z · weightᵀ + bias. `names` of its C classes, empty where they are not known.
    """

    weight: Tensor
    bias: Tensor | None = None
    names: tuple[str, ...] = ()

    def scores(self, features: Tensor) -> Tensor:
        """Class scores (n, C). Raises MergelibError for features of another width."""
        if features.shape[1] != self.weight.shape[1]:
            raise MergelibError(
                f"the head has shape {tuple(self.weight.shape)} but features have "
                f"{features.shape[1]} entries: give a head of this encoder"
            )
        if self.bias is None:
            return logits(features, self.weight)
        return linear(features, self.weight, self.bias)


def of_file(path: Path | str) -> Head:
    """The head in a safetensors file: one matrix (C, d), with a `bias` (C,) of a classifier.

    Without a bias its rows are directions times the logit scale (about 100 for CLIP). Raises
    MergelibError, naming the file, for other tensors.
    """
    held = load_tensors(Path(path))
    matrices = {name: tensor for name, tensor in held.items() if tensor.ndim == 2}
    bias = held.get("bias")
    if len(matrices) != 1 or set(held) - {*matrices, "bias"}:
        raise MergelibError(
            f"{path} holds {', '.join(held) or 'nothing'}: a head is one matrix (classes, width), "
            "beside it at most a bias"
        )
    (weight,) = matrices.values()
    return _checked(weight, bias, str(path))


def _checked(weight: Tensor, bias: Tensor | None, label: str, names: tuple[str, ...] = ()) -> Head:
    if len(weight) < 2 or (bias is not None and bias.shape != weight.shape[:1]):
        raise MergelibError(
            f"{label}: a head of shape {tuple(weight.shape)}"
            + (f" with a bias of {tuple(bias.shape)}" if bias is not None else "")
            + ": give two classes or more, and a bias a class"
        )
    if not all(bool(t.isfinite().all()) for t in (weight, bias) if t is not None):
        raise MergelibError(f"{label}: the head holds NaN or infinity: write it again")
    return Head(weight.float(), None if bias is None else bias.float(), names)


# ---- Classifiers --------------------------------------------------------------------------------


def of_classifier(base: Source, model: Source, label: str) -> Head | None:
    """The classifier inside a fine-tuned checkpoint (Hugging Face's `…ForImageClassification`).

    Its class names are those of its configuration. None where there is no classifier.
    """
    with ExitStack() as stack:
        weights = raw(model, label, stack, raw(base, "the base", stack))
        names = plain(weights)
        if CLASSIFIER not in names or len(weights.shapes[names[CLASSIFIER]]) != 2:
            return None
        weight = weights.read(names[CLASSIFIER])
        beside = names.get(CLASSIFIER.replace("weight", "bias"))
        bias = weight.new_zeros(len(weight)) if beside is None else weights.read(beside)
        return _checked(weight.clone(), bias.clone(), label, _names(model, len(weight)))


def _names(model: Source, count: int) -> tuple[str, ...]:
    """The classes of a model folder's configuration; none where it numbers them only."""
    if isinstance(model, str | Path) and Path(model).is_dir():
        held = config_of(Path(model)).get("id2label")
        if isinstance(held, Mapping) and set(held) == {str(i) for i in range(count)}:
            names = tuple(str(held[str(i)]) for i in range(count))
            if names != tuple(f"LABEL_{i}" for i in range(count)):
                return names
    return ()


def classifier_patterns(base: Source, models: Sequence[Source]) -> tuple[str, ...]:
    """Patterns of the tensors that only classifiers have, where some model holds a classifier.

    No method merges them: classes of different tasks are different things. A pooler, which no
    classifier reads, is left out with them.
    """
    with ExitStack() as stack:
        held = raw(base, "the base", stack)
        named = [plain(raw(model, "a model", stack, held)) for model in models]
        names = {name for each in (plain(held), *named) for name in each}
    if not any(CLASSIFIER in each for each in named):
        return ()
    patterns = {"classifier.*": "classifier.", "*pooler.*": "pooler."}
    return tuple(p for p, part in patterns.items() if any(part in name for name in names))


# ---- Class names --------------------------------------------------------------------------------


def of_classes(tower: Backbone, classes: Classes) -> Head:
    """The zero-shot head of class names by a text tower; underscores are spaces."""
    templates = classes.templates or TEMPLATES.get(tower.name, TEMPLATES[""])
    words = [name.replace("_", " ") for name in classes.names]
    with torch.inference_mode():
        weight = zero_shot_head(tower, words, templates)
    return Head(weight.clone(), None, classes.names)


def text_of(base: Source, backbone: str) -> Backbone:
    """The base's own text tower, without its image tower.

    A model folder of Hugging Face with its tokenizer is run by transformers; any other whole CLIP
    by the `backbone` that fits it; an image tower of glyph-vit goes with the text tower that comes
    with this package. Raises MergelibError where there is none.
    """
    if isinstance(base, str | Path) and Path(base).is_dir() and _has_tokenizer(Path(base)):
        return _of_folder(Path(base))
    with opened(base, "the base", whole=True) as weights:
        names = {n: n.removeprefix("text.") for n in weights.shapes if beside_images(n)}
        text = any(name.startswith("text.") for name in names)
        if not backbone or not (text or backbone == GLYPH_VIT):
            lacks = "is of no backbone that is known" if text else "holds no text tower"
            raise MergelibError(
                f"{weights.label} {lacks}, which class names ask for: give the whole CLIP as base, "
                "or --heads"
            )
        state = {own: weights.read(n) for n, own in names.items() if n != "logit_bias"}
        return text_tower(backbone, state if text else None, weights.label)


def _has_tokenizer(folder: Path) -> bool:
    return bool(config_of(folder).get("text_config")) and any(folder.glob("tokenizer*"))


def _of_folder(folder: Path) -> Backbone:
    with transformers() as library:
        tokenizer = library.AutoTokenizer.from_pretrained(folder)
        model = library.AutoModel.from_pretrained(folder).eval()
    # SigLIP was trained on padded texts
    padding: Any = "max_length" if model.config.model_type.startswith("siglip") else True

    def tokenize(texts: Sequence[str]) -> Tensor:
        held = tokenizer(list(texts), padding=padding, truncation=True, return_tensors="pt")
        return held.input_ids

    def encode_text(tokens: Tensor, normalize: bool) -> Tensor:
        found = model.get_text_features(input_ids=tokens)
        found = found if isinstance(found, Tensor) else found.pooler_output
        return unit(found, dim=-1) if normalize else found

    tower = SimpleNamespace(encode_text=encode_text, logit_scale=model.logit_scale)
    return cast(Backbone, SimpleNamespace(name="", model=tower, tokenize=tokenize))
