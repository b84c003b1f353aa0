"""Errors that end a command with one sentence instead of a traceback."""


class InputError(Exception):
    """Input that cannot be used: bad flags, config or data (exit code 2).

    The message names the file or key, the place in it, and the remedy.
    """


class Failure(Exception):
    """What no flag, config or data is to blame for, such as a full disk (exit code 1); the message says what to do."""
