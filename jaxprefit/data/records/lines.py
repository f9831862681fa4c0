"""The lines of a user's file, plain or as .gz or .xz, as UTF-8 text with their numbers."""

import codecs
import gzip
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from jaxprefit.errors import UserError

MAX_LINE = 16 * 2**20  # bytes; a longer line is a file of another kind, not a record
COMPRESSED = (".gz", ".xz")
MARK = "\ufeff"  # Windows programs begin a file with it, so that files joined by `cat` have it at other lines, too

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text with its line end) of each line, without a byte order mark before it."""
    return ((number, line.removeprefix(MARK)) for number, line in marked_lines(path))


def marked_lines(path: Path) -> Iterator[tuple[int, str]]:
    """As ``lines``, with the byte order marks, which are text where a quoted field runs over several lines."""
    number = 0
    try:
        with _open(path) as stream:
            while line := stream.readline(MAX_LINE + 1):
                number += 1
                if len(line) > MAX_LINE:
                    raise UserError(
                        f"{path}:{number}: the line is longer than {MAX_LINE >> 20} MiB; write one record a line"
                    )
                if number == 1 and (line.startswith(_UTF16) or b"\0" in line):
                    raise UserError(f"{path}:1: is UTF-16 or no text; save the file as UTF-8 (in Excel: 'CSV UTF-8')")
                yield number, line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}:{number}: byte {error.start} of the line is not UTF-8; save the file as UTF-8"
        ) from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(
            f"{path}:{number + 1}: cannot be read ({error}); check that the file is whole and is what its suffix says"
        ) from None


def without_end(path: Path, number: int, line: str) -> str:
    """The line without its ``\\n`` or ``\\r\\n``. Raises UserError for a ``\\r`` within it, which is the line end of
    some programs: the line would be several."""
    text = line.rstrip("\r\n")
    if "\r" in text:
        raise UserError(f"{path}:{number}: a carriage return (\\r) within the line; save the file with \\n as line end")
    return text


def _open(path: Path) -> IO[bytes] | gzip.GzipFile | lzma.LZMAFile:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")
    if path.suffix.lower() == ".xz":
        return lzma.open(path, "rb")
    return path.open("rb")
