"""Tagged sentences as other tools write them: read as those tools read them, or refused with file, line and advice.

Each writer follows the format's own description: CoNLL-2003 (Tjong Kim Sang and De Meulder, 2003), CoNLL-U
(universaldependencies.org/format.html), WNUT 2017, MultiCoNER (2022), GermEval 2014, spaCy's .iob, Label Studio.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.foreign import one_folder, plain, read_or_refused, records, refusal, words
from hypothesis import given
from hypothesis import strategies as st

from jaxprefit.data.records import conll, to_iob2
from jaxprefit.data.records.readers import MAX_TOKENS, read

Rows = list[dict[str, list[str]]]


def blocks(rows: Rows, line: Callable[[int, str, str], str], before: str = "", end: str = "\n") -> str:
    """A block a sentence: `before`, a line a word (its number from 1, token, tag), a blank line."""
    out = ""
    for row in rows:
        pairs = zip(row["tokens"], row["tags"], strict=True)
        out += before + "".join(line(i, t, g) + end for i, (t, g) in enumerate(pairs, 1)) + end
    return out


def conll2003(rows: Rows) -> str:
    return "-DOCSTART- -X- O O\n\n" + blocks(rows, lambda i, t, g: f"{t} NNP B-NP {g}")


def conllu(rows: Rows) -> str:
    def line(i: int, token: str, tag: str) -> str:
        word = f"{i}\t{token}\t_\tNOUN\t_\t_\t0\troot\t_\t{tag}"
        if i == 1:  # a token of two words goes before them; a word left out (an ellipsis) after
            return f"1-2\t{token}{token}\t_\t_\t_\t_\t_\t_\t_\t_\n{word}\n1.1\tleft\t_\tVERB\t_\t_\t_\t_\t0:root\t_"
        return word

    return blocks(rows, line, "# sent_id = 1\n# text = New York, 1-2\n")


def wnut(rows: Rows) -> str:
    return blocks(rows, lambda i, t, g: f"{t}\t{g}")


def multiconer(rows: Rows) -> str:
    return blocks(rows, lambda i, t, g: f"{t} _ _ {g}", "# id 1f7cd8\tdomain=en\n") + "\n"


def germeval(rows: Rows) -> str:
    return blocks(rows, lambda i, t, g: f"{i}\t{t}\t{g}\tO", "#\thttp://example.org/a [2010-01-31]\n")


def label_studio(rows: Rows) -> str:
    return "-DOCSTART- -X- O\n" + blocks(rows, lambda i, t, g: f"{t} -X- _ {g}")


# Name -> writer, the columns that its user names, the columns of a reader of texts.
WRITERS: dict[str, tuple[Callable[[Rows], str], dict[str, int], dict[str, int]]] = {
    "conll2003": (conll2003, {}, {}),
    "conllu": (conllu, {"tokens": 1, "tags": 9}, {"text": 1}),
    "wnut": (wnut, {}, {}),
    "multiconer": (multiconer, {}, {}),
    "germeval": (germeval, {"tokens": 1, "tags": 2}, {"text": 1}),
    "label_studio": (label_studio, {}, {}),
}


def save(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("tool", WRITERS)
@given(rows=records(plain))
@one_folder
def test_plain_words_are_read(tool: str, rows: Rows, tmp_path: Path) -> None:
    write, columns, of_text = WRITERS[tool]
    for end in ("\n", "\r\n"):
        path = save(tmp_path / "a.conll", write(rows).replace("\n", end))
        assert read_or_refused(path, "ner", rows, columns=columns)
        assert read_or_refused(path, "text", [{"text": " ".join(r["tokens"])} for r in rows], columns=of_text)
    twice = save(tmp_path / "b.conll", "\ufeff" + write(rows) + "\ufeff" + write(rows))  # two files joined by `cat`
    assert read_or_refused(twice, "ner", rows + rows, columns=columns)


@pytest.mark.parametrize("tool", WRITERS)
@given(rows=records(words))
@one_folder
def test_any_words_are_read_or_refused(tool: str, rows: Rows, tmp_path: Path) -> None:
    write, columns, _ = WRITERS[tool]
    read_or_refused(save(tmp_path / "a.conll", write(rows)), "ner", rows, columns=columns)


@pytest.mark.parametrize("tool", ["wnut", "conllu", "germeval"])
@given(rows=records(st.lists(plain, min_size=1, max_size=3).map(" ".join)))
@one_folder
def test_between_tabs_a_token_may_have_spaces(tool: str, rows: Rows, tmp_path: Path) -> None:
    write, columns, _ = WRITERS[tool]
    assert read_or_refused(save(tmp_path / "a.conll", write(rows)), "ner", rows, columns=columns)


@pytest.mark.parametrize("tool", ["conllu", "germeval"])
@given(rows=records(plain))
@one_folder
def test_a_column_of_numbers_is_no_text(tool: str, rows: Rows, tmp_path: Path) -> None:
    path = save(tmp_path / "a.conll", WRITERS[tool][0](rows))
    assert "?tokens=1&tags=2" in refusal(path, "ner")
    assert "?tokens=1&tags=2" in refusal(path, "ner", columns={"tokens": 1})  # the last column may be another's tags
    assert "?text=1" in refusal(path, "text")


@pytest.mark.parametrize("tool", WRITERS)
@given(rows=records(plain).filter(lambda rows: len(rows[0]["tokens"]) > 1), data=st.data())
@one_folder
def test_a_line_with_other_columns_is_named(tool: str, rows: Rows, data: st.DataObject, tmp_path: Path) -> None:
    write, columns, _ = WRITERS[tool]
    lines = write(rows).split("\n")
    bare = [i for i, line in enumerate(lines) if line and not line.startswith(("#", "-DOCSTART-"))]
    culprit = data.draw(st.sampled_from(bare[1:]))
    separator = "\t" if "\t" in lines[culprit] else " "
    more = f"{lines[culprit]}{separator}O"
    lines[culprit] = data.draw(st.sampled_from([lines[culprit].rpartition(separator)[0], more]))
    path = save(tmp_path / "a.conll", "\n".join(lines))
    message = refusal(path, "ner", columns=columns)
    assert message.startswith(f"{path}:{culprit + 1}: ") and f"in line {bare[0] + 1}" in message


@given(rows=records(plain))
@one_folder
def test_documents_without_blank_lines(rows: Rows, tmp_path: Path) -> None:
    lines = ["-DOCSTART- O\n" + blocks([row], lambda i, t, g: f"{t} {g}").strip("\n") for row in rows]
    assert read_or_refused(save(tmp_path / "a.conll", "\n".join(lines)), "ner", rows)


@pytest.mark.parametrize("tool", WRITERS)
@given(rows=records(plain).filter(lambda rows: sum(len(row["tokens"]) for row in rows) > 1))
@one_folder
def test_line_ends_of_carriage_returns_alone_are_refused(tool: str, rows: Rows, tmp_path: Path) -> None:
    write, columns, _ = WRITERS[tool]
    path = save(tmp_path / "a.conll", write(rows).replace("\n", "\r"))
    assert refusal(path, "ner", columns=columns).startswith(f"{path}:1: a carriage return")


@given(rows=records(plain))
@one_folder
def test_spacy_iob_is_refused_with_advice(rows: Rows, tmp_path: Path) -> None:
    for line in ("{t}|NNP|{g}", "{t}|{g}"):
        pairs = [zip(row["tokens"], row["tags"], strict=True) for row in rows]
        text = "".join(" ".join(line.format(t=t, g=g) for t, g in sentence) + "\n" for sentence in pairs)
        path = save(tmp_path / "a.iob", text)
        assert "spaCy's .iob; write a word and its tag on each line" in refusal(path, "ner")
    path = save(tmp_path / "b.iob", blocks(rows, lambda i, t, g: f"{t}|{g}"))
    assert read_or_refused(path, "ner", rows, delimiter="|")


@pytest.mark.parametrize(
    ("content", "tokens"),
    [
        ("# text O\nAnna B-PER\n", ["Anna"]),
        ("# O\nAnna B-PER\n", ["#", "Anna"]),
        ("Anna B-PER\n# O\n", ["Anna", "#"]),
        ("#tag\tO\nAnna\tB-PER\n", ["#tag", "Anna"]),
        ("#\tO\nAnna\tB-PER\n", ["#", "Anna"]),
        ("# id 1 domain=en\nAnna _ _ B-PER\n", ["Anna"]),
        ("# a comment\n\n# another\nAnna B-PER\n", ["Anna"]),
        ("# O\n", ["#"]),
    ],
)
def test_a_comment_is_no_word_and_a_hash_with_a_tag_is(content: str, tokens: list[str], tmp_path: Path) -> None:
    (row,) = read(save(tmp_path / "a.conll", content), "ner")
    assert row["tokens"] == tokens


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("Anna B-PER\n# a comment within\n", ":2: 4 columns, but 2 in line 1"),
        ("Anna B-PER\nsings\tO\n", ":2: 1 columns, but 2 in line 1"),
        ("New York B-LOC\nis O\n", ":2: 2 columns, but 3 in line 1"),
        ("1 CD O\n\n2 CD O\n", ":1: column 0 seems to number the tokens"),
        ("#\tnone\nAnna\tB-PER\n", ":1: tag 0 'none'"),
        ("Anna\tB-PER\t\nsings\tO\t\n", ":1: tag 0 ''"),
    ],
)
def test_what_is_in_doubt_is_refused(content: str, says: str, tmp_path: Path) -> None:
    path = save(tmp_path / "a.conll", content)
    assert refusal(path, "ner").startswith(f"{path}{says}")


def test_numbers_are_words_where_the_user_says_so(tmp_path: Path) -> None:
    path = save(tmp_path / "a.conll", "1 CD O\n2 CD O\n")
    assert [row["tokens"] for row in read(path, "ner", columns={"tokens": 0})] == [["1", "2"]]


def test_a_sentence_without_end_is_refused(tmp_path: Path) -> None:
    whole = "a O\n" * (conll.MAX_ONLY_SENTENCE + 1)
    path = save(tmp_path / "a.conll", whole)
    assert f"all {conll.MAX_ONLY_SENTENCE + 1} tokens of the file are one sentence" in refusal(path, "ner")
    assert refusal(save(path, whole + "\n"), "ner") and refusal(path, "ner", limit=1)
    assert not refusal(save(path, whole + "\nb O\n"), "ner")
    assert not refusal(save(path, "a O\n" * conll.MAX_ONLY_SENTENCE), "ner")
    path = save(path, "b O\n\n" + "a O\n" * (MAX_TOKENS + 1))
    assert refusal(path, "ner").startswith(f"{path}:3: a sentence of over 1,000 tokens")


@pytest.mark.parametrize(
    ("tags", "scheme"),
    [
        ("B-PER I-PER O", "io"),
        ("S-PER O O", "io"),
        ("O B-PER I-PER", "iob1"),
        ("I-PER B-LOC O", "iob1"),
        ("I-PER O O", "iob2"),
        ("B-PER I-PER O", "bioes"),
        ("B-PER E-PER O", "iob2"),
        ("B-PER E-PER O", "iob1"),
        ("B-PER L-PER O", "bioes"),
    ],
)
def test_a_scheme_that_contradicts_the_tags_is_refused(tags: str, scheme: str, tmp_path: Path) -> None:
    path = save(tmp_path / "a.conll", "".join(f"w {tag}\n" for tag in tags.split()))
    assert "set the scheme" in refusal(path, "ner", scheme=scheme)


def test_types_are_stripped_and_composed() -> None:
    decomposed, composed = "B-cafe\u0301", "B-caf\u00e9"
    assert to_iob2([decomposed, f"{composed} ", "B- PER"], "iob2") == [composed, composed, "B-PER"]
