"""Reading records: the schemes of tags, every format, and every way a file can be wrong."""

import csv
import gzip
import json
import lzma
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxprefit.data.records import KINDS, SCHEMES, readers, to_iob2
from jaxprefit.data.records.readers import read
from jaxprefit.data.records.tags import entity_types
from jaxprefit.errors import UserError

NER = [
    {"tokens": ["Ada", "Lovelace", "met", "Bob"], "tags": ["B-PER", "I-PER", "O", "B-PER"]},
    {"tokens": ["Hello", "\u4e16\u754c"], "tags": ["O", "O"]},
]
PAIRS = [{"a": "one, two", "b": 'say "yes"'}, {"a": "x\ny", "b": "z"}]
LABELLED = [{"text": "good film", "label": "pos"}, {"text": "caf\u00e9 noir", "label": "neg"}]

no_fixture_check = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path: Path, content: str | bytes) -> Path:
    data = content.encode() if isinstance(content, str) else content
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".xz":
        data = lzma.compress(data)
    path.write_bytes(data)
    return path


def jsonl(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def conll(rows: list[dict[str, list[str]]], sep: str = " ") -> str:
    return "\n".join("".join(f"{t}{sep}x{sep}{g}\n" for t, g in zip(r["tokens"], r["tags"], strict=True)) for r in rows)


def failure(path: Path, kind: str, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        list(read(path, kind, **settings))
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message and "; " in message
    return message


# ---- tags ----------------------------------------------------------------------------------

spans = st.lists(st.tuples(st.sampled_from(["", "PER", "LOC", "a-b"]), st.integers(1, 4)), max_size=8)


def encode(spans: list[tuple[str, int]], scheme: str) -> list[str]:
    """The tags of entities given as (type or "", length), written from the scheme's definition."""
    tags: list[str] = []
    before = ""
    for name, length in spans:
        if not name:
            tags += ["O"] * length
        elif scheme == "iob2":
            tags += [f"B-{name}"] + [f"I-{name}"] * (length - 1)
        elif scheme == "iob1":
            tags += [f"{'B' if before == name else 'I'}-{name}"] + [f"I-{name}"] * (length - 1)
        else:
            begin, inside, end, single = "BILU" if scheme == "bilou" else "BIES"
            middle = [f"{inside}-{name}"] * (length - 2)
            whole = [f"{begin}-{name}", *middle, f"{end}-{name}"]
            tags += [f"{single}-{name}"] if length == 1 else whole
        before = name
    return tags


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s != "io"])
@given(spans)
def test_every_scheme_gives_the_same_iob2(scheme: str, spans: list[tuple[str, int]]) -> None:
    expected = encode(spans, "iob2")
    assert to_iob2(encode(spans, scheme), scheme) == expected
    assert entity_types(expected) == {name for name, _ in spans if name}


def test_types_alone_cannot_part_neighbours() -> None:
    assert to_iob2(["PER", "PER", "O", "a-b", "PER"], "io") == ["B-PER", "I-PER", "O", "B-a-b", "B-PER"]


@pytest.mark.parametrize(
    ("scheme", "tags"),
    [
        ("iob2", "I-PER"),
        ("iob2", "B-PER I-LOC"),
        ("iob2", "B-PER O I-PER"),
        ("iob2", "S-PER"),
        ("iob2", "B-"),
        ("iob2", "B"),
        ("iob2", "PER"),
        ("iob2", "b-PER"),
        ("iob2", "O-PER"),
        ("iob1", "E-PER"),
        ("iobes", "B-PER O"),
        ("iobes", "B-PER"),
        ("iobes", "S-PER I-PER"),
        ("iobes", "B-PER B-PER"),
        ("iobes", "E-PER"),
        ("bilou", "S-PER"),
        ("iob3", "O"),
    ],
)
def test_tags_outside_the_scheme_are_refused(scheme: str, tags: str) -> None:
    with pytest.raises(ValueError, match="; "):
        to_iob2(tags.split(), scheme)


@given(st.lists(st.text(st.sampled_from("BIOESLU-x "), max_size=4)), st.sampled_from([*SCHEMES]))
def test_what_is_accepted_is_valid_iob2(tags: list[str], scheme: str) -> None:
    try:
        converted = to_iob2(tags, scheme)
    except ValueError:
        return
    assert to_iob2(converted, "iob2") == converted and len(converted) == len(tags)


# ---- good files ----------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["", ".gz", ".xz"])
@pytest.mark.parametrize(
    ("suffix", "kind", "content", "expected"),
    [
        (".jsonl", "ner", jsonl(NER), NER),
        (".JSON", "pairs", "\ufeff" + jsonl(PAIRS).replace("\n", "\r\n\r\n"), PAIRS),
        (".jsonl", "labelled", jsonl([{"text": "t", "label": 7, "more": None}]), None),
        (".conll", "ner", "-DOCSTART- -X- O\n\n" + conll(NER), NER),
        (".bio", "ner", conll(NER, "\t").replace("\n", "\r\n") + "\r\n\r\n", NER),
        (".iob", "ner", conll(NER, "   "), NER),
        (".txt", "ner", conll(NER), NER),
        (".csv", "pairs", 'b,a,c\n"say ""yes""","one, two",1\n\nz,"x\ny",2\n', PAIRS),
        (".tsv", "labelled", "text\tlabel\n" + 'a "b\tneg\n', [{"text": 'a "b', "label": "neg"}]),
    ],
)
def test_formats(tmp_path: Path, suffix: str, kind: str, content: str, expected: Any, compression: str) -> None:
    path = write(tmp_path / f"my.data{suffix}{compression}", content)
    assert list(read(path, kind)) == (expected or [{"text": "t", "label": "7"}])


def test_settings(tmp_path: Path) -> None:
    rows = [{"words": r["tokens"], "ner": r["tags"]} for r in NER]
    path = write(tmp_path / "a.jsonl", jsonl(rows))
    columns = {"tokens": "words", "tags": "ner"}
    assert list(read(str(path), "ner", columns=columns, limit=1)) == NER[:1]

    path = write(tmp_path / "a.data", "1|New|S-LOC\n2|York|O\n")
    assert list(
        read(
            path,
            "ner",
            format="conll",
            columns={"tokens": 1, "tags": 2},
            scheme="iobes",
            delimiter="|",
        )
    ) == [{"tokens": ["New", "York"], "tags": ["B-LOC", "O"]}]

    path = write(tmp_path / "b.csv", "Review;Stars\nfine;4\n")
    columns = {"text": "Review", "label": "Stars"}
    assert list(read(path, "labelled", columns=columns, delimiter=";")) == [{"text": "fine", "label": "4"}]


NOVEL = [{"text": "It was"}, {"text": "a dark night."}]


@pytest.mark.parametrize(
    ("name", "columns", "content", "expected"),
    [
        ("a.jsonl", {}, jsonl(NOVEL), NOVEL),
        ("a.jsonl", {"text": "tokens"}, jsonl(NER), [{"text": "Ada Lovelace met Bob"}, {"text": "Hello \u4e16\u754c"}]),
        ("a.jsonl", {"text": "b,a"}, jsonl(PAIRS), [{"text": 'say "yes" one, two'}, {"text": "z x\ny"}]),
        ("a.csv", {"text": "head,body"}, "body,n,head\nb,1,a\n", [{"text": "a b"}]),
        ("a.conll", {}, conll(NER), [{"text": "Ada Lovelace met Bob"}, {"text": "Hello \u4e16\u754c"}]),
        ("a.conll", {"text": 2}, conll(NER)[:12], [{"text": "B-PER"}]),
        ("a.txt.gz", {}, "It was\n \n a dark night.\n", NOVEL),
        ("a.log", {"format": "lines"}, "It was\na dark night.", NOVEL),
    ],
)
def test_text_from_any_format_and_columns(
    tmp_path: Path, name: str, columns: dict[str, Any], content: str, expected: Any
) -> None:
    format = columns.pop("format", None)
    assert list(read(write(tmp_path / name, content), "text", format=format, columns=columns)) == expected


def test_blank_texts_are_dropped_where_the_source_says_so(tmp_path: Path) -> None:
    rows = [LABELLED[0], {"text": " \n", "label": "pos"}, LABELLED[1], {"text": "", "label": "neg"}]
    path, dropped = write(tmp_path / "a.jsonl", jsonl(rows)), []  # type: tuple[Path, list[int]]
    assert list(read(path, "labelled", dropped=dropped)) == LABELLED and dropped == [2, 4]
    assert list(read(path, "labelled", limit=2, dropped=[])) == LABELLED
    assert "a.jsonl:2: 'text' is blank; fill it in or delete the row, or set blank=skip" in failure(path, "labelled")
    empty = write(tmp_path / "b.jsonl", jsonl([{"tokens": [], "tags": []}]))
    assert "holds no records" in failure(empty, "ner", dropped=[])


@pytest.mark.parametrize("row", [{"text": "t", "label": ""}, {"text": None, "label": "x"}])
def test_only_blank_texts_are_dropped(tmp_path: Path, row: dict) -> None:
    assert ":1: '" in failure(write(tmp_path / "a.jsonl", jsonl([row])), "labelled", dropped=[])


def test_long_csv_fields_and_lines_up_to_the_limit(tmp_path: Path) -> None:
    text = "word " * 100_000
    path = write(tmp_path / "a.csv", f"text,label\n{text},x\n")
    assert next(read(path, "labelled"))["text"] == text


def test_reads_lazily(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", jsonl(LABELLED) + "broken")
    assert list(read(path, "labelled", limit=2)) == LABELLED
    rows = read(path, "labelled")
    assert [next(rows), next(rows)] == LABELLED
    with pytest.raises(UserError, match=":3: not JSON"):
        next(rows)


# ---- bad files -----------------------------------------------------------------------------

ONE = '{"text": "t", "label": "x"}\n'


@pytest.mark.parametrize(
    ("kind", "line", "says"),
    [
        ("labelled", "{", "not JSON"),
        ("labelled", "[" * 100_000, "not JSON"),
        ("labelled", '{"text": "t", "label": ' + "9" * 5000 + "}", "not JSON"),
        ("labelled", '["t", "x"]', "a JSON list, not an object"),
        ("labelled", '{"txt": "t", "label": "x"}', "no column 'text' among 'txt', 'label'; did"),
        ("labelled", '{"text": "t", "label": null}', "'label' is missing"),
        ("labelled", '{"text": "t", "label": true}', "'label' is of type bool"),
        ("labelled", '{"text": "t", "label": 1.5}', "'label' is of type float"),
        ("labelled", '{"text": " \\u00a0", "label": "x"}', "'text' is blank"),
        ("labelled", '{"text": "\\ud800", "label": "x"}', "surrogate"),
        ("pairs", '{"a": "t", "b": ""}', "'b' is blank"),
        ("ner", '{"tokens": "a b", "tags": ["O"]}', "'tokens' is of type str"),
        ("ner", '{"tokens": [1], "tags": ["O"]}', "'tokens' is a list with other things"),
        ("ner", '{"tokens": ["a"], "tags": [0]}', "'tags' is a list with other things"),
        ("ner", '{"tokens": ["a"], "tags": []}', "1 tokens but 0 tags"),
        ("ner", '{"tokens": [], "tags": []}', "no tokens"),
        ("ner", '{"tokens": ["a", ""], "tags": ["O", "O"]}', "token 1 is blank"),
        ("ner", '{"tokens": ["a"], "tags": ["I-X"]}', "tag 0 'I-X' does not continue"),
        ("text", '{"text": ["", " "]}', "'text' is blank"),
        ("text", '{"text": ["a", 1]}', "'text' is of type list, not text"),
        ("text", '{"text": null}', "'text' is missing, not text"),
        ("text", '{"body": "a"}', "no column 'text' among 'body'"),
    ],
)
def test_bad_json_rows(tmp_path: Path, kind: str, line: str, says: str) -> None:
    first = {"ner": NER[0], "pairs": PAIRS[0], "labelled": LABELLED[0], "text": NOVEL[0]}[kind]
    path = write(tmp_path / "a.jsonl.gz", jsonl([first]) + line + "\n" + jsonl([first]))
    message = failure(path, kind)
    assert message.startswith(f"{path}:2: ") and says in message and len(message) < 400


@pytest.mark.parametrize(
    ("name", "kind", "content", "says"),
    [
        ("a.conll", "ner", "a O\n\nb\n", ":3: 1 columns"),
        ("a.conll", "ner", "a O\n\nb O\nc I-X\n", ":3: tag 1 'I-X'"),
        ("a.conll", "ner", " O\n", ":1: token 0 is blank"),
        ("a.csv", "labelled", "text,label\nb\n", ":2: 1 fields under 2 headings"),
        ("a.csv", "labelled", 'text,label\n"b"c,d\n', ":2: not CSV"),
        ("a.csv", "labelled", 'text,label\n"b\nc', ":2: not CSV"),
        ("a.csv", "labelled", 'text,label\n"b\nc",d\n"",e\n', ":4: 'text' is blank"),
        ("a.csv", "labelled", "text,text\nb,c\n", ":1: two headings"),
        ("a.csv", "labelled", "Text,label\nb,c\n", ":2: no column 'text' among 'Text'"),
        (
            "a.jsonl",
            "labelled",
            ONE.encode() + b"\xff\xfe\n",
            ":2: byte 0 of the line is not UTF-8",
        ),
        ("a.jsonl", "labelled", b"", ": holds no records"),
        ("a.csv", "labelled", "text,label\n", ": holds no records"),
        ("a.conll", "ner", "-DOCSTART- O\n\n", ": holds no records"),
        ("a.jsonl.gz", "labelled", "", ": holds no records"),
        ("a.conll", "pairs", "a O\n", ": conll holds only NER"),
        ("a.csv", "ner", "tokens,tags\n", ": csv holds no lists"),
        ("a.lines", "text", "x", ": the suffix does not tell"),
        ("a.parquet", "ner", "x", ": the suffix does not tell"),
        (".xz", "ner", "x", ": the suffix does not tell"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, kind: str, content: str | bytes, says: str) -> None:
    path = write(tmp_path / name, content)
    assert failure(path, kind).startswith(f"{path}{says}")


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_damaged_compression(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a.jsonl{suffix}", jsonl(LABELLED * 1000))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "cannot be read" in failure(path, "labelled")
    path.write_bytes(whole[:40] + bytes(30) + whole[70:])
    failure(path, "labelled")
    path.write_text("not compressed")
    assert f"{path}:1: cannot be read" in failure(path, "labelled")


def test_overlong_lines_and_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl.gz", ONE + " " * (readers.MAX_LINE + 1))
    assert ":2: the line is longer than 16 MiB" in failure(path, "labelled")
    monkeypatch.setattr(readers, "MAX_TOKENS", 10)
    path = write(tmp_path / "a.conll", "a O\n" * 11)
    assert ":1: a sentence of over 10 tokens" in failure(path, "ner")


def test_wrong_paths_and_settings(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", ONE)
    near = tmp_path / "trian.jsonl"
    assert f"does not exist; did you mean {path}?" in failure(near, "labelled")
    assert "does not exist; check the path" in failure(tmp_path / "zzz", "labelled")
    assert "nor can its folder" in failure(tmp_path / "no" / "a.csv", "labelled")
    assert "does not exist" in failure(tmp_path / ("a" * 300), "labelled")
    with pytest.raises(UserError, match="a.x00b' is no path; it holds a zero byte"):
        read(tmp_path / "a\0b", "labelled")
    assert "is a folder" in failure(tmp_path, "labelled")
    assert "unknown kind" in failure(path, "poem")
    assert "unknown format" in failure(path, "labelled", format="xml")
    assert "lines holds only text" in failure(path, "labelled", format="lines")
    assert "unknown scheme" in failure(path, "labelled", scheme="bio")
    assert "no field 'body'" in failure(path, "labelled", columns={"body": "text"})
    assert "the limit is -1" in failure(path, "labelled", limit=-1)
    table = write(tmp_path / "a.csv", "text,label\n")
    assert "give one character" in failure(table, "labelled", delimiter="::")
    tags = write(tmp_path / "a.conll", "a O\n")
    assert "too few for columns 0 and 5" in failure(tags, "ner", columns={"tags": 5})
    assert "have no names" in failure(tags, "ner", columns={"tags": "ner"})


@pytest.mark.parametrize(
    ("name", "kind", "content"),
    [
        ("a.jsonl", "ner", jsonl(NER)),
        ("a.jsonl.gz", "labelled", jsonl(LABELLED)),
        ("a.jsonl.xz", "pairs", jsonl(PAIRS)),
        ("a.conll", "ner", conll(NER)),
        ("a.csv", "pairs", 'a,b\n"one, two",x\n"a\nb","say ""yes"""\n'),
        ("a.tsv", "labelled", "text\tlabel\na\tb\n"),
    ],
)
@given(data=st.data())
@no_fixture_check
def test_a_mutated_file_gives_valid_records_or_user_error(
    tmp_path: Path, name: str, kind: str, content: str, data: st.DataObject
) -> None:
    path = write(tmp_path / name, content)
    raw = bytearray(path.read_bytes())
    junk = st.binary(max_size=4) | st.sampled_from([b"\n", b'"', b"\r", b"{", b"\0", b"\t", b"[]"])
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(raw)))
        end = data.draw(st.integers(start, min(len(raw), start + 8)))
        raw[start:end] = data.draw(junk)
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw))) :]
    path.write_bytes(raw)
    try:
        for record in read(path, kind):
            KINDS[kind].validate(record)
            assert set(record) == set(KINDS[kind].fields)
    except UserError as error:
        assert re.fullmatch(re.escape(str(path)) + r"(:\d+)?: [^\n]*", str(error))


# A row equal to the heading a,b is refused.
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda t: t.strip().lower() not in "ab")


@given(rows=st.lists(st.fixed_dictionaries({"a": texts, "b": texts}), min_size=1))
@no_fixture_check
def test_any_text_survives_json_and_csv(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    assert list(read(write(tmp_path / "a.jsonl", jsonl(rows)), "pairs")) == rows
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["a", "b"], quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
    assert list(read(tmp_path / "a.csv", "pairs")) == rows
