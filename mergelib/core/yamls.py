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
                raise MergelibError(
                    f"key {key.value!r} is given twice, again in line {key.start_mark.line + 1}: "
                    "leave one"
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, where: str) -> Any:
    """What a YAML text holds. Raises MergelibError, naming `where`, for none and a repeated key."""
    try:
        return yaml.load(text, _Strict)  # noqa: S506  # a safe loader
    except MergelibError as error:
        raise MergelibError(f"{where}: {error}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise MergelibError(f"{where} is not YAML ({error}): mend it") from None
