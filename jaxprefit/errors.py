"""The one exception for mistakes a user can mend."""


class UserError(Exception):
    """A mistake in what the user gave.

    The message is one line: what is wrong, where, and what to do.
    """
