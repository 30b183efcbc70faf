"""JSON and YAML that people write: every mistake one clear line, whatever the file holds."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mergelib.core.errors import MergelibError

JSON_BYTES = 256 * 2**20  # no document comes near; a checkpoint given by mistake may
YAML_BYTES = 2**20  # which takes seconds to read
YAML_NODES = 100_000  # counted where an alias stands too
FLOAT = "tag:yaml.org,2002:float"


def read_json(path: Path) -> Any:
    """Read JSON as the standard has it: no NaN, no name twice.

    Raises MergelibError if the file is missing, too large, or cannot be parsed.
    """
    path = Path(path)
    text = _text(path, JSON_BYTES)
    if text.startswith("\ufeff"):
        raise MergelibError(f"{path} begins with a byte order mark: save it as UTF-8 without one")
    try:
        return json.loads(
            text, object_pairs_hook=_once, parse_constant=_finite, parse_float=_finite
        )
    except RecursionError:
        raise MergelibError(f"{path} is nested too deeply: write it flatter") from None
    except json.JSONDecodeError as error:
        raise MergelibError(f"{path} is truncated or not JSON ({error}): write it again") from None
    except ValueError as error:
        raise MergelibError(f"{path} cannot be used ({_line(error)}): mend it") from None


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises MergelibError as `read_json` does, and for any other value."""
    held = read_json(path)
    if not isinstance(held, dict):
        raise MergelibError(f"{path} holds a {type(held).__name__}, no JSON object: mend it")
    return held


def read_yaml(path: Path, replaced: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Read a YAML file of names and values; words of its text may be `replaced` first.

    Raises MergelibError if the file is missing, too large, no mapping, or as `parse_yaml` does.
    """
    path = Path(path)
    text = _text(path, YAML_BYTES)
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
            if _nodes(node, {}) > YAML_NODES:
                raise MergelibError(
                    f"{where} has more than {YAML_NODES} values, aliases counted: write less"
                )
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise MergelibError(f"{where} is nested too deeply: write it flatter") from None
    except MergelibError:
        raise
    except Exception as error:  # yaml raises whatever int, datetime and a dict's keys raise
        raise MergelibError(f"{where} is not YAML ({_line(error)}): mend it") from None


def _text(path: Path, most: int) -> str:
    """The text of a file of at most so many bytes."""
    try:
        if path.is_dir():
            raise MergelibError(f"{path} is a folder: give a file")
        if not path.exists():
            raise MergelibError(f"{path} is missing: check the path")
        with path.open("rb") as file:
            data = file.read(most + 1)  # not its size, which a device does not tell
    except OSError as error:
        raise MergelibError(f"{path} cannot be read ({error.strerror}): check the path") from None
    if len(data) > most:
        raise MergelibError(
            f"{path} is larger than {most / 2**20:.0f} MiB, the most that is read: is it the right "
            "file?"
        )
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise MergelibError(
            f"{path} is no UTF-8 text (byte {error.start}): save it as UTF-8, or give another file"
        ) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    held: dict[str, Any] = {}
    for name, value in pairs:
        if name in held:
            raise ValueError(f"{name[:60]!r} is there twice")
        held[name] = value
    return held


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no finite number")
    return value


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, without NaN and infinity."""

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        value = super().construct_yaml_float(node)
        if not math.isfinite(value):
            raise ValueError(f"{node.value} is no finite number")
        return value


_Loader.add_constructor(FLOAT, _Loader.construct_yaml_float)


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
        _once([(name, None) for name in names])
        inside = [each for pair in node.value for each in pair]
    elif isinstance(node, yaml.SequenceNode):
        inside = node.value
    known[id(node)] = 1 + sum(_nodes(each, known) for each in inside)
    return known[id(node)]


def _line(error: Exception) -> str:
    """What an exception says, in one short line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) < 200 else f"{words[:200]} …"
