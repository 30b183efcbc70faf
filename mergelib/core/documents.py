"""JSON that people write: every mistake one clear line, whatever the file holds."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mergelib.core.errors import MergelibError

JSON_BYTES = 256 * 2**20  # no document comes near; a checkpoint given by mistake may


def read_json(path: Path) -> Any:
    """Read JSON as the standard has it: no NaN, no name twice.

    Raises MergelibError if the file is missing, too large, or cannot be parsed.
    """
    path = Path(path)
    text = text_of(path, JSON_BYTES)
    if text.startswith("\ufeff"):
        raise MergelibError(f"{path} begins with a byte order mark: save it as UTF-8 without one")
    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise MergelibError(f"{path} is nested too deeply: write it flatter") from None
    except json.JSONDecodeError as error:
        raise MergelibError(f"{path} is truncated or not JSON ({error}): write it again") from None
    except ValueError as error:
        raise MergelibError(f"{path} cannot be used ({one_line(error)}): mend it") from None


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises MergelibError as `read_json` does, and for any other value."""
    held = read_json(path)
    if not isinstance(held, dict):
        raise MergelibError(f"{path} holds a {type(held).__name__}, no JSON object: mend it")
    return held


def text_of(path: Path, most: int) -> str:
    """The text of a file of at most so many bytes.

    Raises MergelibError if it is missing, larger, unreadable or no UTF-8.
    """
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
            f"{path} is larger than {most / 2**10:,.0f} KiB, the most that is read: give the right "
            "file, or a smaller one"
        )
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise MergelibError(
            f"{path} is no UTF-8 text (byte {error.start}): save it as UTF-8, or give another file"
        ) from None


def once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A dict of pairs. Raises ValueError for a name that comes twice."""
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


def one_line(error: Exception) -> str:
    """What an exception says, in one short line."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) < 200 else f"{words[:200]} …"
