"""Result files: written whole or not at all, and by one process: of several in a run (`distributed`), by the first."""

import contextlib
import json
import logging
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import Any

from jaxprefit.errors import UserError, one_line
from jaxprefit.runtime.distributed import first

_LARGEST_GIVEN = 2**24  # bytes of a JSON file of settings

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A sibling of `path` to be written, which takes its place when the context ends, and is removed on an error.

    So `path` never holds half a file, and others may read it as the umask says.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes `text` as a `whole_file`, by the first process alone."""
    if first():
        with whole_file(path) as file:
            file.write_text(text, encoding="utf-8")


def write_json(path: pathlib.Path, content: Any) -> None:
    """`content` as indented JSON; a NaN is an error, since other readers of JSON refuse it."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a file that `write_json` wrote. Raises UserError where it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError) as error:
        reason = f"{path} is damaged ({type(error).__name__}); delete it, and give the command again that writes it"
        raise UserError(reason) from None
    return content


def read_given_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file of settings that another program wrote. Raises UserError where there is none."""
    content = read_given_json_value(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object")
    return content


def read_given_json_value(path: pathlib.Path) -> Any:
    """Any value in such a file. Raises UserError where there is no JSON."""
    try:
        if path.stat().st_size > _LARGEST_GIVEN:
            raise UserError(f"{path}: larger than {_LARGEST_GIVEN >> 20} MiB; fetch the file again")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"{path}: {e.strerror or e}") from e
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: not JSON ({one_line(e)})") from e


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Makes `folder` and keeps other runs that ask for it by this function out while the context is open.

    The system lifts the lock when the process ends, however that happens. Raises UserError where another process has
    the lock, or where nothing can be written to the folder.
    """
    import portalocker  # here, since whoever reads checkpoints locks nothing

    if not first():
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+")
    except OSError as e:
        raise UserError(f"{folder} cannot be written ({e.strerror}); give another --workdir") from e
    with file:
        try:
            portalocker.lock(file, portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING)
        except portalocker.AlreadyLocked:
            file.seek(0)
            holder = file.read() or "another run"
            raise UserError(f"{folder} is in use by {holder}; wait for its end, or give another --workdir") from None
        except portalocker.LockException as e:  # some network file systems have no locks
            _log.warning(f"{folder} cannot be locked ({one_line(e)}); see that no other run writes there")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def lines_up_to(path: pathlib.Path, step: int) -> list[str]:
    """The lines of a JSON lines file that belong to steps up to `step`."""
    if not path.exists():
        return []
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):  # the line that was being written when the process was killed
            break
    return kept
