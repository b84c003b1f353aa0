"""Errors that end a command with one sentence instead of a traceback."""


class InputError(Exception):
    """Input that cannot be used: bad flags, config or data (exit code 2).

    The message names the file or key, the place in it, and the remedy.
    """


class Failure(Exception):
    """What no flag, config or data need be to blame for, such as a full disk or a training that diverged (exit code 1).

    The message says what to do, or what is kept.
    """
