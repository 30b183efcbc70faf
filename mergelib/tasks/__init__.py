"""Classification tasks: what is asked, the words for the answers, and disjoint splits of images.

The benchmark's own tasks are made from what the packages of the extra `glyphs` ship; they are
looked for when a task is asked for, so that other tasks do without.
"""

from mergelib.tasks.registry import SPLITS, TASKS, Source, Split, Task, task
from mergelib.tasks.splits import build

__all__ = ["SPLITS", "TASKS", "Source", "Split", "Task", "build", "task"]
