"""Datasets by name: what a config may write as `@NAME`, or as `@GROUP` for several at once.

The entries are data, in configs/datasets.py; this is what reads them.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence

from jaxprefit.data import addresses
from jaxprefit.data.records import KINDS
from jaxprefit.errors import UserError


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One entry.

    Attributes:
      name: what follows the @.
      kind: of its records, a key of `records.KINDS`.
      source: its source string, with the columns where they are not named as the record's fields.
      licence: of the data, as its publisher states it; "see source" where that is not sure.
      groups: names that stand for several entries.
      concepts: entity type -> readable name, where no rule can know it.
    """

    name: str
    kind: str
    source: str
    licence: str
    groups: tuple[str, ...] = ()
    concepts: Mapping[str, str] = dataclasses.field(default_factory=dict)


def resolve(texts: Iterable[str], kind: str, datasets: Sequence[Dataset]) -> tuple[str, ...]:
    """Source strings of `kind`: those of the entry or group for each '@NAME?options', other texts as they stand.

    Options of the text come before the entry's own. Of a group only the entries of `kind` are taken. For kind "text"
    every entry will do: all its texts are joined.
    """
    out: list[str] = []
    for text in texts:
        if not text.startswith("@"):
            out.append(text)
            continue
        addresses.check_one(text, exists=lambda address: False)
        name, options = addresses.split(text[1:])
        found = [d for d in datasets if name == d.name or name in d.groups]
        if not found:
            known = dict.fromkeys(n for d in datasets for n in (*d.groups, d.name))
            near = difflib.get_close_matches(name, known, 1, 0.5)
            hint = f"did you mean '@{near[0]}'?" if near else "see configs/datasets.py for all names"
            raise UserError(f"source '{text}': no dataset or group '{name}'; {hint}")
        fitting = [d for d in found if kind in (d.kind, "text")]
        if not fitting:
            raise UserError(f"source '{text}' has '{found[0].kind}' records where '{kind}' records are needed")
        out += [_with_options(d, kind, options) for d in fitting]
    return tuple(out)


def concepts(address: str, types: Iterable[str], datasets: Sequence[Dataset]) -> dict[str, str]:
    """Entity type -> readable name, for those of `types` that the registry names in the source at `address` (a
    `Prepared.name`)."""
    known = next((d.concepts for d in datasets if d.source.partition("?")[0] == address), {})
    return {t: known[t] for t in types if t in known}


def _with_options(dataset: Dataset, kind: str, options: dict[str, str]) -> str:
    address, own = addresses.split(dataset.source)
    if kind != dataset.kind:
        own = _as_text(dataset.kind, own)
    return addresses.join(address, own | options)


def _as_text(kind: str, options: dict[str, str]) -> dict[str, str]:
    """The options that read the texts of another kind's records as one: `text=a,b` for pairs."""
    columns = [options.get(field, field) for field in KINDS[kind].fields if field not in ("tags", "label")]
    kept = {k: v for k, v in options.items() if k not in (*KINDS[kind].fields, "scheme", "format")}
    return kept | {"text": ",".join(columns)}
