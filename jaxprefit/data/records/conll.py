"""Sentences in columns: CoNLL-2003, CoNLL-U and their kin, one token a line with its tags beside it."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from jaxprefit.data.records.lines import lines, without_end
from jaxprefit.data.records.tags import is_tag
from jaxprefit.errors import UserError

Sentence = dict[str, list[str]]

# A file of one sentence this long has no line between its sentences: written ones are shorter, and no one trains or
# tests on a single one.
MAX_ONLY_SENTENCE = 100  # words

_FIRST_ID = re.compile(r"1|0\.1|1-([2-9]|[1-9]\d+)")  # what CoNLL-U's column ID can begin with
_NO_WORD_ID = re.compile(r"\d+-\d+|\d+\.\d+")  # CoNLL-U: a token of several words, which follow; a word left out
_SPACY = re.compile(r"\S+?\|(\S+\|)?(O|[BIESLU]-\S+)")


def sentences(
    path: Path,
    columns: Mapping[str, str | int],
    chosen: Collection[str],
    scheme: str,
    delimiter: str | None,
    longest: int,
) -> Iterator[tuple[int, Sentence]]:
    """(number of its first line, field -> its column) of each sentence.

    A blank line or -DOCSTART- ends a sentence. The first line with a token settles what parts the columns and their
    number. Comments ("# ..." where a sentence begins) are left out, and so are CoNLL-U's lines that are no words.

    Args:
      columns: field -> index, of which one is "tokens".
      chosen: fields whose column the user named; the others' indices are guesses.
      delimiter: between columns. None: tabs where the first line has one, else spaces.
      longest: words that a sentence may have.
    """
    layout = _layout(path, columns, chosen, scheme, delimiter)
    rows = _sentences(path, layout, longest) if layout else iter(())
    first = list(islice(rows, 1))
    if first and len(first[0][1]["tokens"]) > MAX_ONLY_SENTENCE:
        first += islice(rows, 1)
        if len(first) == 1:
            number, sentence = first[0]
            raise UserError(
                f"{path}:{number}: all {len(sentence['tokens']):,} tokens of the file are one sentence; "
                "put a blank line after each sentence"
            )
    yield from chain(first, rows)


@dataclass(frozen=True)
class _Layout:
    """What the first line with a token tells of all others.

    ``separator``: None for spaces. ``columns``: their number. ``line``: the number of that line. ``indices``: field ->
    index from 0. ``numbered``: whether column 0 numbers the tokens, as in CoNLL-U.
    """

    separator: str | None
    columns: int
    line: int
    indices: Mapping[str, int]
    numbered: bool
    scheme: str

    def cells(self, line: str) -> list[str]:
        return line.split(self.separator) if self.separator else re.split(" +", line)

    def is_comment(self, line: str, cells: list[str]) -> bool:
        """Whether a line that a sentence could begin with is none of its tokens: the token "#" has a tag."""
        if not line.startswith(("# ", "#\t")):
            return False
        if len(cells) != self.columns:
            return True
        return line[1] == " " and not is_tag(cells[self.indices.get("tags", -1)], self.scheme)


def _sentences(path: Path, layout: _Layout, longest: int) -> Iterator[tuple[int, Sentence]]:
    sentence: Sentence = {field: [] for field in layout.indices}
    start = 0
    for number, line in _bare_lines(path):
        cells = layout.cells(line)
        if _parts_sentences(line):
            if start:
                yield start, sentence
            sentence, start = {field: [] for field in layout.indices}, 0
            continue
        if not start and layout.is_comment(line, cells):
            continue
        if len(cells) != layout.columns:
            raise UserError(
                f"{path}:{number}: {len(cells)} columns, but {layout.columns} in line {layout.line}; mend the line "
                f"(columns are parted by {repr(layout.separator) if layout.separator else 'spaces'})"
            )
        if layout.numbered and _NO_WORD_ID.fullmatch(cells[0]):
            continue
        start = start or number
        for field, index in layout.indices.items():
            sentence[field].append(cells[index])
        if len(sentence["tokens"]) > longest:
            raise UserError(
                f"{path}:{start}: a sentence of over {longest:,} tokens; put a blank line after each sentence, "
                "or write longer texts as JSON lines"
            )
    if start:
        yield start, sentence


def _layout(
    path: Path, columns: Mapping[str, str | int], chosen: Collection[str], scheme: str, delimiter: str | None
) -> _Layout | None:
    """None for a file without any token."""
    try:
        indices = {field: int(column) for field, column in columns.items()}
    except ValueError:
        raise UserError(f"{path}: CoNLL columns have no names; map the fields to whole numbers") from None
    first = _first_tokens(path)
    if not first:
        return None
    number, line = first[0]
    if not delimiter and all(_SPACY.fullmatch(word) for word in line.split()):
        raise UserError(
            f"{path}:{number}: words are written WORD|TAG, as in spaCy's .iob; write a word and its tag on each line "
            "and a blank line after each sentence, or add delimiter=| to the source if each line is one word"
        )
    layout = _Layout(delimiter or ("\t" if "\t" in line else None), 0, number, {}, False, scheme)
    first_cells = [layout.cells(text) for _, text in first]
    count = len(first_cells[0])
    if count < 2 or not all(-count <= index < count for index in indices.values()):
        raise UserError(
            f"{path}:{number}: {count} columns, too few for columns "
            f"{' and '.join(map(str, indices.values()))}; write a token and its tag on each line"
        )
    indices = {field: index % count for field, index in indices.items()}
    numbered = bool(_FIRST_ID.fullmatch(first_cells[0][0])) and (indices["tokens"] != 0 or "tokens" not in chosen)
    looks_numbered = count > 2 and all(re.fullmatch(r"\d+([.-]\d+)?", cells[0]) for cells in first_cells)
    if ("tokens" not in chosen and looks_numbered) or (numbered and not {*indices} <= {*chosen}):
        names = "tokens=1&tags=2" if "tags" in indices else "text=1"
        raise UserError(
            f"{path}:{number}: column 0 seems to number the tokens; name the columns in the source, as in ?{names}"
        )
    return _Layout(layout.separator, count, number, indices, numbered and indices["tokens"] != 0, scheme)


def _first_tokens(path: Path) -> list[tuple[int, str]]:
    """The first line with a token and the one after it in its sentence; "#" alone at the start may be a comment."""
    out: list[tuple[int, str]] = []
    comment: list[tuple[int, str]] = []
    for number, line in _bare_lines(path):
        if _parts_sentences(line):
            if out:
                break
        elif out or not line.startswith(("# ", "#\t")):
            out.append((number, line))
        else:
            comment = comment or [(number, line)]
        if len(out) == 2:
            break
    return out or comment


def _bare_lines(path: Path) -> Iterator[tuple[int, str]]:
    return ((number, without_end(path, number, line).rstrip(" ")) for number, line in lines(path))


def _parts_sentences(line: str) -> bool:
    return not line.strip() or line.startswith("-DOCSTART-")
