"""For tests and chapters: numbers are compared as numbers, what is not here is skipped."""

import pytest

pytest_plugins = ["notebook_numbers"]


def pytest_collection_modifyitems(items):
    """Skip the cells of chapters whose released tables are not beside the repository."""
    from mergelib.book.chapters import lacks_released

    chapters = {item.path for item in items if item.path.suffix == ".ipynb"}
    absent = {path for path in chapters if lacks_released(path, {})}
    reason = "no folder `shared` beside the repository: the released tables are not here"
    for item in items:
        if item.path in absent:
            item.add_marker(pytest.mark.skip(reason=reason))
