"""Result files against their JSON Schemas."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import referencing.jsonschema

from helpers.paths import RESULTS, SCHEMAS


def assert_valid(file: Path, schema: str) -> dict[str, Any]:
    """The content of a result file, checked against SCHEMA.schema.json: the generated one or that of tests/schemas."""
    files = [*SCHEMAS.glob("*.json"), *(RESULTS / "schemas").glob("*.json")]
    contents = {p.name: json.loads(p.read_text()) for p in files}
    registry = referencing.Registry().with_resources(
        (name, referencing.jsonschema.DRAFT202012.create_resource(content)) for name, content in contents.items()
    )
    checked = contents[f"{schema}.schema.json"]
    jsonschema.Draft202012Validator.check_schema(checked)
    content = json.loads(file.read_text())
    jsonschema.Draft202012Validator(checked, registry=registry).validate(content)
    return content
