"""How a source is written: ``ADDRESS?OPTION=VALUE&OPTION=VALUE``, values percent-encoded where they need to be.

A ``+`` stands for itself: column names have it, and the shell takes a space between quotes.
"""

from collections.abc import Callable, Sequence

from jaxprefit.errors import UserError

_PREFIXES = ("@", "tfds:", "hub:", "generated:")  # of sources that are no files


def split(text: str) -> tuple[str, dict[str, str]]:
    """(address, option -> value as it is written). Raises UserError for an option that stands twice."""
    address, _, query = text.partition("?")
    options: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        name, _, value = pair.partition("=")
        if name in options:
            raise UserError(f"source '{text}': option '{name}' stands twice; give it once")
        options[name] = value
    return address, options


def join(address: str, options: dict[str, str]) -> str:
    """The inverse of ``split``."""
    query = "&".join(f"{name}={value}" for name, value in options.items())
    return f"{address}?{query}" if query else address


def check_one(text: str, exists: Callable[[str], bool]) -> None:
    """Raises UserError for a text that names several sources; ``exists`` says of an address whether it is there."""
    parts = text.split(",")
    address = text.partition("?")[0]
    all_sources = all(part.startswith(_PREFIXES) or exists(part.partition("?")[0]) for part in parts)
    if len(parts) > 1 and (all_sources or ("," in address and not exists(address))):
        raise one_by_one(text, parts)


def one_by_one(text: str, names: Sequence[str]) -> UserError:
    """What to say of a text that stands for the sources of these names."""
    listed = ", ".join(map(repr, names[:5]))
    return UserError(
        f"source '{text}' is several in one; "
        f'name each between quotes, as in --config.data.ner.sources="({listed}{", ..." * (len(names) > 5)})"'
    )
