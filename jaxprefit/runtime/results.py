"""Result files: a tree of dataclasses in the program, JSON on disk, and a JSON Schema made from the dataclasses.

A result file is one `record` that names its schema and version:

    @record
    class Scores:
        '''Downstream scores of one encoder.'''

        SCHEMA: ClassVar[str] = "jaxprefit.scores"
        VERSION: ClassVar[int] = 2
        tasks: tuple[TaskScore, ...]
        '''One entry a task.'''

The docstrings of classes and fields become the descriptions of the schema and of experiments/results/FILES.md.
"""

import dataclasses
import functools
import json
import math
import pathlib
import typing
from typing import Any, TypeVar

from jaxprefit.errors import UserError
from jaxprefit.runtime.files import write_json

T = TypeVar("T")


@typing.dataclass_transform(frozen_default=True, kw_only_default=True)
def record(cls: type[T]) -> type[T]:
    """A frozen dataclass, built by keyword, whose fields can be read from JSON: unknown keys are errors."""
    cls.__pydantic_config__ = {"use_attribute_docstrings": True, "extra": "forbid"}  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def to_json(result: Any) -> dict[str, Any]:
    """The JSON object of a record: `schema` and `version` first where it is a result file, then its fields."""
    head = {"schema": result.SCHEMA, "version": result.VERSION} if hasattr(result, "SCHEMA") else {}
    return head | _adapter(type(result)).dump_python(result, mode="json")


def from_json(content: Any, kind: type[T], name: str) -> T:
    """The record that `to_json` turned into `content`. Raises UserError, which begins with `name`, where it is not one:
    another schema, another version, or the first key that is missing, unknown or of another type."""
    from pydantic import ValidationError

    if schema := getattr(kind, "SCHEMA", ""):
        given = content if isinstance(content, dict) else {}
        if given.get("schema") != schema:
            raise UserError(f"{name} is no {schema} file (its schema is {given.get('schema')!r}); name another file")
        if given.get("version") != kind.VERSION:  # type: ignore[attr-defined]
            version = f"version {given.get('version')!r} of {schema}; this program reads version {kind.VERSION}"  # type: ignore[attr-defined]
            raise UserError(f"{name} has {version}: run the command again that wrote it, in a new --workdir")
        content = {key: value for key, value in given.items() if key not in ("schema", "version")}
    try:
        return _adapter(kind).validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "its content"
        raise UserError(f"{name} is damaged: {place}: {first['msg']}; run the command again that wrote it") from None


def write(path: pathlib.Path, result: Any) -> None:
    """Writes the record as JSON, whole or not at all. A NaN or infinity is an error: JSON has none."""
    write_json(path, to_json(result))


def read(path: pathlib.Path, kind: type[T]) -> T:
    """The record in a file that `write` wrote. Raises UserError, in one line with the path, for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        reason = f"{path} is damaged ({type(error).__name__}); delete it, and give the command again that writes it"
        raise UserError(reason) from None
    return from_json(content, kind, str(path))


def json_schema(kind: type) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a result file, with `schema` and `version` as constants."""
    schema = _adapter(kind).json_schema()
    head = {"schema": {"const": kind.SCHEMA}, "version": {"const": kind.VERSION}}  # type: ignore[attr-defined]
    properties = {**head, **schema.get("properties", {})}
    required = ["schema", "version", *schema.get("required", [])]
    return {**schema, "properties": properties, "required": required}


@dataclasses.dataclass(frozen=True)
class ResultFileInside:
    """Annotates a field that holds the record of another result file, with that file's own `schema` and `version`."""

    kind: type

    def __get_pydantic_core_schema__(self, *_: Any) -> Any:
        from pydantic_core import core_schema

        def read(content: Any) -> Any:
            return from_json(content, self.kind, f"the part {self.kind.SCHEMA}")  # type: ignore[attr-defined]

        written = core_schema.plain_serializer_function_ser_schema(to_json)
        return core_schema.no_info_plain_validator_function(read, serialization=written)

    def __get_pydantic_json_schema__(self, *_: Any) -> dict[str, Any]:
        head = {"schema": {"const": self.kind.SCHEMA}, "version": {"const": self.kind.VERSION}}  # type: ignore[attr-defined]
        return {"type": "object", "properties": head, "required": [*head]}


def finite(value: float) -> float | None:
    """`value` for a result file: None where it is undefined (NaN or infinite)."""
    return float(value) if math.isfinite(value) else None


def _adapter(kind: Any) -> Any:
    return _cached_adapter(kind)


@functools.cache
def _cached_adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter  # slow to import, and most of what this package does reads no result file

    return TypeAdapter(kind)
