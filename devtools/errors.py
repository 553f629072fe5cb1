"""The error that set-up and the commands end with."""


class SetupError(Exception):
    """Says in plain words what is wrong and what to do about it."""
