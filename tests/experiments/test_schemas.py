"""Schemas and FILES.md are what `experiments.common.schemas` writes; a record comes back as it was written."""

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

from experiments.common import schemas
from experiments.common.result_files import RESULT_FILES
from jaxprefit.errors import UserError
from jaxprefit.runtime import results
from jaxprefit.runtime.results import record


@record
class Part:
    """One part."""

    score: float
    """Between 0 and 1."""
    pair: tuple[float, float] | None = None
    """Lower and upper bound."""


@record
class Whole:
    """A file for these tests."""

    SCHEMA: ClassVar[str] = "jaxprefit.whole"
    VERSION: ClassVar[int] = 2
    parts: dict[str, Part]
    """By name."""
    names: tuple[str, ...] = ()
    """In order."""


WHOLE = Whole(parts={"a": Part(score=0.1, pair=(0.0, 1.0)), "b": Part(score=1e-300)}, names=("x", "y"))


def test_generated_files_are_up_to_date() -> None:
    written = schemas.files()
    there = {p for p in schemas.RESULTS.glob("schemas/*.json")}
    assert there == {p for p in written if p.suffix == ".json"}
    for path, text in written.items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run python -m experiments.common.schemas"


@pytest.mark.parametrize("file", sorted(schemas.RESULTS.glob("conflict/*.json")), ids=lambda p: p.stem)
def test_committed_files_are_read_and_written_the_same(file: Path) -> None:
    content = json.loads(file.read_text())
    (kind,) = (kind for kind in RESULT_FILES.values() if content["schema"] == kind.SCHEMA)  # type: ignore[attr-defined]
    written = results.to_json(results.read(file, kind))
    assert results.from_json(written, kind, "again") == results.read(file, kind)
    assert_holds(written, content)


def assert_holds(written: Any, content: Any) -> None:
    """All of `content` is in `written`, which may have more keys: those newer than the file."""
    if isinstance(content, dict):
        for key, part in content.items():
            assert_holds(written[key], part)
    elif isinstance(content, list):
        assert len(written) == len(content)
        for one, other in zip(written, content):
            assert_holds(one, other)
    else:
        assert written == content


def test_a_record_comes_back_as_it_was_written(tmp_path) -> None:  # type: ignore[no-untyped-def]
    results.write(tmp_path / "whole.json", WHOLE)
    assert results.read(tmp_path / "whole.json", Whole) == WHOLE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "other"}, "f is no jaxprefit.whole file"),
        ({"version": 1}, "f has version 1 of jaxprefit.whole; this program reads version 2"),
        (
            {"parts": {"a": {}}},
            r"f is damaged: parts\.a\.score: Missing required|f is damaged: parts\.a\.score: Field required",
        ),
        ({"parts": {"a": {"score": "0.1"}}}, r"f is damaged: parts\.a\.score: Input should be a valid number"),
        ({"more": 1}, "f is damaged: more: Unexpected keyword argument"),
    ],
)
def test_anything_else_is_refused_in_one_line(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        results.from_json({**results.to_json(WHOLE), **change}, Whole, "f")
    assert "\n" not in str(error.value)


def test_records_are_frozen_and_told_by_their_docstrings() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        WHOLE.names = ()  # type: ignore[misc]
    schema = results.json_schema(Whole)
    assert schema["description"] == "A file for these tests."
    assert schema["$defs"]["Part"]["properties"]["score"]["description"] == "Between 0 and 1."
    lines = list(schemas.fields(schema, schema["$defs"]))
    assert ("parts.*.score", "number", "Between 0 and 1.") in lines
    assert ("names", "list of string", "In order.") in lines
