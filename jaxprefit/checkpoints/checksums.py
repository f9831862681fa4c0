"""Checksums of a folder's files. The list has the form of sha256sum, which reads it too: `sha256sum -c SHA256SUMS`."""

import hashlib
import pathlib
from collections.abc import Collection

from jaxprefit.runtime.distributed import first
from jaxprefit.runtime.files import write_text

NAME = "SHA256SUMS"


def write(folder: pathlib.Path) -> None:
    """Lists every file under `folder` with its checksum, in its file SHA256SUMS. Of several processes the first does:
    the others need not read all files too."""
    if not first():
        return
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != NAME)
    write_text(folder / NAME, "".join(f"{_digest(p)}  {p.relative_to(folder).as_posix()}\n" for p in files))


def difference(folder: pathlib.Path, skip: Collection[str] = ()) -> str:
    """The first listed file that is missing or not as it was, relative to `folder`; '' where there is none.

    Files below the parts `skip` of the folder are not read. A folder without a list passes: it is older than the
    lists, or the process ended between writing the folder and writing the list.
    """
    if not (folder / NAME).is_file():
        return ""
    for line in (folder / NAME).read_text(encoding="utf-8", errors="replace").splitlines():
        digest, _, name = line.partition("  ")
        if name.split("/")[0] in skip:
            continue
        if pathlib.PurePosixPath(name).is_absolute() or ".." in name.split("/"):  # no file of the folder
            return name
        try:
            if _digest(folder / name) != digest:
                return name
        except (OSError, ValueError):  # ValueError: a damaged list may hold a name that no file can have
            return name or NAME
    return ""


def _digest(file: pathlib.Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
