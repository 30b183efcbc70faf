"""A few damaged inputs of each kind end in one clear line (`fuzz_inputs.py` runs thousands)."""

import pytest
from fuzz_inputs import KINDS, fuzz

from mergelib.core.errors import MergelibNote


@pytest.mark.filterwarnings("default::mergelib.core.errors.MergelibNote")
def test_damaged_inputs_end_in_one_line():
    assert issubclass(MergelibNote, UserWarning)
    assert fuzz(20 * len(KINDS), seed=1) == []
