"""Numbers, intervals and tables as text."""

from collections.abc import Sequence

from jaxprefit.runtime.terminal import printable


def signed(x: float | None, digits: int = 3) -> str:
    """A number with its sign; '-' where it is undefined."""
    return "-" if x is None else f"{x:+.{digits}f}"


def bounds(interval: Sequence[float | None], digits: int = 3) -> str:
    """'[-0.1, +0.2]', or nothing where it is undefined."""
    return "" if None in interval else f"[{interval[0]:+.{digits}f}, {interval[1]:+.{digits}f}]"


def markdown(title: str, header: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a titled Markdown table. Whatever a cell or the title holds, it is one cell, and no HTML."""
    table = [map(escaped, header), ["---"] * len(header), *(map(escaped, row) for row in rows)]
    return [f"**{escaped(title)}**", "", *("| " + " | ".join(line) + " |" for line in table), ""]


def escaped(text: str) -> str:
    """Text of a user for Markdown: on one line, no HTML, and no end of a cell."""
    return printable(text).replace("|", "\\|").replace("<", "&lt;")
