"""Texts and labels as other tools write them: read as those tools read them, or refused with file, line and advice.

pandas writes and reads its own files here; Excel's are those of Python's dialects `excel` and `excel-tab`.
"""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pandas
import pytest
from helpers.foreign import labels, one_folder, read_or_refused, refusal, texts
from hypothesis import given
from hypothesis import strategies as st

from experiments import filter_pairs
from jaxprefit.data.names import read_names
from jaxprefit.data.records.readers import read
from jaxprefit.data.sources import prepare
from jaxprefit.errors import UserError

Rows = list[dict[str, str]]
plain_texts = st.sampled_from(["good", "one, two", "semi; colon", 'he said "no"', "'quoted'", "café noir"])
QUOTED: Rows = [{"text": 'He said "hi"', "label": "pos"}, {"text": "plain, quoted", "label": "neg"}]


def tables(text: st.SearchStrategy[str]) -> st.SearchStrategy[Rows]:
    return st.lists(st.fixed_dictionaries({"text": text, "label": labels}), min_size=1, max_size=5)


def save(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def excel(rows: Rows, dialect: str = "excel", delimiter: str | None = None) -> str:
    stream = io.StringIO()
    writer: Any = csv.DictWriter(
        stream, ["text", "label"], dialect=dialect, **({"delimiter": delimiter} if delimiter else {})
    )
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def says(text: str, kind: str, root: Path) -> str:
    with pytest.raises(UserError) as caught:
        prepare(text, kind, str(root), str(root / "cache"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- Excel and pandas ----------------------------------------------------------------------


@given(rows=tables(texts))
@one_folder
def test_excel_csv(rows: Rows, tmp_path: Path) -> None:
    for delimiter in ",;":
        path = save(tmp_path / "a.csv", excel(rows, delimiter=delimiter), "utf-8-sig")
        assert read_or_refused(path, "labelled", rows, delimiter=delimiter)


@given(rows=tables(plain_texts), raw=st.booleans())
@one_folder
def test_excel_tsv_asks_where_quotes_are_in_doubt(rows: Rows, raw: bool, tmp_path: Path) -> None:
    path = save(tmp_path / "a.tsv", excel(rows, "excel-tab"))
    assert read_or_refused(path, "labelled", rows, quotes="csv")
    doubtful = '"' in "".join(row["text"] for row in rows)
    assert read_or_refused(path, "labelled", rows) != doubtful
    if doubtful:
        assert "add quotes=csv" in refusal(path, "labelled")
    lines = "".join(f"{row['text']}\t{row['label']}\n" for row in rows)
    assert read_or_refused(save(path, "text\tlabel\n" + lines), "labelled", rows, quotes="none" if raw else None)


@given(rows=tables(texts))
@one_folder
def test_any_excel_tsv_is_read_or_refused(rows: Rows, tmp_path: Path) -> None:
    read_or_refused(save(tmp_path / "a.tsv", excel(rows, "excel-tab")), "labelled", rows)


@given(rows=tables(texts), index=st.booleans(), sep=st.sampled_from(",;\t|"))
@one_folder
def test_pandas_csv(rows: Rows, index: bool, sep: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    pandas.DataFrame(rows).to_csv(path, index=index, sep=sep)
    try:
        back = pandas.read_csv(path, sep=sep, dtype=str, keep_default_na=False)
    except pandas.errors.ParserError:  # pandas leaves a lone \r without quotes, and then takes it for a line end
        back = pandas.DataFrame({"text": [], "label": []})
    expected: Any = back[["text", "label"]].to_dict("records")
    was_read = read_or_refused(path, "labelled", expected, delimiter=sep)
    assert was_read or any("\r" in row["text"] for row in rows)


def test_missing_values_of_pandas_are_refused(tmp_path: Path) -> None:
    frame = pandas.DataFrame({"text": ["a", None], "label": [None, "x"]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    assert ":2: 'label' is blank" in refusal(tmp_path / "a.csv", "labelled")
    frame.to_csv(tmp_path / "b.csv", index=False, na_rep="NaN")
    assert ":2: 'label' is 'NaN', as pandas writes a missing value" in refusal(tmp_path / "b.csv", "labelled")
    frame.astype(str).to_csv(tmp_path / "c.csv", index=False)
    frame[1:].to_csv(tmp_path / "d.csv")  # with the index
    assert ":2: 'text' is blank" in refusal(tmp_path / "d.csv", "labelled")


@pytest.mark.parametrize(
    ("content", "encoding", "line"),
    [
        ("text\tlabel\r\ngood\tpos\r\n", "utf-16", ":1: is UTF-16"),  # Excel's "Unicode text"
        ("text,label\ngood,pos\n", "utf-16-le", ":1: is UTF-16"),
        ("text,label\ncafé,pos\n", "cp1252", ":2: byte 3 of the line is not UTF-8"),
        ("text,label\rgood,pos\r", "utf-8", ":1: not CSV (new-line character seen in unquoted field); save"),
        ("sep=;\ntext;label\ngood;pos\n", "utf-8", ":1: 'sep=;' is a line for Excel alone; delete it"),
    ],
)
def test_other_files_of_excel_are_refused(content: str, encoding: str, line: str, tmp_path: Path) -> None:
    path = save(tmp_path / "a.csv", content, encoding)
    assert refusal(path, "labelled").startswith(f"{path}{line}")


# ---- headings, delimiters, labels ----------------------------------------------------------


@given(rows=tables(plain_texts), sep=st.sampled_from([";", "\t", "|"]))
@one_folder
def test_another_delimiter_is_named(rows: Rows, sep: str, tmp_path: Path) -> None:
    path = save(tmp_path / "a.csv", excel(rows, delimiter=sep))
    option = {"\t": "%09"}.get(sep, sep)
    assert refusal(path, "labelled").startswith(f"{path}:1: ")
    assert f'"my.csv?delimiter={option}"' in refusal(path, "labelled")
    source = prepare(f"a.csv?delimiter={option}", "labelled", str(tmp_path), str(tmp_path / "cache"))
    assert [source[i] for i in range(len(source))] == rows


@given(rows=tables(texts), mark=st.sampled_from(["", "\ufeff"]), order=st.permutations(["text", "label"]))
@one_folder
def test_a_repeated_heading_is_refused(rows: Rows, mark: str, order: list[str], tmp_path: Path) -> None:
    first = excel(rows)
    path = save(tmp_path / "a.csv", mark + first + mark + ",".join(order).title() + "\r\nbad,neg\r\n")
    lines = first.count("\n") + 1
    assert refusal(path, "labelled").startswith(f"{path}:{lines}: repeats the heading")


def test_a_repeated_heading_is_refused_in_other_formats(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jsonl", json.dumps({"text": "text", "label": "label"}))
    assert ":1: the row repeats the names of its columns" in refusal(path, "labelled")
    assert ":3: repeats the heading" in refusal(save(tmp_path / "a.tsv", "text\tx\na\tb\ntext\tx\n"), "text")


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_labels_that_look_alike_are_one(name: str, tmp_path: Path) -> None:
    given_labels = ["caf\u00e9", "cafe\u0301", " caf\u00e9", "caf\u00e9\u00a0"]
    rows = [{"text": "t", "label": label} for label in given_labels]
    text = excel(rows) if name == "a.csv" else "".join(json.dumps(row) + "\n" for row in rows)
    source = prepare(str(save(tmp_path / name, text)), "labelled", "", str(tmp_path / "cache"))
    assert source.types == ("caf\u00e9",) and len(source) == 4


def test_headings_are_compared_like_labels(tmp_path: Path) -> None:
    path = save(tmp_path / "a.csv", " text , cafe\u0301\ngood,pos\n")
    assert list(read(path, "labelled", columns={"label": "caf\u00e9"})) == [{"text": "good", "label": "pos"}]
    path = save(tmp_path / "a.jsonl", json.dumps({"text ": "good", "cafe\u0301": "pos"}))
    assert list(read(path, "labelled", columns={"label": "caf\u00e9"})) == [{"text": "good", "label": "pos"}]
    names = save(tmp_path / "names.json", json.dumps({"cafe\u0301": "coffee house"}))
    assert read_names(names, "x", ["caf\u00e9"]) == {"caf\u00e9": "coffee house"}


@pytest.mark.parametrize("label", ['["a", "b"]', "['a']", '{"choices": ["a"]}', "[0, 1]", "[]", '"pos"', "nan"])
def test_what_is_no_label_is_refused(label: str, tmp_path: Path) -> None:
    for name, text in (
        ("a.jsonl", json.dumps({"text": "t", "label": label})),
        ("a.csv", excel([{"text": "t", "label": label}])),
    ):
        assert "'label' " in refusal(save(tmp_path / name, text), "labelled")


# ---- options of a source -------------------------------------------------------------------


def test_a_plus_in_a_column_is_a_plus(tmp_path: Path) -> None:
    save(tmp_path / "a.csv", "my+text,100%,a&b\ngood,pos,x\n")
    source = prepare("a.csv?text=my+text&label=100%", "labelled", str(tmp_path), str(tmp_path / "cache"))
    assert source[0] == {"text": "good", "label": "pos"}
    source = prepare("a.csv?text=my%2Btext&label=a%26b", "labelled", str(tmp_path), str(tmp_path / "cache"))
    assert source[0] == {"text": "good", "label": "x"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.csv?delimiter=;;", "the delimiter ';;' cannot be; give one character"),
        ("a.csv?quotes=maybe", "quotes is 'maybe'; use csv or none"),
        ("a.jsonl?delimiter=;", "jsonl has no delimiter"),
        ("a.jsonl?quotes=csv", "jsonl has no quotes"),
        ("tfds:x?quotes=csv", "option 'quotes' is unknown"),
        ("a.csv?text=x&text=y", "option 'text' stands twice"),
        ("a.csv?text=words", "name the columns in the source, as in ?a=question&b=answer"),
        ("a.csv,a.jsonl", "\"('a.csv', 'a.jsonl')\""),
        ("a.csv?text=text,a.csv?text=text", "\"('a.csv?text=text', 'a.csv?text=text')\""),
        ("a.csv,missing.csv", "\"('a.csv', 'missing.csv')\""),
        ("*.jsonl", "/a.jsonl')\""),
    ],
)
def test_a_mistake_in_a_source_is_named(text: str, expected: str, tmp_path: Path) -> None:
    save(tmp_path / "a.csv", excel(QUOTED))
    save(tmp_path / "a.jsonl", json.dumps(QUOTED[0]))
    assert expected in says(text, "labelled", tmp_path)


def test_a_file_whose_name_has_a_comma_is_a_file(tmp_path: Path) -> None:
    save(tmp_path / "a,b.csv", excel(QUOTED))
    save(tmp_path / "a", ""), save(tmp_path / "TRAIN.CSV", excel(QUOTED))
    for name in ("a,b.csv", "."):
        assert len(prepare(name, "labelled", str(tmp_path), str(tmp_path / "cache"))) == len(QUOTED)


# ---- JSON ----------------------------------------------------------------------------------


@given(rows=tables(texts), ascii=st.booleans())
@one_folder
def test_json_lines_of_the_hub(rows: Rows, ascii: bool, tmp_path: Path) -> None:
    more = [{**row, "idx": i, "score": float("nan")} for i, row in enumerate(rows)]
    text = "".join(json.dumps(row, ensure_ascii=ascii) + "\n" for row in more)
    assert read_or_refused(save(tmp_path / "a.json", text), "labelled", rows)
    for indent, jq in ((None, "'.[]'"), (1, "'.[]'")):
        path = save(tmp_path / "b.json", json.dumps(more, indent=indent))
        assert refusal(path, "labelled").startswith(f"{path}:1: ") and f"jq -c {jq} FILE" in refusal(path, "labelled")
    assert "jq -c . FILE" in refusal(save(tmp_path / "b.json", json.dumps(more[0], indent=1)), "labelled")


@given(text=texts, start=st.integers(0, 3))
@one_folder
def test_spans_of_label_studio_and_doccano_are_refused(text: str, start: int, tmp_path: Path) -> None:
    span = {"start": start, "end": start + 1, "text": text, "labels": ["PER"]}
    doccano = {"id": 1, "text": text, "label": [[start, start + 1, "PER"]]}
    studio = {"id": 1, "data": {"text": text}, "annotations": [{"result": [{"value": span}]}]}
    for row in (doccano, studio, {"id": 1, "text": text, "label": [span]}):
        path = save(tmp_path / "a.jsonl", json.dumps(row))
        assert "exported as CoNLL" in refusal(path, "ner")
        assert refusal(path, "labelled") and refusal(path, "ner", columns={"tokens": "text", "tags": "label"})
    assert "jq" in refusal(save(tmp_path / "b.json", json.dumps([studio], indent=2)), "ner")
    path = save(tmp_path / "a.csv", excel([{"text": text, "label": json.dumps([span])}]))
    assert "'label' is a list" in refusal(path, "labelled")


@given(text=texts, label=labels)
@one_folder
def test_classes_of_label_studio_and_doccano(text: str, label: str, tmp_path: Path) -> None:
    path = save(tmp_path / "a.jsonl", json.dumps({"id": 1, "text": text, "label": [label]}))
    assert ":1: 'label' is of type list, not text; give" in refusal(path, "labelled")
    path = save(tmp_path / "b.jsonl", json.dumps({"id": 1, "text": text, "sentiment": label, "lead_time": 1.5}))
    assert read_or_refused(path, "labelled", [{"text": text, "label": label}], columns={"label": "sentiment"})


# ---- what the project writes ---------------------------------------------------------------


@given(rows=st.lists(st.fixed_dictionaries({"a": texts, "b": texts}), min_size=1, max_size=5))
@one_folder
def test_filtered_pairs_come_back(rows: Rows, tmp_path: Path) -> None:
    filter_pairs.write_rows(tmp_path / "train.jsonl.xz", rows)
    assert read_or_refused(tmp_path / "train.jsonl.xz", "pairs", rows)
