"""The layout keeps its word: small files and functions, and the README names every folder."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "mergelib"
LINES, OF_A_FILE, OF_A_FUNCTION = 21_600, 350, 60


def sources() -> dict[str, str]:
    files = sorted(LIBRARY.rglob("*.py"))
    return {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in files}


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
    return node.end_lineno - first + 1


def test_the_library_is_thin():
    sizes = {name: len(text.splitlines()) for name, text in sources().items()}
    assert sum(sizes.values()) <= LINES
    assert not {name: size for name, size in sizes.items() if size > OF_A_FILE}


def test_functions_are_short():
    functions = {
        f"{name}:{node.name}": length(node)
        for name, text in sources().items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert len(functions) > 500  # what is counted is there
    assert not {name: size for name, size in functions.items() if size > OF_A_FUNCTION}


def test_the_readme_names_the_folders_that_there_are():
    told = re.findall(r"`mergelib/(\w+)/`", (ROOT / "README.md").read_text(encoding="utf-8"))
    there = [file.parent.name for file in LIBRARY.glob("*/__init__.py")]
    assert sorted(told) == sorted(there)
