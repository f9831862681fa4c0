"""The folder of an export: whole under its name or not there, and nothing of the user's is replaced."""

import contextlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from jaxprefit.errors import UserError

REPORT = "export.json"
"""Marks a folder as written by an export, and lists its files with their sizes."""


@contextlib.contextmanager
def whole(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives an empty folder to write to, which takes the name `output` when the context ends without an error.

    A folder of that name is replaced where it is empty, or holds exactly the files of an earlier export; the file
    REPORT must be among those written. Raises UserError where something else has the name.
    """
    check_replaceable(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as place:
        new, old = pathlib.Path(place) / "new", pathlib.Path(place) / "old"
        new.mkdir()
        yield new
        for file in new.rglob("*"):
            if file.is_file():  # some libraries let only the owner read what they write
                shutil.copymode(new / REPORT, file)
        check_replaceable(output)  # once more: the writing took a while
        if output.exists():
            os.replace(output, old)
        os.replace(new, output)


def check_replaceable(output: pathlib.Path) -> None:
    """Raises UserError unless `output` is missing, an empty folder, or an export as it was written."""
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise UserError(f"{output} is not a folder; give --output another name")
    if not output.exists() or not any(output.iterdir()):
        return
    try:
        listed = json.loads((output / REPORT).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{output} is not empty, and no export wrote it; give --output another name") from None
    present = sizes(output)
    for name in sorted(present.keys() | listed.keys()):
        if present.get(name) != listed.get(name):
            raise UserError(
                f"{output} holds an export that was changed since ({name}); move it away or give --output another name"
            )


def sizes(folder: pathlib.Path) -> dict[str, int]:
    """Bytes of each file under `folder` but REPORT at its top, by relative path."""
    files = sorted(p for p in folder.rglob("*") if not p.is_dir())
    named = {p.relative_to(folder).as_posix(): p.lstat().st_size for p in files}
    named.pop(REPORT, None)
    return named
