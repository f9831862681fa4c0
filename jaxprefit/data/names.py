"""Readable names for a source's entity types, from a JSON file {"LABEL": "readable name"}.

A rule (`families.concepts.concept_name`) reads most labels; GGP, CHEBI or SO only a person can. A label that the file
leaves out follows the rule.
"""

import difflib
import json
import os
from collections.abc import Collection

from jaxprefit.data.records.tags import canonical
from jaxprefit.errors import UserError
from jaxprefit.runtime.paths import user_path


def read_names(file: str | os.PathLike, source: str, types: Collection[str]) -> dict[str, str]:
    """Label -> readable name, lower case. Raises UserError for anything else in the file, and for a label that is not
    among the source's `types` (where they are known, that is not empty)."""
    try:
        names = json.loads(user_path(file).read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"{file}: {e.strerror or e}; it should hold the names of source '{source}'") from None
    except (ValueError, RecursionError) as e:
        raise UserError(f"{file}: not JSON ({' '.join(str(e).split())[:200]})") from None
    if not isinstance(names, dict):
        raise UserError(f'{file}: must hold one JSON object, as {{"GGP": "gene or gene product"}}')
    names = {canonical(label): name for label, name in names.items()}  # as the types are
    for label, name in names.items():
        if types and label not in types:
            near = difflib.get_close_matches(label, types, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(map(repr, sorted(types)[:20]))}"
            raise UserError(f"{file}: {label[:100]!r} is not an entity type of source '{source}'; {hint}")
        if not isinstance(name, str) or not name.strip():
            given = json.dumps(name)[:100]
            raise UserError(f"{file}: the name of {label[:100]!r} is {given}; it must be a text that is not blank")
    return {label: " ".join(name.lower().split()) for label, name in names.items()}
