"""Classification tasks: what is asked, the words for the answers, and disjoint splits of images."""

from mergelib.tasks.registry import SPLITS, TASKS, Source, Split, Task
from mergelib.tasks.splits import build

# Importing a file of tasks registers them; the order is that of the benchmark.
from mergelib.tasks import rendered, shipped  # noqa: I001 isort: skip

__all__ = ["SPLITS", "TASKS", "Source", "Split", "Task", "build", "rendered", "shipped"]
