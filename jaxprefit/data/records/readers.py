"""Reading users' files: JSON lines, CoNLL, CSV, TSV and lines of text, plain or as .gz or .xz.

``read`` streams, so a file may be larger than memory, and turns every malformed row into a
``UserError`` of the form ``FILE:LINE: what is wrong; what to do``.
"""

import difflib
import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

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
from jaxprefit.data.records.conll import sentences
from jaxprefit.data.records.lines import COMPRESSED, MAX_LINE, lines, without_end
from jaxprefit.data.records.tables import table_rows
from jaxprefit.errors import UserError
from jaxprefit.runtime.paths import user_path

__all__ = ["COMPRESSED", "FORMATS", "MAX_LINE", "MAX_TOKENS", "file_format", "read"]

# In a CoNLL sentence; more means that blank lines are missing. Twice what the 512 positions of most encoders can hold,
# and over twice the longest sentence of the 31 NER sets that configs/datasets.py names by folder (439).
MAX_TOKENS = 1_000

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
TABLES = {"csv": ",", "tsv": "\t"}  # with their delimiters
QUOTES = {"csv": True, "none": False}  # whether fields are quoted by CSV's rules
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
    quotes: str | None = None,
    limit: int | None = None,
    dropped: list[int] | None = None,
) -> Iterator[Record]:
    """Yields the valid records of one file, in order.

    Args:
      path: the file; its suffix tells the format (see ``FORMATS``) and the compression.
      kind: "ner", "pairs", "labelled" or "text".
      format: "jsonl", "conll", "csv", "tsv" or "lines" (for "text": one a line), where the suffix does
        not tell.
      columns: where a field of the record stands under another name: field -> JSON key or CSV
        heading, or for CoNLL field -> index (default: tokens first, tags last). A "text" may come
        from several columns, as "a,b".
      scheme: how the tags of NER are written, a key of ``SCHEMES``; the records have IOB2.
      delimiter: between the fields of a table ("," or tab by default) or CoNLL columns (tab or spaces, as in the
        first line).
      quotes: of a table: "csv" where fields are quoted by CSV's rules, "none" where a quote is text. By default CSV
        is the first, and a TSV with fields that the two read differently is refused.
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
    chosen, columns = {*(columns or {})}, {**_default_columns(spec, format), **(columns or {})}
    wanted = source_columns(spec, columns)
    _check_table(path, format, delimiter, quotes)
    if format == "jsonl":
        rows = _json_rows(path)
    elif format == "conll" and kind in ("ner", "text"):
        indices = columns if kind == "ner" else {"tokens": columns["text"]}
        named = chosen if kind == "ner" or not chosen else {"tokens"}
        rows = sentences(path, indices, named, scheme, delimiter, MAX_TOKENS)
        wanted = {field: field for field in indices}
    elif format == "lines" and kind == "text":
        rows = ((n, {"text": without_end(path, n, line).strip()}) for n, line in lines(path) if line.strip())
    elif format in TABLES and kind != "ner":
        quoted = QUOTES[quotes] if quotes else format == "csv" or None
        rows = table_rows(path, delimiter or TABLES[format], quoted, [str(name) for name in wanted.values()])
    elif format in _HOLDS:
        raise UserError(f"{path}: {format} holds {_HOLDS[format]}; set the format or convert the file")
    else:
        known = ", ".join(_HOLDS)
        raise UserError(f"{path}: unknown format {format!r}; use one of {known}")
    return islice(_records(path, spec, rows, wanted, scheme, dropped), limit or None)


def _check_table(path: Path, format: str, delimiter: str | None, quotes: str | None) -> None:
    if delimiter and format not in (*TABLES, "conll"):
        raise UserError(f"{path}: {format} has no delimiter; leave it out, or set the format to csv, tsv or conll")
    if quotes and format not in TABLES:
        raise UserError(f"{path}: {format} has no quotes to set; leave them out, or set the format to csv or tsv")
    if quotes and quotes not in QUOTES:
        raise UserError(f"{path}: quotes is {quotes!r}; use {' or '.join(QUOTES)}")


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


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in lines(path):
        if not (text := line.strip()):
            continue
        advice = "write one JSON object a line"
        if text[0] == "[" or text == "{":  # as Label Studio and `json.dump` write a file
            jq = "'.[]'" if text[0] == "[" else "."
            advice += f", as this does: jq -c {jq} FILE"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            detail = getattr(error, "msg", "a value is too long or too deep")
            raise UserError(f"{path}:{number}: not JSON ({detail}); {advice}") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: a JSON {type(row).__name__}, not an object; {advice}")
        yield number, row
