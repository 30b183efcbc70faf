"""The one exception that a user's mistake raises."""


class MergelibError(Exception):
    """Input that cannot be used; the message names the operand or file and the mend."""
