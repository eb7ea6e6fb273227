"""The one exception that users are meant to read."""


class RetrogradError(Exception):
    """A problem that the user can act on: what was found, what was wanted, what to do next."""
