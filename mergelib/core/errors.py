"""The one exception that a user's mistake raises, and the warning that tells what was done."""

import warnings
from collections.abc import Iterable


class MergelibError(Exception):
    """Input that cannot be used; the message names the operand or file and the mend."""


class MergelibNote(UserWarning):
    """What was done with an input that a user may not expect; the command line prints it."""


def tell(notes: Iterable[str]) -> None:
    """Warn of each note once."""
    for note in dict.fromkeys(notes):
        warnings.warn(note, MergelibNote, stacklevel=3)
