"""Tables of text: CSV and TSV as Excel, pandas and others write them."""

import csv
import re
import reprlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from jaxprefit.data.records.lines import MARK, MAX_LINE, marked_lines
from jaxprefit.data.records.tags import canonical, folded
from jaxprefit.errors import UserError

DELIMITERS = {";": ";", "\t": "%09", "|": "|", ",": ","}  # the usual ones, and how a source's option writes each
_QUOTED = re.compile(r'"(?:[^"]|"")*"?')  # by CSV's rules; or the first line of such a field


def table_rows(
    path: Path, delimiter: str, quotes: bool | None, columns: Collection[str]
) -> Iterator[tuple[int, dict[str, str]]]:
    """(number of its first line, heading -> field) of each row.

    Args:
      quotes: whether fields that hold the delimiter, a quote or a line end are quoted, as in CSV (RFC 4180). None: a
        quote is text like any other, and a field that CSV's rules would read otherwise is refused.
      columns: headings that are needed, to advise where they are missing since the delimiter is another one.
    """
    at_start = True  # of a row, so that a byte order mark is none of its text

    def feed() -> Iterator[str]:
        nonlocal at_start
        for _, line in marked_lines(path):
            text, at_start = line.removeprefix(MARK) if at_start else line, False
            yield text

    csv.field_size_limit(MAX_LINE)  # else 128 KiB; an open quote still cannot eat a whole file
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise UserError(f"{path}: the delimiter {delimiter!r} cannot be; give one character (%09 is a tab)")
    reader = csv.reader(
        feed(), delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE, strict=True
    )
    heading: list[str] = []
    names: set[str] = set()
    number = 1
    try:
        for row in reader:
            where = f"{path}:{number}"
            if quotes is None:
                _check_quotes(where, row)
            if not heading:
                heading = [canonical(name) for name in row]
                names = {folded(name) for name in heading}
                _check_heading(where, heading, delimiter, columns)
            elif row and len(row) != len(heading):
                hint = "quote a field that holds the delimiter" if quotes else "mend the row"
                raise UserError(f"{where}: {len(row)} fields under {len(heading)} headings; {hint}")
            elif row and all(folded(field) in names for field in row) and len({*map(folded, row)}) == len(names):
                raise UserError(f"{where}: repeats the heading, as in files joined end to end; delete the line")
            elif row:
                yield number, dict(zip(heading, row, strict=True))
            number, at_start = reader.line_num + 1, True
    except csv.Error as error:
        hint = "save the file with \\n as line end" if "new-line" in str(error) else "mend the quotes"
        raise UserError(f"{path}:{number}: not CSV ({str(error).partition(' - ')[0]}); {hint}") from None


def _check_quotes(where: str, row: Sequence[str]) -> None:
    for field in row:
        if field.startswith('"') and _QUOTED.fullmatch(field):
            raise UserError(
                f"{where}: the field {reprlib.repr(field)} begins with a quote; add quotes=csv to the source if quotes "
                "enclose fields, as Excel and pandas write them, or quotes=none if they are text"
            )


def _check_heading(where: str, heading: Sequence[str], delimiter: str, columns: Collection[str]) -> None:
    if len(set(heading)) < len(heading):
        raise UserError(f"{where}: two headings are the same; rename one")
    if {canonical(name) for name in columns} <= set(heading):
        return
    line = delimiter.join(heading)
    if line.startswith("sep="):
        raise UserError(f"{where}: {line!r} is a line for Excel alone; delete it and add delimiter= to the source")
    for other, option in DELIMITERS.items():
        parts = {canonical(name.strip(' "')) for name in line.split(other)}
        if other != delimiter and ((len(heading) == 1 and other in line) or {*columns} <= parts):
            raise UserError(
                f"{where}: the headings {reprlib.repr(line)} are parted by {other!r}, not {delimiter!r}; "
                f'add the delimiter to the source, in quotes, as in "my.csv?delimiter={option}"'
            )
