"""Image encoders of Hugging Face's transformers, which is asked for only when one comes."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mergelib.core.errors import MergelibError

# The class whose features are taken where models have no classifier, by `model_type`.
ENCODERS = {"vit": "ViTModel", "dinov2": "Dinov2Model", "siglip": "SiglipModel"}
OF_CLASSIFIER = "ForImageClassification"


@contextmanager
def transformers() -> Iterator[Any]:
    """The library, without its bars and reports. Raises MergelibError where it is missing."""
    try:
        import transformers as library
    except ImportError:
        raise MergelibError(
            "this model is run by transformers, which is missing: pip install transformers"
        ) from None
    verbosity, bars = library.logging.get_verbosity(), library.logging.is_progress_bar_enabled()
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    try:
        yield library
    finally:
        library.logging.set_verbosity(verbosity)
        if bars:
            library.logging.enable_progress_bar()


def architecture(config: Mapping[str, Any], classifiers: bool) -> str:
    """The name of the class to run a configuration's model by; empty where there is none here.

    With `classifiers` the model's own class, whose classifier the features are made for.
    """
    if not classifiers:
        return ENCODERS.get(str(config.get("model_type")), "")
    names = config.get("architectures") or [""]
    return names[0] if str(names[0]).endswith(OF_CLASSIFIER) else ""


def encoder(
    folder: Path, name: str
) -> tuple[Callable[[Mapping[str, Tensor]], None], Callable[[Tensor], Tensor]]:
    """What loads weights (under the names of a file) and what makes features of images.

    Features of a class for classification are what its classifier takes; of others the class token,
    after the last norm, or what the library calls image features. Raises MergelibError for a
    configuration that the library does not know, and weights that the class lacks.
    """
    with transformers() as library:
        try:
            config = library.AutoConfig.from_pretrained(folder)
            kind = getattr(library, name)
        except (AttributeError, ValueError, OSError) as error:
            raise MergelibError(
                f"{folder / 'config.json'}: transformers {library.__version__} cannot use it "
                f"({' '.join(str(error).split())[:200]}): update transformers, or mend the file"
            ) from None
    held: dict[str, Any] = {}

    def write(state: Mapping[str, Tensor]) -> None:
        held.clear()  # one module at a time in memory
        own = {n: tensor.float() for n, tensor in state.items()}
        with transformers():
            module, found = kind.from_pretrained(
                None, config=config, state_dict=own, output_loading_info=True
            )
        absent = [n for n in found["missing_keys"] if not n.startswith("classifier.")]
        absent += [str(each[0]) for each in found["mismatched_keys"]]
        if absent:
            raise MergelibError(
                f"{folder}: the weights lack tensor {sorted(absent)[0]!r} of {name}: give models "
                "of the architecture that config.json says"
            )
        if name.endswith(OF_CLASSIFIER):
            module.classifier = nn.Identity()
        held["module"] = module.eval()

    def embed(pixels: Tensor) -> Tensor:
        module = held["module"]
        if name.endswith(OF_CLASSIFIER):
            return module(pixel_values=pixels).logits
        if hasattr(module, "get_image_features"):
            found = module.get_image_features(pixel_values=pixels)
            return found if isinstance(found, Tensor) else found.pooler_output
        return module(pixel_values=pixels).last_hidden_state[:, 0]

    return write, embed
