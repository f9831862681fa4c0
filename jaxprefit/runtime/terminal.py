"""Text of users on the terminal: shown as it is, and never obeyed.

A label, path or text may hold what the terminal obeys (escape sequences) or what rich takes for markup (`[red]`,
`[/b]`, `:smile:`). `printable` is for `print`, `plain` for tables and whatever else rich shows.
"""

import re

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

# Control characters, line separators, overrides of direction, and halves of surrogate pairs, which cannot be encoded.
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object) -> str:
    r"""`text` on one line, with the characters that a terminal obeys written as in Python, such as \x1b."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def lines(text: str) -> str:
    r"""As `printable`, of a text of several lines, which stay apart."""
    return "\n".join(map(printable, text.split("\n")))


def plain(text: object, style: str = "") -> Text:
    """`printable` text for rich, without markup."""
    return Text(printable(text), style)


def text_column(template: str) -> TextColumn:
    """A column of a progress bar, without markup."""
    return TextColumn(template, markup=False)


def progress_bar(transient: bool = False) -> Progress:
    """A bar with descriptions on standard error, where that is a terminal; `transient`: it goes when it has ended."""
    console = Console(stderr=True)
    return Progress(text_column("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(),
                    console=console, transient=transient, disable=not console.is_terminal)  # fmt: skip
