"""Datasets by name: every entry is usable, groups are complete, and @NAME in a config means what the entry says."""

import pytest

from configs import datasets, default
from configs.datasets import DATASETS
from jaxprefit.data import sources
from jaxprefit.data.records import KINDS, SCHEMES
from jaxprefit.data.registry import Dataset, concepts, resolve
from jaxprefit.errors import UserError

ENTRIES = (
    Dataset("tweets", "labelled", "tc/tweets?blank=skip&label=mood", "MIT", ("all",)),
    Dataset("news", "ner", "tfds:news?tags=ner", "MIT", ("all",), {"PER": "person"}),
    Dataset("answers", "pairs", "hub:some/answers?subset=x/y&a=question", "MIT", ("all",)),
    Dataset("web", "ner", "hub:some/web?format=spans&tokens=input&tags=output&split=entity", "MIT"),
)


@pytest.mark.parametrize("entry", DATASETS, ids=lambda e: e.name)
def test_every_entry_is_usable(entry: Dataset) -> None:
    assert entry.kind in KINDS and entry.licence
    address, options = sources._parse(entry.source, entry.kind)  # raises for an option that does not exist
    assert address and options.get("scheme", "iob2") in SCHEMES
    assert resolve([f"@{entry.name}"], entry.kind, DATASETS) == (entry.source,)
    (as_text,) = resolve([f"@{entry.name}"], "text", DATASETS)
    assert sources._parse(as_text, "text")[0] == address
    assert all(name == name.lower() and name.strip() for name in entry.concepts.values())


def test_names_are_unique_and_no_group() -> None:
    names = [entry.name for entry in DATASETS]
    assert len(set(names)) == len(names)
    assert not set(names) & {group for entry in DATASETS for group in entry.groups}


def test_groups_are_complete() -> None:
    assert len(resolve(["@suite21"], "ner", DATASETS)) == 9
    assert len(resolve(["@suite21"], "labelled", DATASETS)) == 12
    assert len(resolve(["@prefit"], "ner", DATASETS)) == 22
    assert len(resolve(["@prefit"], "pairs", DATASETS)) == 5
    assert "tc/tweet_hate?blank=skip" in resolve(["@suite21"], "labelled", DATASETS)
    assert not {"tc/sst5", "tc/sms_spam"} & set(resolve(["@suite21"], "labelled", DATASETS))


def test_the_default_config_names_the_registry() -> None:
    assert datasets.__doc__ and "@suite21" in datasets.__doc__
    assert default.get_config().data.drop_overlap == ""


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("mine/file.jsonl?text=x", "labelled", ("mine/file.jsonl?text=x",)),
        ("@news", "ner", ("tfds:news?tags=ner",)),
        ("@news?split=test&limit=5", "ner", ("tfds:news?tags=ner&split=test&limit=5",)),
        ("@news?tags=other", "ner", ("tfds:news?tags=other",)),
        ("@all", "pairs", ("hub:some/answers?subset=x/y&a=question",)),
        ("@all?limit=1", "labelled", ("tc/tweets?blank=skip&label=mood&limit=1",)),
        ("@answers", "text", ("hub:some/answers?subset=x/y&text=question,b",)),
        ("@web", "text", ("hub:some/web?split=entity&text=input",)),
        ("@tweets", "text", ("tc/tweets?blank=skip&text=text",)),
    ],
)
def test_what_a_name_stands_for(text: str, kind: str, expected: tuple[str, ...]) -> None:
    assert resolve([text], kind, ENTRIES) == expected


@pytest.mark.parametrize(
    ("text", "kind", "pieces"),
    [
        ("@nws", "ner", ("'@nws'", "did you mean '@news'?")),
        ("@zzzzzz", "ner", ("'@zzzzzz'", "configs/datasets.py")),
        ("@tweets", "ner", ("'@tweets'", "'labelled' records where 'ner'")),
    ],
)
def test_a_name_that_is_none(text: str, kind: str, pieces: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as error:
        resolve([text], kind, ENTRIES)
    assert "\n" not in str(error.value)
    assert [piece for piece in pieces if piece not in str(error.value)] == []


def test_concept_names_of_a_source() -> None:
    assert concepts("tfds:news", ["PER", "LOC"], ENTRIES) == {"PER": "person"}
    assert concepts("elsewhere", ["PER"], ENTRIES) == concepts("tfds:news", ["LOC"], ENTRIES) == {}
    assert set(concepts("ner_pf/bio_craft", ["GGP", "SO", "new"], DATASETS)) == {"GGP", "SO"}
