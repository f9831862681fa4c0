"""JSON Schemas and the list of fields of all result files, made from their records.

python -m experiments.common.schemas

Writes experiments/results/schemas/NAME.schema.json and experiments/results/FILES.md, in the checkout it runs from.
"""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

from experiments.common.result_files import RESULT_FILES
from jaxprefit.runtime.files import write_text
from jaxprefit.runtime.results import json_schema

RESULTS = pathlib.Path(__file__).parents[1] / "results"


def files() -> dict[pathlib.Path, str]:
    """What the program writes: path -> content."""
    schemas = {name: json_schema(record) for name, record in sorted(RESULT_FILES.items())}
    texts = {
        RESULTS / "schemas" / f"{name}.schema.json": json.dumps(schema, indent=1) + "\n"
        for name, schema in schemas.items()
    }
    return {**texts, RESULTS / "FILES.md": document(schemas)}


def document(schemas: dict[str, dict[str, Any]]) -> str:
    """FILES.md: for each file what it is, then a line a field: its path, type and meaning."""
    lines = [
        "# What the result files hold",
        "",
        "Written by `python -m experiments.common.schemas` from the records in the code. Each file names its `schema`",
        "and `version`. `[]` stands for each entry of a list, `*` for each key of a map. JSON has no NaN: an undefined",
        "number is `null`.",
        "",
    ]
    for name, schema in schemas.items():
        constants = schema["properties"]
        lines += [f"## {name}", "", f"`{constants['schema']['const']}`, version {constants['version']['const']}."]
        lines += [
            "",
            " ".join(schema.get("description", "").split()),
            "",
            "| field | type | meaning |",
            "| --- | --- | --- |",
        ]
        for path, kind, meaning in fields(schema, schema.get("$defs", {})):
            lines.append(f"| `{path}` | {kind} | {meaning.replace('|', '/')} |")
        lines.append("")
    return "\n".join(lines)


def fields(
    schema: dict[str, Any], definitions: dict[str, Any], prefix: str = "", seen: tuple[str, ...] = ()
) -> Iterator[tuple[str, str, str]]:
    """(path, type, meaning) of every field below a schema, depth first; a record inside itself is named once."""
    for key, part in schema.get("properties", {}).items():
        if not prefix and key in ("schema", "version"):
            continue
        yield from _field(f"{prefix}{key}", part, definitions, part.get("description", ""), seen)


def _field(
    path: str, part: dict[str, Any], definitions: dict[str, Any], meaning: str, seen: tuple[str, ...]
) -> Iterator[tuple[str, str, str]]:
    options = [option for option in part.get("anyOf", [part]) if option.get("type") != "null"]
    nullable = ", null" if len(options) < len(part.get("anyOf", [part])) else ""
    yield path, " or ".join(map(_kind, options)) + nullable, " ".join(meaning.split())
    for option in options:
        yield from _below(path, option, definitions, seen)


def _below(
    path: str, part: dict[str, Any], definitions: dict[str, Any], seen: tuple[str, ...]
) -> Iterator[tuple[str, str, str]]:
    if "$ref" in part:
        name = part["$ref"].rpartition("/")[2]
        if name not in seen:
            yield from fields(definitions[name], definitions, f"{path}.", (*seen, name))
    elif isinstance(part.get("items"), dict):
        yield from _below(f"{path}[]", part["items"], definitions, seen)
    elif isinstance(part.get("additionalProperties"), dict):
        yield from _below(f"{path}.*", part["additionalProperties"], definitions, seen)


def _kind(part: dict[str, Any]) -> str:
    if "$ref" in part:
        return "object"
    if "const" in part or "enum" in part:
        return " or ".join(f"`{value}`" for value in part.get("enum", [part.get("const")]))
    if part.get("type") == "array":
        inner = part.get("items")
        return f"list of {_kind(inner)}" if isinstance(inner, dict) else "list"
    if isinstance(part.get("additionalProperties"), dict):
        return f"map to {_kind(part['additionalProperties'])}"
    return str(part.get("type", "any"))


def main() -> None:
    """Writes the files; those of records that are no more stay, and the test of this module names them."""
    for path, text in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    print(f"wrote {len(files())} files under {RESULTS}")


if __name__ == "__main__":
    main()
