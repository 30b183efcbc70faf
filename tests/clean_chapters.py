"""Pre-commit hook: chapters as the builder leaves them, without times, paths and other metadata.

    python tests/clean_chapters.py book/02_metrics.ipynb ...

Rewrites those that hold more, and exits with 1 if there was one.
"""

import sys
from pathlib import Path

import nbformat

from mergelib.book.notebooks import clean

ROOT = Path(__file__).resolve().parents[1]


def main(paths: list[str]) -> int:
    """How many chapters were rewritten, as an exit status."""
    rewritten = []
    for path in map(Path, paths):
        before = path.read_text(encoding="utf-8")
        notebook = clean(nbformat.reads(before, 4), ROOT, path.stem)
        after = nbformat.writes(notebook) + "\n"
        if after != before:
            path.write_text(after, encoding="utf-8")
            rewritten.append(str(path))
    if rewritten:
        print(f"cleaned, add again: {', '.join(rewritten)}")
    return int(bool(rewritten))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
