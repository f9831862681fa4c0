"""Writing result files: whole or not at all."""

import json
import os
import pathlib
from typing import Any


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes `text` to a temporary sibling first, so that `path` never holds half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: pathlib.Path, content: Any) -> None:
    """`content` as indented JSON; a NaN is an error, since other readers of JSON refuse it."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
