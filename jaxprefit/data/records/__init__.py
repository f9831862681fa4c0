"""The four kinds of record that the package learns from, and what makes one valid.

A record is a plain ``dict``:

* ``ner``: ``{"tokens": [str, ...], "tags": [str, ...]}``, the tags strictly IOB2;
* ``pairs``: ``{"a": str, "b": str}``, two texts that belong together; and with the optional field, where a column is
  mapped to it, ``"negative": str``, a text that looks like b and is not (null or blank: this row has none);
* ``labelled``: ``{"text": str, "label": str}``;
* ``text``: ``{"text": str}``, for masked language modelling.

Every ``ValueError`` from here says in one line what is wrong and what to do; who knows the file
and the line puts them in front.
"""

import difflib
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from jaxprefit.data.records.tags import SCHEMES, canonical, canonical_tag, folded, to_iob2
from jaxprefit.errors import UserError

Record = dict[str, Any]
Columns = Mapping[str, str | int]  # field of a record -> name or index of its column

# What is no label but a value of another kind, written as text by a program that knew none better.
_LIST = re.compile(r"""\[\]|[\[{].*['"].*[\]}]|\[[\d., -]+\]""", re.DOTALL)
_MISSING = ("nan", "NaN")  # pandas

COLUMNS_HINT = "name the columns in the source, as in ?a=question&b=answer"


class BlankText(ValueError):
    """A record without any text: the one mistake that a source may ask to have dropped (``blank=skip``)."""


def _check_text(value: object, field: str, blank: type[ValueError] = BlankText) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{field!r} is {_type_of(value)}, not text; give a string")
    if not value.strip():
        advice = ", or set blank=skip" if blank is BlankText else ""
        raise blank(f"{field!r} is blank; fill it in or delete the row{advice}")
    _check_unicode(value, field)


def _check_unicode(text: str, field: str) -> None:
    try:  # JSON can spell half of a surrogate pair, which no UTF-8 file can hold
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{field!r} has a lone surrogate at character {error.start}; write it as UTF-8") from None


def _type_of(value: object) -> str:
    return "missing" if value is None else f"of type {type(value).__name__}"


def _validate_ner(record: Record) -> None:
    for field in ("tokens", "tags"):
        value = record.get(field)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            what = "a list with other things than text" if isinstance(value, list) else None
            raise ValueError(f"{field!r} is {what or _type_of(value)}; give a list of strings")
    tokens, tags = record["tokens"], record["tags"]
    if len(tokens) != len(tags):
        raise ValueError(f"{len(tokens)} tokens but {len(tags)} tags; give one tag a token")
    if not tokens:
        raise BlankText("the sentence has no tokens; delete the row, or set blank=skip")
    for i, token in enumerate(tokens):
        if not token.strip():
            raise ValueError(f"token {i} is blank; delete it and its tag")
    _check_unicode(" ".join(tokens), "tokens")
    _check_unicode(" ".join(tags), "tags")
    to_iob2(tags, "iob2")


def _validate_pairs(record: Record) -> None:
    _check_text(record.get("a"), "a")
    _check_text(record.get("b"), "b")
    if record.get("negative", "") != "":
        _check_text(record["negative"], "negative")


def _validate_labelled(record: Record) -> None:
    _check_text(record.get("text"), "text")
    _check_text(record.get("label"), "label", ValueError)
    label = record["label"]
    if label in _MISSING:
        raise ValueError(f"'label' is {label!r}, as pandas writes a missing value; fill it in or delete the row")
    if _LIST.fullmatch(label):
        raise ValueError(f"'label' is a list or an object, {reprlib.repr(label)}; give one label a text")
    if len(label) > 1 and label[0] == label[-1] == '"':
        raise ValueError(f"'label' stands in quotes, {reprlib.repr(label)}; delete them, or set quotes=csv for a table")


def _validate_text(record: Record) -> None:
    _check_text(record.get("text"), "text")


def _lists_of_text(fields: Sequence[str]) -> Any:
    import tensorflow_datasets as tfds  # slow to import, and only the builder needs it

    return tfds.features.FeaturesDict({name: tfds.features.Sequence(tfds.features.Text()) for name in fields})


def _texts(fields: Sequence[str]) -> Any:
    import tensorflow_datasets as tfds  # as above

    return tfds.features.FeaturesDict({name: tfds.features.Text() for name in fields})


@dataclass(frozen=True)
class Kind:
    """One kind of record: its fields, its check, and what makes its ``tfds.features.FeaturesDict``.

    ``validate(record)`` returns nothing or raises ``ValueError``. A record has an ``optional`` field only where the
    user maps a column to it; ``with_columns`` then counts it among the fields.
    """

    name: str
    fields: tuple[str, ...]
    validate: Callable[[Record], None]
    make_features: Callable[[Sequence[str]], Any]
    optional: tuple[str, ...] = ()

    def features(self) -> Any:
        """The ``tfds.features.FeaturesDict`` of the fields."""
        return self.make_features(self.fields)

    def with_columns(self, columns: Columns) -> "Kind":
        """The same with those optional fields that ``columns`` maps."""
        mapped = tuple(field for field in self.optional if field in columns)
        return replace(self, fields=self.fields + mapped, optional=())


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("ner", ("tokens", "tags"), _validate_ner, _lists_of_text),
        Kind("pairs", ("a", "b"), _validate_pairs, _texts, optional=("negative",)),
        Kind("labelled", ("text", "label"), _validate_labelled, _texts),
        Kind("text", ("text",), _validate_text, _texts),
    )
}


def check_settings(where: object, kind: str, columns: Columns, scheme: str, limit: int) -> Kind:
    """The ``Kind`` with the optional fields mapped; ``UserError`` for a kind, field, scheme or limit that cannot be."""
    if kind not in KINDS:
        raise UserError(f"{where}: unknown kind {kind!r}; use one of {', '.join(KINDS)}")
    if scheme not in SCHEMES:
        raise UserError(f"{where}: unknown scheme {scheme!r}; use one of {', '.join(SCHEMES)}")
    if limit < 0:
        raise UserError(f"{where}: the limit is {limit}; give a positive number, or 0 for all")
    for field in columns:
        if field not in (known := KINDS[kind].fields + KINDS[kind].optional):
            raise UserError(f"{where}: {kind} has no field {field!r}; map columns to {' and '.join(known)}")
    return KINDS[kind].with_columns(columns)


def source_columns(kind: Kind, columns: Columns) -> Columns:
    """The columns to fetch. A ``text`` may name several, as "a,b": all of them, which ``make_record`` joins."""
    if kind.name == "text" and isinstance(named := columns["text"], str):
        return {column: column for column in named.split(",")}
    return columns


def pick(row: Mapping[str, Any], columns: Columns) -> dict[str, Any]:
    """Field -> value of its column, whose name is compared as ``canonical`` where it is not there to the letter.

    ``ValueError`` names what is there and what is nearest, or says that the row repeats the names of its columns.
    """
    try:
        values = {field: row[column] for field, column in columns.items()}  # type: ignore[index]
    except KeyError:
        by_name = {canonical(str(name)): name for name in row}
        try:
            values = {field: row[by_name[canonical(str(column))]] for field, column in columns.items()}
        except KeyError as error:
            raise ValueError(_no_column(str(error.args[0]), row)) from None
    if len(values) > 1 and all(isinstance(v, str) and folded(v) == folded(str(columns[f])) for f, v in values.items()):
        raise ValueError("the row repeats the names of its columns, as a heading does; delete it")
    return values


def _no_column(missing: str, row: Iterable[str]) -> str:
    there = [str(name)[:100] for name in islice(row, 1000)]  # difflib is slow on very many
    near = difflib.get_close_matches(missing, there, n=1, cutoff=0.5)
    hint = f"did you mean {reprlib.repr(near[0])}? " if near else ""
    shown = ", ".join(map(reprlib.repr, there[:10])) + (", ..." if len(there) > 10 else "")
    advice = COLUMNS_HINT
    if missing == "tokens":  # as Label Studio and doccano write entities
        advice += "; NER takes a list of words and one of tags, so spans in a text are to be exported as CoNLL"
    return f"no column {reprlib.repr(missing)} among {shown or 'none'}; {hint}{advice}"


def make_record(kind: Kind, values: Mapping[str, Any], scheme: str = "iob2") -> Record:
    """A valid record from what a file gave for its fields, or ``ValueError``.

    A whole number as a label becomes text, tags of another ``scheme`` become IOB2, labels and types ``canonical``. The
    columns of a ``text`` are joined by spaces, and so are the strings of a column that holds a list.
    """
    record: Record = {"text": _joined(values)} if kind.name == "text" else dict(values)
    negative = record.get("negative", "text")
    if negative is None or (isinstance(negative, str) and not negative.strip()):  # this row has none
        record["negative"] = ""
    label = record.get("label")
    if isinstance(label, int) and not isinstance(label, bool):
        record["label"] = str(label)
    elif isinstance(label, str):
        record["label"] = canonical(label)
    tags = record.get("tags")
    if isinstance(tags, list) and all(isinstance(tag, str) for tag in tags):
        record["tags"] = [canonical_tag(tag) for tag in tags] if scheme == "iob2" else to_iob2(tags, scheme)
    kind.validate(record)
    return record


def _joined(columns: Mapping[str, Any]) -> str:
    """The columns' text in one line of text; a column that is no text raises ``ValueError`` naming it."""
    parts: list[str] = []
    for name, value in columns.items():
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str) for item in items):
            raise ValueError(f"{name!r} is {_type_of(value)}, not text; give a string or a list of strings")
        parts += [item for item in items if item.strip()]
    return " ".join(parts)
