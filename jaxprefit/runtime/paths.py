"""Paths as users write them."""

import os
import pathlib
import re

from jaxprefit.errors import UserError

# `pathlib` writes gs://bucket as gs:/bucket.
_ADDRESS = {True: re.compile(r"[A-Za-z][\w+.-]+://"), False: re.compile(r"[A-Za-z][\w+.-]+:/")}


def user_path(path: str | os.PathLike) -> pathlib.Path:
    """A path that a user gave, with a leading ~ expanded. Every such path goes through here.

    Raises UserError for an empty path, for an address such as gs://bucket/run, which would become a folder `gs:` here,
    and for what no file can be called.
    """
    try:
        text = os.fsdecode(path)
    except TypeError:
        raise UserError(f"{path!r} is no path; give the name of a file or folder as text") from None
    if not text.strip():
        raise UserError("a path is empty; give the name of a file or folder")
    if _ADDRESS[isinstance(path, str)].match(text):
        raise UserError(
            f"{text} is an address; only files and folders of this machine can be read and written: copy or mount it, "
            "and give its path here"
        )
    if "\0" in text:
        raise UserError(f"{text!r} is no path; it holds a zero byte")
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{text}: there is no such user, whose home would stand for ~; give the whole path") from None
