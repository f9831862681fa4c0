"""What the tests of other tools' files share: texts that such files can hold, and the claim that all of them make."""

import re
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from jaxprefit.data.records.readers import read
from jaxprefit.errors import UserError

one_folder = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])

# A byte order mark within a text is excluded: readers of all tools drop some of them.
_ANY = st.characters(exclude_categories=["Cs"], exclude_characters="\ufeff")
plain = st.text(st.sampled_from("abcxyzäß"), min_size=1, max_size=6)
words = plain | st.sampled_from(["#", '"', "''", "|", "-", "1", "2", "O", "B-PER", "a|b", "ice"]) | st.text(
    _ANY.filter(lambda c: not c.isspace()), min_size=1, max_size=4
)  # fmt: skip
texts = st.text(_ANY | st.sampled_from("\",;\t\n'|#"), min_size=1, max_size=12).filter(str.strip)
labels = st.sampled_from(["pos", "neg", "very bad", "größer", "50 %", "[red]", "a,b", "a;b"])


def entity_tags(length: int, types: tuple[str, ...] = ("PER", "LOC")) -> st.SearchStrategy[list[str]]:
    """IOB2 tags of a sentence of that many words."""

    def strict(drawn: list[str]) -> list[str]:
        pairs = zip(drawn, ["O", *drawn], strict=False)
        return [f"B{tag[1:]}" if tag[0] == "I" and tag[1:] != before[1:] else tag for tag, before in pairs]

    alphabet = st.sampled_from(["O", *(f"{letter}-{name}" for letter in "BI" for name in types)])
    return st.lists(alphabet, min_size=length, max_size=length).map(strict)


def records(word: st.SearchStrategy[str]) -> st.SearchStrategy[list[dict[str, list[str]]]]:
    """One to four sentences as NER records."""
    tokens = st.lists(word, min_size=1, max_size=5)
    row = tokens.flatmap(lambda t: entity_tags(len(t)).map(lambda g: {"tokens": t, "tags": g}))
    return st.lists(row, min_size=1, max_size=4)


def refusal(path: Path, kind: str, **options: Any) -> str:
    """The message that refuses a file, in one line with its name and advice; "" where the file is read."""
    try:
        list(read(path, kind, **options))
    except UserError as error:
        message = str(error)
        assert re.fullmatch(re.escape(str(path)) + r"(:\d+)?: [^\n]+; [^\n]+", message), message
        return message
    return ""


def read_or_refused(path: Path, kind: str, expected: list[dict[str, Any]], **options: Any) -> bool:
    """Whether the file is read, which is then as `expected`; else it is refused."""
    if refusal(path, kind, **options):
        return False
    assert list(read(path, kind, **options)) == expected
    return True
