"""Words of a task: names of its classes and prompts to put them into, of lists or files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergelib.core.documents import read_mapping, text_of
from mergelib.core.errors import MergelibError

TEMPLATES = ("a photo of a {}.",)  # CLIP's own, where a task has none
MANY = 2**20  # bytes of a file of class names


@dataclass(frozen=True)
class Classes:
    """Names of classes in the order of the head, and prompts to put them into (none: usual)."""

    names: tuple[str, ...]
    templates: tuple[str, ...] = ()


def read_classes(path: Path | str) -> Classes:
    """Class names: a text file with one a line, or JSON {"classes": […], "templates": […]}.

    Raises MergelibError, naming the file, for fewer than two, one twice, and a template without {}.
    """
    path = Path(path)
    if path.suffix != ".json":
        return checked(lines_of(path), [], str(path))
    held = read_mapping(path)
    return checked(held.get("classes", []), held.get("templates", []), str(path))


def lines_of(path: Path) -> list[str]:
    """The lines of a text file that hold something."""
    return [line.strip() for line in text_of(path, MANY).splitlines() if line.strip()]


def checked(names: Any, templates: Any, where: str) -> Classes:
    """Words as they are given. Raises MergelibError as `read_classes` does, `where` named."""
    for what, each in (("classes", names), ("templates", templates)):
        if not isinstance(each, list) or not all(isinstance(text, str) and text for text in each):
            raise MergelibError(f"{where}: {what} must be a list of texts")
    if len(names) < 2 or len(set(names)) < len(names):
        raise MergelibError(f"{where} names {len(names)} classes: give two or more, each once")
    wrong = [text for text in templates if "{}" not in text]
    if wrong:
        raise MergelibError(f"{where}: template {wrong[0]!r} has no {{}} for the class")
    return Classes(tuple(names), tuple(templates))
