"""The one error a user can mend: bad flags, config or data. Commands end with exit code 2 on it."""


class InputError(Exception):
    """Input that cannot be used; the message names the file or key, the place in it, and the remedy."""
