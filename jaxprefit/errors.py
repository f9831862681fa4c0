"""The one exception for mistakes a user can mend, and what tells the others apart."""


class UserError(Exception):
    """A mistake in what the user gave.

    The message is one line: what is wrong, where, and what to do.
    """


def out_of_memory(error: Exception) -> bool:
    """Whether a JAX error says that a device has no more memory."""
    return "RESOURCE_EXHAUSTED" in str(error)


def one_line(error: object) -> str:
    """The beginning of what an exception or a value says, in one line."""
    return " ".join(str(error).split())[:200]
