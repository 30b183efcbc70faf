"""YAML that people write: every mistake one clear line, in bounded time and memory."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mergelib.core.documents import once, one_line, text_of
from mergelib.core.errors import MergelibError

BYTES = 2**17  # which takes seconds to read
NODES = 100_000  # counted where an alias stands too


def read_yaml(path: Path, replaced: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Read a YAML file of names and values; words of its text may be `replaced` first.

    Raises MergelibError if the file is missing, too large, no mapping, or as `parse_yaml` does.
    """
    path = Path(path)
    text = text_of(path, BYTES)
    for word, instead in (replaced or {}).items():
        text = text.replace(word, instead)
    held = parse_yaml(text, str(path))
    if not isinstance(held, dict):
        raise MergelibError(
            f"{path} holds no `name: value` lines (a {type(held).__name__}): write some"
        )
    return held


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text; `where` is named in errors.

    Raises MergelibError for what is no YAML, a name twice, NaN or infinity, and what is nested too
    deeply or grows too large by its aliases.
    """
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _nodes(node, {}) > NODES:
                raise MergelibError(
                    f"{where} has more than {NODES} values, aliases counted: write less"
                )
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise MergelibError(f"{where} is nested too deeply: write it flatter") from None
    except MergelibError:
        raise
    except Exception as error:  # yaml raises whatever int, datetime and a dict's keys raise
        raise MergelibError(f"{where} cannot be used as YAML ({_told(error)}): mend it") from None


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, without NaN and infinity."""

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        value = super().construct_yaml_float(node)
        if not math.isfinite(value):
            raise ValueError(f"{node.value} is no finite number")
        return value


_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)


def _nodes(node: yaml.Node, known: dict[int, int]) -> int:
    """How many nodes there are where every alias is written out; every name is there once.

    Raises ValueError for a name that comes twice, and for an alias inside what it stands for.
    """
    if id(node) in known:
        if not known[id(node)]:
            raise ValueError("an alias stands inside what it stands for")
        return known[id(node)]
    known[id(node)] = 0
    inside: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        once([(name, None) for name in names])
        inside = [each for pair in node.value for each in pair]
    elif isinstance(node, yaml.SequenceNode):
        inside = node.value
    known[id(node)] = 1 + sum(_nodes(each, known) for each in inside)
    return known[id(node)]


def _told(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return one_line(error)
