"""Reading users' files: JSON lines, CoNLL, CSV, TSV and lines of text, plain or as .gz or .xz.

``read`` streams, so a file may be larger than memory, and turns every malformed row into a
``UserError`` of the form ``FILE:LINE: what is wrong; what to do``.
"""

import csv
import difflib
import gzip
import json
import lzma
import os
import re
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

from jaxprefit.data.records import (
    BlankText,
    Columns,
    Kind,
    Record,
    check_settings,
    make_record,
    pick,
    source_columns,
)
from jaxprefit.errors import UserError
from jaxprefit.paths import user_path

MAX_LINE = 16 * 2**20  # bytes; a longer line is a file of another kind, not a record
MAX_TOKENS = 100_000  # in a CoNLL sentence; more means that the blank lines are missing

FORMATS = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".conll": "conll",
    ".bio": "conll",
    ".iob": "conll",
    ".txt": "conll",
    ".csv": "csv",
    ".tsv": "tsv",
}
COMPRESSED = (".gz", ".xz")
_HOLDS = {  # what each format can hold, for who asks it for something else
    "jsonl": "any kind",
    "conll": "only NER",
    "csv": "no lists of tokens",
    "tsv": "no lists of tokens",
    "lines": "only text",
}


def read(
    path: str | Path,
    kind: str,
    *,
    format: str | None = None,
    columns: Columns | None = None,
    scheme: str = "iob2",
    delimiter: str | None = None,
    limit: int | None = None,
    dropped: list[int] | None = None,
) -> Iterator[Record]:
    """Yields the valid records of one file, in order.

    Args:
      path: the file; its suffix tells the format (see ``FORMATS``) and the compression.
      kind: "ner", "pairs", "labelled" or "text".
      format: "jsonl", "conll", "csv", "tsv" or "lines" (for "text": one a line), where the suffix does
        not tell. A table of quoted fields is "csv" (with any delimiter); "tsv" knows no quotes.
      columns: where a field of the record stands under another name: field -> JSON key or CSV
        heading, or for CoNLL field -> index (default: tokens first, tags last). A "text" may come
        from several columns, as "a,b".
      scheme: how the tags of NER are written, a key of ``SCHEMES``; the records have IOB2.
      delimiter: between CSV fields ("," by default) or CoNLL columns (tab or spaces by default).
      limit: only the first so many records; None or 0 for all.
      dropped: rows whose text is blank are left out and their lines appended here; None: they are refused.

    Raises:
      UserError: at once for a wrong setting or path, and while reading for a wrong row.
    """
    path = user_path(path)
    spec = check_settings(path, kind, columns or {}, scheme, limit or 0)
    if os.path.isdir(path):  # os.path, since Path's own raise for a name that is too long
        raise UserError(f"{path}: is a folder, not a file; name the file in it")
    if not os.path.exists(path):
        raise UserError(f"{path}: does not exist; {_nearest(path)}")
    format = format or file_format(path, kind)
    columns = {**_default_columns(spec, format), **(columns or {})}
    if format == "jsonl":
        rows = _json_rows(path)
    elif format == "conll" and kind == "ner":
        rows = _conll_rows(path, columns, delimiter)
        columns = {field: field for field in spec.fields}
    elif format == "conll" and kind == "text":
        rows = ((n, row) for n, row in _conll_rows(path, {"tokens": columns["text"]}, delimiter))
        columns = {"text": "tokens"}
    elif format == "lines" and kind == "text":
        rows = ((n, {"text": line.strip()}) for n, line in _lines(path) if line.strip())
    elif format in ("csv", "tsv") and kind != "ner":
        rows = _csv_rows(path, delimiter or {"csv": ",", "tsv": "\t"}[format], format == "csv")
    elif format in _HOLDS:
        raise UserError(f"{path}: {format} holds {_HOLDS[format]}; set the format or convert the file")
    else:
        known = ", ".join(_HOLDS)
        raise UserError(f"{path}: unknown format {format!r}; use one of {known}")
    return islice(_records(path, spec, rows, source_columns(spec, columns), scheme, dropped), limit or None)


def file_format(path: Path, kind: str = "") -> str:
    """The format that the suffix tells, whatever the case and compression; a ``.txt`` of ``text`` holds lines."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    if not suffixes or suffixes[-1] not in FORMATS:
        raise UserError(
            f"{path}: the suffix does not tell the format; "
            f"set the format or name the file *{', *'.join(FORMATS)} (or these with .gz or .xz)"
        )
    return "lines" if kind == "text" and suffixes[-1] == ".txt" else FORMATS[suffixes[-1]]


def _default_columns(kind: Kind, format: str) -> Columns:
    if format == "conll":
        return {"text": 0} if kind.name == "text" else {"tokens": 0, "tags": -1}
    return {field: field for field in kind.fields}


def _records(
    path: Path,
    kind: Kind,
    rows: Iterator[tuple[int, Any]],
    columns: Columns,
    scheme: str,
    dropped: list[int] | None,
) -> Iterator[Record]:
    empty = True
    for line, row in rows:
        try:
            record = make_record(kind, pick(row, columns), scheme)
        except ValueError as error:
            if dropped is not None and isinstance(error, BlankText):
                dropped.append(line)
                continue
            raise UserError(f"{path}:{line}: {error}") from None
        empty = False
        yield record
    if empty:
        raise UserError(f"{path}: holds no records; give a file with at least one")


def _nearest(path: Path) -> str:
    try:
        names = sorted(os.listdir(path.parent))
    except (OSError, ValueError):  # ValueError: a null character
        return f"nor can its folder {path.parent} be read, so check the path"
    near = difflib.get_close_matches(path.name, names[:1000], n=1)
    return f"did you mean {path.parent / near[0]}?" if near else "check the path"


def _open(path: Path) -> IO[bytes] | gzip.GzipFile | lzma.LZMAFile:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")
    if path.suffix.lower() == ".xz":
        return lzma.open(path, "rb")
    return path.open("rb")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text with its newline) of each line, as UTF-8 with or without a mark."""
    number = 0
    try:
        with _open(path) as stream:
            while line := stream.readline(MAX_LINE + 1):
                number += 1
                if len(line) > MAX_LINE:
                    raise UserError(
                        f"{path}:{number}: the line is longer than {MAX_LINE >> 20} MiB; write one record a line"
                    )
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}:{number}: byte {error.start} of the line is not UTF-8; save the file as UTF-8"
        ) from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(
            f"{path}:{number + 1}: cannot be read ({error}); check that the file is whole and is what its suffix says"
        ) from None


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            detail = getattr(error, "msg", "a value is too long or too deep")
            raise UserError(f"{path}:{number}: not JSON ({detail}); write one JSON object a line") from None
        if not isinstance(row, dict):
            raise UserError(
                f"{path}:{number}: a JSON {type(row).__name__}, not an object; write one JSON object a line"
            )
        yield number, row


def _csv_rows(path: Path, delimiter: str, quotes: bool) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows by the first one's headings; the number is that of the row's first line."""
    csv.field_size_limit(MAX_LINE)  # else 128 KiB; an open quote still cannot eat a whole file
    quoting = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    try:
        lines = (line for _, line in _lines(path))
        reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # which of them depends on the Python
        raise UserError(f"{path}: the delimiter {delimiter!r} cannot be; give one character") from None
    heading: list[str] = []
    number = 1
    try:
        for row in reader:
            if not heading:
                heading = row
                if len(set(row)) < len(row):
                    raise UserError(f"{path}:{number}: two headings are the same; rename one")
            elif row and len(row) != len(heading):
                hint = "quote a field that holds the delimiter" if quotes else "mend the row"
                raise UserError(f"{path}:{number}: {len(row)} fields under {len(heading)} headings; {hint}")
            elif row:
                yield number, dict(zip(heading, row, strict=True))
            number = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{number}: not CSV ({error}); mend the quotes") from None


def _conll_rows(path: Path, columns: Columns, delimiter: str | None) -> Iterator[tuple[int, dict[str, list[str]]]]:
    """Sentences as {"tokens", "tags"}; the number is that of the sentence's first line."""
    try:
        indices = [int(column) for column in columns.values()]
    except ValueError:
        raise UserError(f"{path}: CoNLL columns have no names; map the fields to whole numbers") from None
    row: dict[str, list[str]] = {field: [] for field in columns}
    start = 0
    for number, line in _lines(path):
        line = line.rstrip()
        if line.startswith("-DOCSTART-"):
            continue
        if not line:
            if start:
                yield start, row
            row, start = {field: [] for field in columns}, 0
            continue
        separator = delimiter or ("\t" if "\t" in line else None)
        cells = line.split(separator) if separator else re.split(" +", line)
        try:
            values = [cells[index] for index in indices]
        except IndexError:
            values = []
        if not values or len(cells) < 2:
            raise UserError(
                f"{path}:{number}: {len(cells)} columns, too few for columns "
                f"{' and '.join(map(str, indices))}; write a token and its tag on each line"
            )
        start = start or number
        for field, value in zip(columns, values, strict=True):
            row[field].append(value)
        if len(row["tokens"]) > MAX_TOKENS:
            raise UserError(
                f"{path}:{start}: a sentence of over {MAX_TOKENS:,} tokens; put a blank line after each sentence"
            )
    if start:
        yield start, row
