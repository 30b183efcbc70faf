"""A few runs killed at random give the tables of undisturbed ones (`kill_runs.py`: twenty)."""

import random
import time

import pytest
from kill_runs import kill_runs, started, tables

pytestmark = pytest.mark.slow


def test_runs_killed_at_random_give_the_same_tables(tmp_path):
    start = time.monotonic()
    started(tmp_path).join()
    where = kill_runs(3, random.Random(1), tables(tmp_path), time.monotonic() - start)
    assert where.total() == 3 and "WRONG" not in where, where
    assert not list((tmp_path / "store" / "resume").glob("*"))
