"""Parameters of chapters: read from their cells, checked before anything runs."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

from mergelib.book.notebooks import INJECTED
from mergelib.core.errors import MergelibError
from mergelib.core.registry import unknown

KINDS = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}


@dataclass(frozen=True)
class Parameter:
    """One line `name: kind = default` of a cell tagged `parameters`.

    `kind` is a key of KINDS, or empty where the line declares none; `choices` are the values of
    `Literal[...]`.
    """

    name: str
    default: Any
    kind: str = ""
    choices: tuple = ()

    def fault(self, value: Any) -> str:
        """What is wrong with a value, in words; empty if nothing is."""
        if self.choices:
            known = ", ".join(str(choice) for choice in self.choices)
            return "" if value in self.choices else f"must be one of {known}"
        if not self.kind or (
            isinstance(value, KINDS[self.kind])
            and (self.kind == "bool" or not isinstance(value, bool))
        ):
            return ""
        quoted = ": put it in quotes" if self.kind == "str" else ""
        return f"must be of type {self.kind}, not {type(value).__name__}{quoted}"


def parameters(notebook: nbformat.NotebookNode, tag: str = "parameters") -> dict[str, Parameter]:
    """The parameters that a chapter declares, by name; nothing is run.

    The kind is that of the annotation (`int`, `float`, `bool`, `str`, `Literal[...]`), else that
    of the default; a default that is no literal counts as None. With the tag INJECTED: what
    papermill passed to an executed copy.
    """
    found: dict[str, Parameter] = {}
    for cell in notebook.cells:
        if cell.cell_type == "code" and tag in cell.metadata.get("tags", []):
            for node in ast.parse(cell.source).body:
                names: list[ast.expr]
                annotation: ast.expr | None
                if isinstance(node, ast.AnnAssign) and node.value is not None:
                    names, annotation = [node.target], node.annotation
                elif isinstance(node, ast.Assign):
                    names, annotation = node.targets, None
                else:
                    continue
                for target in names:
                    if isinstance(target, ast.Name):
                        found[target.id] = _parameter(target.id, node.value, annotation)
    return found


def _parameter(name: str, default: ast.expr, annotation: ast.expr | None) -> Parameter:
    value = _literal(default)
    if annotation is None:
        kind = type(value).__name__
    elif isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) in (
        "Literal",
        "typing.Literal",
    ):
        choices = _literal(annotation.slice)
        choices = choices if isinstance(choices, tuple) else (choices,)
        return Parameter(name, value, type(value).__name__, choices)
    else:
        kind = ast.unparse(annotation)
    return Parameter(name, value, kind if kind in KINDS else "")


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def check(declared: Mapping[Path, Mapping[str, Parameter]], values: Mapping[str, Any]) -> None:
    """Refuse values that no chapter can take.

    `declared` has the parameters of each chapter. Raises MergelibError for a name that none of
    them declares, and for a value whose type or choice is not that of a chapter which does.
    """
    known = dict.fromkeys(name for held in declared.values() for name in held)
    for name in values:
        if name not in known:
            raise MergelibError(
                f"no chapter that is to run has a parameter {name}: {unknown('name', name, known)}"
            )
    for path, held in declared.items():
        for name, value in values.items():
            if name in held and (fault := held[name].fault(value)):
                raise MergelibError(f"{path.stem}: parameter {name} = {value!r} {fault}")


def edition(notebook: nbformat.NotebookNode, folder: Path) -> dict[str, str]:
    """Where the parameters of an executed copy differ from the chapter's defaults.

    Files and folders, seen from the chapter's `folder`, count by their last name, so that no
    reader sees where a machine keeps them; those of a checkout (`released`) do not count.
    """

    def shown(value: Any) -> str:
        text = str(value)
        return Path(text).name if text and (folder / text).exists() else text

    declared = parameters(notebook)
    passed = {name: shown(held.default) for name, held in parameters(notebook, INJECTED).items()}
    return {
        name: value
        for name, value in passed.items()
        if name in declared and name != "released" and value != shown(declared[name].default)
    }
