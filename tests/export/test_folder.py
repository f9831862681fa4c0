"""An export's folder: whole or not there, and nothing of the user's replaced."""

import json
from pathlib import Path

import pytest
from helpers.run import files

from jaxprefit.errors import UserError
from jaxprefit.export.folder import REPORT, check_replaceable, sizes, whole


def export(output: Path, content: str) -> None:
    with whole(output) as folder:
        (folder / "part").mkdir()
        (folder / "part" / "a.txt").write_text(content)
        (folder / REPORT).write_text(json.dumps({"files": sizes(folder)}))


def test_an_earlier_export_is_replaced(tmp_path: Path) -> None:
    export(tmp_path / "deep" / "out", "one")
    export(tmp_path / "deep" / "out", "longer")
    assert (tmp_path / "deep" / "out" / "part" / "a.txt").read_text() == "longer"
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["out"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export(tmp_path / "out", "one")
    assert files(tmp_path / "out")["part/a.txt"] == b"one"


@pytest.mark.parametrize("before", [False, True])
def test_a_failed_export_leaves_what_was_there(before: bool, tmp_path: Path) -> None:
    if before:
        export(tmp_path / "out", "one")
    content = files(tmp_path)
    with pytest.raises(RuntimeError), whole(tmp_path / "out") as folder:
        (folder / "half").write_text("half")
        raise RuntimeError
    assert files(tmp_path) == content
    assert [p.name for p in tmp_path.iterdir()] == ["out"] * before


def foreign(output: Path) -> None:
    output.mkdir()
    (output / "mine.txt").write_text("mine")


def damaged(output: Path) -> None:
    foreign(output)
    (output / REPORT).write_text("[]")


def added(output: Path) -> None:
    export(output, "one")
    (output / "notes.txt").write_text("mine")


def edited(output: Path) -> None:
    export(output, "one")
    (output / "part" / "a.txt").write_text("mine!")


def linked(output: Path) -> None:
    export(output.with_name("real"), "one")
    output.symlink_to(output.with_name("real"))


def file(output: Path) -> None:
    output.write_text("mine")


@pytest.mark.parametrize("make", [foreign, damaged, added, edited, linked, file])
def test_what_no_export_wrote_is_refused_and_untouched(make, tmp_path: Path) -> None:
    output = tmp_path / "out"
    make(output)
    content = files(tmp_path)
    for refuse in (check_replaceable, lambda path: export(path, "two")):
        with pytest.raises(UserError, match="out"):
            refuse(output)
    assert files(tmp_path) == content


def test_what_appears_while_writing_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(UserError), whole(tmp_path / "out"):
        foreign(tmp_path / "out")
    assert files(tmp_path) == {"out/mine.txt": b"mine"}


def test_files_have_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    with whole(tmp_path / "out") as folder:
        (folder / "private").write_text("")
        (folder / "private").chmod(0o600)
        (folder / REPORT).write_text("{}")
    (tmp_path / "other").write_text("")
    assert (tmp_path / "out" / "private").stat().st_mode == (tmp_path / "other").stat().st_mode
