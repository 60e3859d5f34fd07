"""The one error a user is meant to read."""


class TesseraeError(Exception):
    """Something the user can mend. The message is one sentence: what is wrong, where, and the remedy."""
