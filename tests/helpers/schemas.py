"""Result files against their JSON Schemas."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import referencing

from helpers.paths import SCHEMAS


def assert_valid(file: Path, schema: str) -> dict[str, Any]:
    """The content of a result file, checked against tests/schemas/SCHEMA.schema.json."""
    contents = {p.name: json.loads(p.read_text()) for p in SCHEMAS.glob("*.json")}
    registry = referencing.Registry().with_resources(
        (name, referencing.Resource.from_contents(content)) for name, content in contents.items()
    )
    checked = contents[f"{schema}.schema.json"]
    jsonschema.Draft202012Validator.check_schema(checked)
    content = json.loads(file.read_text())
    jsonschema.Draft202012Validator(checked, registry=registry).validate(content)
    return content
