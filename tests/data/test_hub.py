"""Datasets of the Hugging Face hub. Nothing is downloaded: folders laid out like a hub dataset stand for it."""

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxprefit.data import hub
from jaxprefit.data.records import to_iob2
from jaxprefit.data.sources import prepare
from jaxprefit.errors import UserError

NUNER = [
    ("Ada Lovelace met Babbage in London.", "['Ada Lovelace <> person', 'London <> city', 'Paris <> city']"),
    ("London calls; london falls.", "['London <> city <> where people live']"),
    ("The row is broken.", "['row <> "),
    ("Nothing here.", "[]"),
]


def rows(source: Any) -> list[dict]:
    return [source[i] for i in range(len(source))]


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hub_cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    module = pytest.importorskip("datasets", reason="the extra hub is not installed")
    monkeypatch.setattr(module.config, "HF_DATASETS_CACHE", tmp_path / "hub_cache")
    return module


def message(text: str, kind: str, tmp_path: Path) -> str:
    with pytest.raises(UserError) as error:
        prepare(text, kind, str(tmp_path), str(tmp_path / "cache"))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_spans_become_words_and_tags() -> None:
    record, missed = hub.tag_spans(*NUNER[0])
    assert record["tokens"] == ["Ada", "Lovelace", "met", "Babbage", "in", "London", "."]
    assert record["tags"] == ["B-person", "I-person", "O", "O", "O", "B-city", "O"]
    assert missed == 1  # Paris


def test_every_occurrence_is_tagged_and_case_counts_where_it_can() -> None:
    tags, missed = hub.tag_spans(*NUNER[1])
    assert tags["tags"] == ["B-city", "O", "O", "O", "O", "O"] and missed == 0
    assert hub.tag_spans("in LONDON", ["London <> city"])[0]["tags"] == ["O", "B-city"]
    assert hub.tag_spans("York, York", ["York <> city"])[0]["tags"] == ["B-city", "O", "B-city"]


def test_the_longer_span_wins_and_the_one_inside_counts_as_missed() -> None:
    record, missed = hub.tag_spans("New York Times", ["New York <> city", "New York Times <> newspaper"])
    assert record["tags"] == ["B-newspaper", "I-newspaper", "I-newspaper"] and missed == 1


@pytest.mark.parametrize("spans", ["not a list", "['a <> b', 3]", "['open <> ", 3, None, "__import__('os')"])
def test_spans_that_are_no_list(spans: Any) -> None:
    with pytest.raises(hub.BadSpans):
        hub.tag_spans("a text", spans)


@given(st.text("ab C.", max_size=20), st.lists(st.tuples(st.text("ab C.", max_size=5), st.sampled_from(["x", "y z"]))))
def test_tags_are_valid_iob2(text: str, spans: list[tuple[str, str]]) -> None:
    record, missed = hub.tag_spans(text, [f"{span} <> {concept}" for span, concept in spans])
    assert len(record["tokens"]) == len(record["tags"]) and 0 <= missed <= len(spans)
    assert to_iob2(record["tags"], "iob2") == record["tags"]
    assert "".join(record["tokens"]) == "".join(text.split())


def test_a_dataset_like_nuner(datasets: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "jaxprefit")
    folder = tmp_path / "nuner"
    folder.mkdir()
    table = [{"input": text, "output": spans} for text, spans in NUNER]
    datasets.Dataset.from_list(table).to_csv(folder / "train.csv")
    source = prepare("hub:nuner?format=spans&tokens=input&tags=output", "ner", str(tmp_path), str(tmp_path / "cache"))
    assert [r["tokens"][0] for r in rows(source)] == ["Ada", "London", "Nothing"]
    assert source.types == ("city", "person") and source.dropped == 1
    out = " ".join(caplog.messages)
    assert "1 entities whose text does not stand" in out and "1 rows" in out


def test_class_indices_become_names(datasets: Any, tmp_path: Path) -> None:
    names = ["O", "art-film", "person"]
    features = datasets.Features(
        {"words": datasets.List(datasets.Value("string")), "fine": datasets.List(datasets.ClassLabel(names=names))}
    )
    table = [{"words": ["Ada", "Lovelace", "saw", "Psycho"], "fine": [2, 2, 0, 1]}]
    (tmp_path / "few/coarse").mkdir(parents=True)
    datasets.Dataset.from_list(table, features=features).to_parquet(tmp_path / "few/train.parquet")
    source = prepare("hub:few?tokens=words&tags=fine&scheme=io", "ner", str(tmp_path), str(tmp_path / "cache"))
    assert rows(source) == [{"tokens": table[0]["words"], "tags": ["B-person", "I-person", "O", "B-art-film"]}]


def test_labels_splits_and_subsets(datasets: Any, tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    config = "configs:\n" + "".join(
        f"- config_name: {c}\n  data_files:\n  - split: train\n    path: {c}/train.parquet\n"
        f"  - split: test\n    path: {c}/test.parquet\n"
        for c in ("first", "second")
    )
    for subset in ("first", "second"):
        for split, labels in (("train", [1, 0, 1]), ("test", [0, -1])):
            table = [{"text": f"{subset} {split} {i}", "label": label} for i, label in enumerate(labels)]
            (tmp_path / "many" / subset).mkdir(parents=True, exist_ok=True)
            file = tmp_path / "many" / subset / f"{split}.parquet"
            datasets.Dataset.from_list(table, features=features).to_parquet(file)
    (tmp_path / "many/README.md").write_text(f"---\n{config}---\n")
    root, cache = str(tmp_path), str(tmp_path / "cache")
    source = prepare("hub:many?subset=second", "labelled", root, cache)
    assert [r["label"] for r in rows(source)] == ["yes", "no", "yes"] and source[0]["text"] == "second train 0"
    assert prepare("hub:many?subset=first&limit=2", "labelled", root, cache).rows == 2
    assert prepare("hub:many?subset=first", "text", root, cache)[0] == {"text": "first train 0"}
    assert "hub" in message("hub:many?subset=first&split=test", "labelled", tmp_path)  # a row without a class
    assert "third" in message("hub:many?subset=third", "labelled", tmp_path)
    assert "'txt'" in message("hub:many?subset=first&text=txt", "labelled", tmp_path)
    assert "format 'spans'" in message("hub:many?subset=first&format=spans", "labelled", tmp_path)


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'jaxprefit[hub]'" in message("hub:some/name", "ner", tmp_path)


def test_subset_is_an_option_of_the_hub_alone(tmp_path: Path) -> None:
    assert "option 'subset' is unknown" in message("tfds:name?subset=x", "ner", tmp_path)
