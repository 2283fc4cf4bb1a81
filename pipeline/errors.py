"""How a run ends otherwise than well: what that says to its user, and the exit code."""

import re
import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

ERROR_LINE = re.compile("^error: (.*)", re.MULTILINE)  # why a stage failed, in its log
Arguments = ParamSpec("Arguments")


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


def errors_in_one_line(main: Callable[Arguments, int]) -> Callable[Arguments, int]:
    """A command that says a mistake of its user's, or the disk's, in a line on stderr, and returns 2."""
    @wraps(main)
    def command(*args: Arguments.args, **kwargs: Arguments.kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except (Ended, OSError) as error:
            sys.stderr.write(f"error: {error}\n")
            return 2

    return command
