"""How a config names its data: the text of a source, its options, generated text, the data root."""

import json
from pathlib import Path

import pytest

from jaxprefit.data import synthetic
from jaxprefit.data.sources import prepare
from jaxprefit.errors import UserError

LABELLED = [{"text": f"text {i}", "label": "odd" if i % 2 else "even"} for i in range(6)]


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "data")


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


def message(text: str, kind: str, root: str, cache: str) -> str:
    with pytest.raises(UserError) as error:
        prepare(text, kind, root, cache)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_under_the_root(root: str, cache: str) -> None:
    write_jsonl(Path(root, "mine/odd_even/train.jsonl"), LABELLED)
    write_jsonl(Path(root, "mine/odd_even/test.jsonl"), LABELLED[:2])
    source = prepare("mine/odd_even", "labelled", root, cache)
    assert [source[i] for i in range(len(source))] == LABELLED
    assert (source.name, source.types) == ("mine/odd_even", ("even", "odd"))
    assert len(prepare("mine/odd_even", "labelled", root, cache, split="test")) == 2
    assert len(prepare("mine/odd_even?split=train", "labelled", root, cache, split="test")) == 6


def test_limit_is_a_default_that_the_text_overrides(root: str, cache: str) -> None:
    write_jsonl(Path(root, "rows.jsonl"), LABELLED)
    assert len(prepare("rows.jsonl", "labelled", root, cache, limit=4)) == 4
    assert len(prepare("rows.jsonl?limit=2", "labelled", root, cache, limit=4)) == 2
    assert len(prepare("rows.jsonl?limit=0", "labelled", root, cache, limit=4)) == 6


def test_columns_by_heading(root: str, cache: str) -> None:
    Path(root).mkdir()
    Path(root, "pairs.csv").write_text("answer,my question\nfine,how are you\n")
    for heading in ("my question", "my%20question", " my question"):
        source = prepare(f"pairs.csv?a={heading}&b=answer", "pairs", root, cache)
        assert source[0] == {"a": "how are you", "b": "fine"}
    assert "did you mean 'my question'" in message("pairs.csv?a=my+question&b=answer", "pairs", root, cache)


def test_format_scheme_and_columns_by_number(root: str, cache: str) -> None:
    Path(root).mkdir()
    Path(root, "notes.tagged").write_text("Ada NNP x I-PER\nleft VBD x O\n\nRome NNP x I-LOC\n")
    source = prepare("notes.tagged?format=conll&scheme=iob1&tokens=0&tags=3", "ner", root, cache)
    assert source[0] == {"tokens": ["Ada", "left"], "tags": ["B-PER", "O"]}
    assert source.types == ("LOC", "PER")
    assert prepare("notes.tagged?format=conll&scheme=iob1&tags=-1", "ner", root, cache)[1]["tags"] == ["B-LOC"]


def test_an_absolute_path_needs_no_root(root: str, cache: str, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "elsewhere/rows.jsonl", LABELLED)
    assert len(prepare(str(file), "labelled", root, cache)) == 6
    assert len(prepare(str(file), "labelled", "", cache)) == 6


def test_the_root_comes_before_the_working_folder(
    root: str, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "rows.jsonl", LABELLED)
    assert len(prepare("rows.jsonl", "labelled", root, cache)) == 6
    write_jsonl(Path(root, "rows.jsonl"), LABELLED[:3])
    assert len(prepare("rows.jsonl", "labelled", root, cache)) == 3
    assert len(prepare("rows.jsonl", "labelled", "", cache)) == 6


def test_what_is_nowhere_is_named_under_the_root(root: str, cache: str) -> None:
    assert str(Path(root, "mine/none")) in message("mine/none", "labelled", root, cache)


@pytest.mark.parametrize(
    "text, kind, expected",
    [
        ("rows.jsonl?limt=3", "labelled", "option 'limt' is unknown; did you mean 'limit'?"),
        ("rows.jsonl?lable=y", "labelled", "option 'lable' is unknown; did you mean 'label'?"),
        ("rows.jsonl?tags=1", "pairs", "option 'tags' is unknown; known: split, limit, format, scheme, blank, a, b"),
        ("rows.jsonl?limit=many", "labelled", "limit must be a whole number, not 'many'"),
        ("rows.jsonl?limit=-1", "labelled", "limit must be a whole number, not '-1'"),
        ("rows.jsonl?limit", "labelled", "limit must be a whole number, not ''"),
        ("generated:ner?row=3", "ner", "option 'row' is unknown; did you mean 'rows'?"),
        ("generated:ner?rows=3.5", "ner", "rows must be a whole number, not '3.5'"),
        ("generated:ner?split=later", "ner", "no split 'later'"),
        ("generated:ner", "pairs", "gives 'ner' records where 'pairs' records are needed"),
        ("generated:poems", "ner", "gives 'poems' records where 'ner' records are needed"),
    ],
)
def test_a_mistake_in_an_option_is_named(text: str, kind: str, expected: str, root: str, cache: str) -> None:
    write_jsonl(Path(root, "rows.jsonl"), LABELLED)
    found = message(text, kind, root, cache)
    assert found.startswith(f"source '{text}'") and expected in found


@pytest.mark.parametrize("text", ["rows.jsonl?limit=²", "rows.jsonl?text=--1"])
def test_an_odd_number_is_a_user_error(text: str, root: str, cache: str) -> None:
    write_jsonl(Path(root, "rows.jsonl"), LABELLED)
    message(text, "labelled", root, cache)


def test_a_heading_of_digits_is_a_heading(root: str, cache: str) -> None:
    Path(root).mkdir()
    Path(root, "years.csv").write_text("2023,2024\nbefore,after\n")
    assert prepare("years.csv?a=2023&b=2024", "pairs", root, cache)[0] == {"a": "before", "b": "after"}


def test_text_from_several_columns(root: str, cache: str) -> None:
    write_jsonl(Path(root, "pairs/train.jsonl"), [{"a": "how are you", "b": "fine"}])
    assert prepare("pairs?text=a,b", "text", root, cache)[0] == {"text": "how are you fine"}
    assert "did you mean 'b'" in message("pairs?text=a,bb", "text", root, cache)


def test_rows_without_text_are_dropped_and_counted(root: str, cache: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "jaxprefit")
    write_jsonl(Path(root, "tweets.jsonl"), [LABELLED[0], {"text": " ", "label": "odd"}, *LABELLED[1:]])
    assert "tweets.jsonl:2: 'text' is blank" in message("tweets.jsonl", "labelled", root, cache)
    source = prepare("tweets.jsonl?blank=skip", "labelled", root, cache)
    assert [source[i] for i in range(len(source))] == LABELLED and source.dropped == 1
    assert caplog.messages == ["source tweets.jsonl: 1 rows without text dropped, 6 kept"]
    assert "blank is 'drop'; use refuse or skip" in message("tweets.jsonl?blank=drop", "labelled", root, cache)
    assert prepare("tweets.jsonl?blank=skip&limit=1", "labelled", root, cache).dropped == 0


GENERATED = {
    "ner": synthetic.ner_records,
    "pairs": synthetic.pairs,
    "labelled": synthetic.labelled_records,
    "text": synthetic.text_records,
}


@pytest.mark.parametrize("kind", GENERATED)
def test_generated_text_is_that_of_synthetic(kind: str, cache: str) -> None:
    source = prepare(f"generated:{kind}?rows=20&seed=3", kind, "", cache)
    assert [source[i] for i in range(len(source))] == GENERATED[kind](20, 3)
    again = prepare(f"generated:{kind}?rows=20&seed=3", kind, "", cache)
    assert again.directory == source.directory


def test_generated_splits_and_the_held_out_part_differ(cache: str) -> None:
    def texts(options: str, split: str = "") -> set[str]:
        source = prepare(f"generated:labelled?rows=40&{options}", "labelled", "", cache, split=split)
        return {source[i]["text"] for i in range(len(source))}

    assert texts("") == texts("split=train") == texts("", "train")
    assert texts("split=test") == texts("", "test") == texts("split=test", "train")
    for other in ("split=test", "split=dev", "held_out=1", "seed=1"):
        assert len(texts("") & texts(other)) < 4


def test_a_damaged_file_of_generated_text_is_written_anew(cache: str) -> None:
    first = prepare("generated:pairs?rows=5", "pairs", "", cache)
    (file,) = Path(cache).glob("generated_pairs_*.jsonl")
    file.write_text(json.dumps({"a": "not", "b": "generated"}) + "\n")
    second = prepare("generated:pairs?rows=5", "pairs", "", cache)
    assert [second[i] for i in range(5)] == [first[i] for i in range(5)]
