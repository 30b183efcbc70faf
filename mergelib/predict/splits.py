"""scikit-learn splitters over pairs; `groups` is the (n, 2) array of each pair's tasks."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import BaseCrossValidator
from sklearn.utils import check_random_state

from mergelib.core.errors import MergelibError
from mergelib.core.registry import Registry


@dataclass(frozen=True)
class Split:
    """One split: its splitter's class and the statistic that a QAP p-value is about.

    `spread`: what a 95 % interval draws anew, "folds", "tasks" or, where tables show none, "".
    """

    name: str
    headline: str
    spread: str
    reference: str
    splitter: type["PairSplitter"]


SPLITS: Registry[Split] = Registry("split", group="mergelib.splits")
HEADLINE: dict[str, str] = {}  # a split's headline statistic, by name


def split(
    name: str, headline: str, spread: str = "", reference: str = ""
) -> Callable[[type["PairSplitter"]], type["PairSplitter"]]:
    """Register a `PairSplitter` under a name; `headline` is a field of `correlation.Scores`.

    Its constructor is given `repeats` and `random_state` if it has such parameters.
    """

    def register(cls: type["PairSplitter"]) -> type["PairSplitter"]:
        SPLITS.add(Split(name, headline, spread, reference, cls))
        HEADLINE[name] = headline
        return cls

    return register


def _ends(groups) -> np.ndarray:
    ends = None if groups is None else np.asarray(groups)
    if ends is None or ends.ndim != 2 or ends.shape[1] != 2:
        shape = None if ends is None else ends.shape
        raise MergelibError(f"groups must be the (n, 2) array of each pair's tasks, not {shape}")
    return ends


class PairSplitter(BaseCrossValidator):
    """Yields train and test indices from boolean masks over the pairs."""

    def masks(self, ends: np.ndarray) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Name, train mask (n,) and test mask (n,) of every fold that has pairs in both."""
        raise NotImplementedError

    def split(self, X, y=None, groups=None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Indices of the training and test pairs of every fold."""
        for _, train, test in self.masks(_ends(groups)):
            yield np.flatnonzero(train), np.flatnonzero(test)

    def get_n_splits(self, X=None, y=None, groups=None) -> int:
        """Number of folds."""
        return sum(1 for _ in self.masks(_ends(groups)))


@split("loto", "r_fold_mean", spread="folds", reference="arXiv 2601.22285, section 4.1")
class LeaveOneTaskOut(PairSplitter):
    """One fold per task h: test = pairs that contain h, train = pairs that do not.

    The published split (section 4.1 of arXiv 2601.22285). Each test pair's other task is in
    training many times, so its null is far above zero: read it beside a QAP null.
    """

    def masks(self, ends):
        for task in np.unique(ends):
            test = (ends == task).any(axis=1)
            if test.any() and not test.all():
                yield str(task), ~test, test


@split("l2to", "r_pooled", spread="tasks", reference="arXiv 2601.22285v1, appendix")
class LeaveTwoTasksOut(PairSplitter):
    """One fold per pair (a, b): test = that pair alone, train = pairs with neither a nor b."""

    def masks(self, ends):
        for k, (a, b) in enumerate(ends):
            train = ~np.isin(ends, (a, b)).any(axis=1)
            if train.any():
                test = np.zeros(len(ends), dtype=bool)
                test[k] = True
                yield f"{a}+{b}", train, test


@split("halves", "r_fold_mean", reference="this library")
class DisjointHalves(PairSplitter):
    """Tasks cut at random into two halves, `repeats` times.

    Two folds a repeat: train on the pairs inside one half, test on those inside the other, and
    back. No task is on both sides.
    """

    def __init__(self, repeats: int = 50, random_state: int | None = 0) -> None:
        self.repeats = repeats
        self.random_state = random_state

    def masks(self, ends):
        tasks = np.unique(ends)
        rng = check_random_state(self.random_state)
        for repeat in range(self.repeats):
            half = rng.permutation(tasks)[: len(tasks) // 2]
            inside = np.isin(ends, half)
            one, other = inside.all(axis=1), ~inside.any(axis=1)
            if one.any() and other.any():
                yield f"{repeat}a", one, other
                yield f"{repeat}b", other, one


def splitter(name: str, seed: int = 0, repeats: int = 50) -> PairSplitter:
    """The splitter of that name. Raises MergelibError for an unknown one."""
    cls = SPLITS[name].splitter
    given = {"repeats": repeats, "random_state": seed}
    takes = inspect.signature(cls).parameters
    return cls(**{key: value for key, value in given.items() if key in takes})


def fold_masks(
    split: PairSplitter, ends: np.ndarray, tasks: tuple[str, ...] | None = None
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, train masks (F, n) and test masks (F, n) of all folds.

    Raises MergelibError if no fold has pairs on both sides.
    """
    names, train, test = [], [], []
    for name, inside, outside in split.masks(ends):
        if tasks is not None and name.replace("+", "").isdigit():
            name = "+".join(tasks[int(k)] for k in name.split("+"))
        names.append(name)
        train.append(inside)
        test.append(outside)
    if not names:
        raise MergelibError(
            f"{type(split).__name__} leaves no fold with training and test pairs: "
            f"{len(np.unique(ends))} tasks are too few"
        )
    return names, np.array(train), np.array(test)


def inner_task_folds(ends: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Leave-one-task-out inside each outer fold: train and test masks, both (F, T, n)."""
    has = np.array([(ends == task).any(axis=1) for task in np.unique(ends)])
    return train[:, None] & ~has, train[:, None] & has
