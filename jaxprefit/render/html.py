"""Single-file HTML pages with figures inside: no script, no link to anything outside."""

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any

from jaxprefit.runtime.terminal import printable

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; } .note { color: #555; }
"""


def page(title: str, sections: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A page of (heading, parts); parts are HTML from `paragraph`, `table` and `picture`."""
    body = "".join(f"<h2>{escape(h)}</h2>\n{''.join(parts)}" for h, parts in sections)
    head = f"<meta charset='utf-8'><meta name='viewport' content='width=device-width'><title>{escape(title)}</title>"
    return (
        f"<!doctype html><html lang='en'><head>{head}<style>{_STYLE}</style></head>"
        f"<body><h1>{escape(title)}</h1>\n{body}</body></html>\n"
    )


def paragraph(text: str) -> str:
    """Text as a paragraph."""
    return f"<p>{escape(text)}</p>\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as a table."""
    top = "".join(f"<th>{escape(h)}</th>" for h in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>\n" for row in rows)
    return f"<table><tr>{top}</tr>\n{body}</table>\n"


def picture(figure: Any, alt: str) -> str:
    """A matplotlib figure as an inline PNG; `alt` says in words what it shows."""
    data = base64.b64encode(png(figure)).decode()
    return f"<img alt='{escape(alt, quote=True)}' src='data:image/png;base64,{data}'>\n"


def figure_text(text: str) -> str:
    """Text of a user for matplotlib, which takes $...$ for a formula and hides a label that begins with _."""
    shown = printable(text).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def png(figure: Any) -> bytes:
    """A matplotlib figure as PNG bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, bbox_inches="tight")
    return buffer.getvalue()
