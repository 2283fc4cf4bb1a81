"""How a run ends otherwise than well: what that says to its user, and the exit code."""

import re

ERROR_LINE = re.compile("^error: (.*)", re.MULTILINE)  # why a stage failed, in its log



class Ended(Exception):
    """A run that ended without its output."""

    code = 1


class UserError(Ended):
    """A mistake of the user's, or something that is missing: what, where, how to mend."""

    code = 2


class Stopped(Ended):
    """A run that must not go on: what happened, what was kept, what to change."""


class Interrupted(Ended):
    """A run that was asked to stop by a signal, and kept its state."""

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.code = 128 + signal
