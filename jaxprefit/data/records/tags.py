"""Tags of named entities in the schemes that files are written in, and how labels and types are compared."""

import reprlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

# For each tagging scheme, the letters it writes and what each means: (B)egin, (I)nside, (E)nd,
# (S)ingle. "O" stands outside the table, since it has no type.
_IOB = {"B": "B", "I": "I"}
_IOBES = {"B": "B", "I": "I", "E": "E", "S": "S"}
_BILOU = {"B": "B", "I": "I", "L": "E", "U": "S"}
_LETTERS = _IOBES | _BILOU
SCHEMES = {"io": {}, "iob1": _IOB, "iob2": _IOB, "iobes": _IOBES, "bioes": _IOBES, "bilou": _BILOU}


def canonical(text: str) -> str:
    """The text in Unicode's form NFC, without white space around it: how labels, types and headings are compared."""
    text = text.strip()
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def folded(text: str) -> str:
    """``canonical`` without upper case."""
    return canonical(text).casefold()


def to_iob2(tags: Sequence[str], scheme: str) -> list[str]:
    """The same entities tagged as IOB2; ``ValueError`` if ``tags`` are not in ``scheme``.

    ``scheme`` is a key of ``SCHEMES``. All are read strictly, because tags that break the rules mostly mean that the
    scheme is another one: an entity has to begin with B (or S), in IOBES and BILOU it has to end with E (or L), in IOB1
    B stands only after an entity of the same type, and in IO no tag has a letter. Types are ``canonical``.
    """
    letters = SCHEMES.get(scheme)
    if letters is None:
        raise ValueError(f"unknown scheme {scheme!r}; use one of {', '.join(SCHEMES)}")
    tags = [canonical_tag(tag) for tag in tags]
    if scheme == "io":  # the types alone, as in Few-NERD: neighbours of one type are one entity
        for i, tag in enumerate(tags):
            if tag != "O" and _split(tag, _LETTERS)[0]:
                raise ValueError(f"tag {i} {reprlib.repr(tag)} has a letter, and the scheme io none; set the scheme")
        tags, scheme, letters = [tag if tag == "O" else f"I-{tag}" for tag in tags], "iob1", _IOB
    must_close = "E" in letters.values()
    out: list[str] = []
    inside = ""  # the type of the entity that the next tag may continue
    for i, tag in enumerate(tags):
        letter, type_name = _split(tag, letters)
        if not letter:
            raise ValueError(
                f"tag {i} {reprlib.repr(tag)} is not in the scheme {scheme}; "
                f"use O or one of {', '.join(letters)} with -TYPE, or set the scheme or the column"
            )
        continues = letter in "IE" and type_name == inside
        if letter == "B" and scheme == "iob1" and type_name != inside:
            raise ValueError(
                f"tag {i} {reprlib.repr(tag)} begins an entity that iob1 begins with I; write I, or set the scheme"
            )
        if letter in "IE" and not continues and scheme != "iob1":
            raise ValueError(
                f"tag {i} {reprlib.repr(tag)} does not continue an entity of its type; "
                f"begin the entity with B, or set the scheme if the tags are not {scheme}"
            )
        if must_close and inside and not continues:
            raise ValueError(_unclosed(i - 1, inside, scheme))
        out.append("O" if letter == "O" else f"{'I' if continues else 'B'}-{type_name}")
        inside = type_name if letter in "BI" else ""
    if must_close and inside:
        raise ValueError(_unclosed(len(out) - 1, inside, scheme))
    return out


def canonical_tag(tag: str) -> str:
    """The tag with its type as ``canonical``."""
    letter, dash, type_name = canonical(tag).partition("-")
    return letter + dash + type_name.strip()


def is_tag(text: str, scheme: str) -> bool:
    """Whether the text has the form of a tag, of any scheme with letters, or of ``scheme`` if that has none."""
    text = canonical_tag(text)
    return bool(_split(text, _LETTERS)[0] or (scheme == "io" and text))


def _split(tag: str, letters: Mapping[str, str]) -> tuple[str, str]:
    """``"B-PER"`` -> ``("B", "PER")``; an empty letter if the tag is malformed."""
    if tag == "O":
        return "O", ""
    letter, _, type_name = tag.partition("-")
    return (letters.get(letter, ""), type_name) if type_name.strip() else ("", "")


def _unclosed(i: int, type_name: str, scheme: str) -> str:
    return f"the entity {reprlib.repr(type_name)} is not closed at tag {i}; end it as {scheme} does, or set the scheme"


def entity_types(tags: Iterable[str]) -> set[str]:
    """The type names in IOB2 tags: ``{"PER"}`` for ``["B-PER", "I-PER", "O"]``."""
    return {tag[2:] for tag in tags if tag != "O"}
