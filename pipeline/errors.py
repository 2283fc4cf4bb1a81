"""How a run ends otherwise than well, and what that says to its user."""


class UserError(Exception):
    """A mistake of the user's, or something that is missing: what, where, how to mend."""


class Stopped(Exception):
    """A run that must not go on: what happened, what was kept, what to change."""


class Interrupted(Exception):
    """A run that was asked to stop by a signal, and kept its state."""

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal
