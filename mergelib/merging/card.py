"""The model card of a merge, and what else a model folder says of how it was made."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from mergelib.merging.recipe import Recipe, to_yaml
from mergelib.merging.registry import METHODS

RECIPE_FILE = "mergelib_recipe.yaml"
CACHED = re.compile(r"models--([^/]+)--([^/]+)/snapshots/")  # of Hugging Face's hub
LOADING = {
    "transformers": "from transformers import AutoModel\n\n"
    'model = AutoModel.from_pretrained("{folder}", dtype="auto")',
    "open_clip": "import open_clip\n\n"
    'model, _, preprocess = open_clip.create_model_and_transforms("local-dir:{folder}")',
    "timm": 'import timm\n\nmodel = timm.create_model("local-dir:{folder}", pretrained=True)',
    None: "from safetensors.torch import load_file\n\n"
    'state = load_file("{folder}/model.safetensors")',
}


def texts(recipe: Recipe, folder: str, library: str | None = None) -> dict[str, str]:
    """The card and the recipe by file name, for `checkpoints.writing.writer`."""
    return {"README.md": card(recipe, folder, library), RECIPE_FILE: to_yaml(recipe)}


def card(recipe: Recipe, folder: str, library: str | None = None) -> str:
    """A model card in Markdown; `folder` is the model's name, `library` one that loads it.

    Absolute paths are told by their last parts, those of Hugging Face's cache by their repository.
    """
    paths = [recipe.base, *(model.path for model in recipe.models)]
    names = told(paths)
    models = [replace(m, path=n) for m, n in zip(recipe.models, names[1:], strict=True)]
    shown = replace(recipe, base=names[0], models=models)
    front: dict[str, Any] = {
        "base_model": list(dict.fromkeys(names)),
        "tags": ["merge", "mergelib"],
    }
    if library is not None:
        front["library_name"] = library
    method = METHODS[recipe.method]
    settings = "".join(f"- `{name}`: {value}\n" for name, value in recipe.settings.items())
    rows = "".join(f"| `{m.path}` | {_weight(m.weight)} |\n" for m in models)
    scaled = " Weights are scaled to 1 on average, tensor by tensor." if recipe.normalize else ""
    return f"""---
{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---

# {folder}

A merge made with mergelib: the base `{names[0]}` and, by the method `{recipe.method}`, what
fine-tuning changed in the models.{scaled}

| model | weight |
| --- | --- |
{rows}
## Method

`{recipe.method}`{f" ({method.reference})" if method.reference else ""}, edition {recipe.edition}\
{f", seed {recipe.seed}" if method.random else ""}.

{settings or "It has no parameters."}
## Loading

```python
{LOADING.get(library, LOADING[None]).format(folder=folder)}
```

## Recipe

```yaml
{to_yaml(shown)}```
"""


def told(paths: Sequence[str]) -> list[str]:
    """Paths as a card says them: the shortest ends of absolute ones that tell them apart."""
    names = []
    for path in paths:
        cached = CACHED.search(path)
        names.append(f"{cached[1]}/{cached[2]}" if cached else path)
    absolute = [Path(name).parts for name in names if Path(name).is_absolute()]
    longest = max((len(parts) for parts in absolute), default=1)
    distinct = len(set(absolute))
    for count in range(1, longest + 1):
        if len({parts[-count:] for parts in absolute}) == distinct:
            break
    return [
        Path(*Path(name).parts[-count:]).as_posix() if Path(name).is_absolute() else name
        for name in names
    ]


def _weight(weight: Any) -> str:
    if not isinstance(weight, list):
        return str(weight)
    if not isinstance(weight[0], dict):
        return f"{weight} over the layers"
    return "; ".join(f"`{e.get('filter', '*')}`: {e['value']}" for e in weight)
