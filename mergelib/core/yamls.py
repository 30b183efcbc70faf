"""YAML read strictly: a key that is given twice is a mistake, not the last one's value."""

from collections.abc import Hashable
from typing import Any

import yaml

from mergelib.core.errors import MergelibError


class _Strict(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise ValueError(f"{key.value!r} is there twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, where: str) -> Any:
    """What a YAML text holds. Raises MergelibError, naming `where`, for none and a repeated key."""
    try:
        return yaml.load(text, _Strict)  # a safe loader
    except RecursionError:
        raise MergelibError(f"{where} is nested too deeply: write it flatter") from None
    except (yaml.YAMLError, ValueError) as error:
        words = " ".join(str(error).split())
        raise MergelibError(f"{where} cannot be used as YAML ({words}): mend it") from None
