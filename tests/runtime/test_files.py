"""Files are written whole or not at all, and may be read by whom the umask lets."""

import os
from pathlib import Path

import pytest

from jaxprefit.runtime.files import whole_file


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_file_has_the_mode_of_any_other(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        with whole_file(tmp_path / "a") as file:
            file.write_text("new")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~mask
    assert (tmp_path / "a").read_text() == "new" and len([*tmp_path.iterdir()]) == 1


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / "a") as file:
        file.write_text("half")
        raise ZeroDivisionError
    assert (tmp_path / "a").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a"]
