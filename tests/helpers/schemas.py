"""Result files against their JSON Schemas."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import referencing
import referencing.jsonschema

from helpers.paths import ROOT, SCHEMAS


def assert_valid(file: Path, schema: str) -> dict[str, Any]:
    """The content of a result file, checked against SCHEMA.schema.json: the generated one, or that of tests/schemas."""
    files = [*SCHEMAS.glob("*.json"), *(ROOT / "experiments" / "results" / "schemas").glob("*.json")]
    contents = {p.name: json.loads(p.read_text()) for p in files}
    parse = referencing.jsonschema.DRAFT202012.create_resource
    registry = referencing.Registry().with_resources((name, parse(content)) for name, content in contents.items())
    checked = contents[f"{schema}.schema.json"]
    jsonschema.Draft202012Validator.check_schema(checked)
    content = json.loads(file.read_text())
    jsonschema.Draft202012Validator(checked, registry=registry).validate(content)
    return content
