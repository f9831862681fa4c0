"""Concepts of the NER family: names, the vocabulary over sources, and the few that a batch is about."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.model_files import tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprefit.data import sources
from jaxprefit.data.names import read_names
from jaxprefit.data.packing import Layout
from jaxprefit.errors import UserError
from jaxprefit.families import NerFamily
from jaxprefit.families.concepts import Vocabulary, contains
from jaxprefit.families.mixture import collate


def source(name: str, *types: str, **names: str) -> SimpleNamespace:
    """As much of a prepared source as a vocabulary reads."""
    return SimpleNamespace(name=name, types=types, names=names)


# Names


def written(folder: Path, content: object) -> Path:
    file = folder / "names.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_names_of_a_mapping_file_come_before_the_rule(tmp_path: Path) -> None:
    names = read_names(written(tmp_path, {"SO": "  Sequence\n Ontology term "}), "craft", ("CHEBI", "SO"))
    assert names == {"SO": "sequence ontology term"}
    v = Vocabulary.of([source("craft", "CHEBI", "SO", **names)])
    assert v.names == ("chemical entity", "sequence ontology term")
    assert v.index == {"craft": {"CHEBI": 0, "SO": 1}}


@pytest.mark.parametrize(
    "content, message",
    [
        ({"CHEBBI": "x"}, "'CHEBBI' is not an entity type of source 'craft'; did you mean 'CHEBI'?"),
        ({"x": "x"}, "'x' is not an entity type of source 'craft'; it has 'CHEBI', 'SO'"),
        ({"SO": " "}, "the name of 'SO' is \" \"; it must be a text"),
        ({"SO": 3}, "the name of 'SO' is 3; it must be a text"),
        (["SO"], "must hold one JSON object"),
        ("{", "not JSON"),
    ],
)
def test_a_mistake_in_a_mapping_file_is_one_line(tmp_path: Path, content: object, message: str) -> None:
    file = written(tmp_path, content)
    with pytest.raises(UserError) as caught:
        read_names(file, "craft", ("CHEBI", "SO"))
    assert message in str(caught.value) and str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_mapping_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="names.json: No such file.*of source 'craft'"):
        read_names(tmp_path / "names.json", "craft", ("SO",))


def test_a_source_names_its_mapping_file(tmp_path: Path) -> None:
    (tmp_path / "bio.jsonl").write_text('{"tokens": ["a", "b"], "tags": ["B-GGP", "O"]}\n')
    written(tmp_path, {"GGP": "gene"})

    def prepared(text: str, kind: str = "ner") -> dict[str, str]:
        return sources.prepare(text, kind, str(tmp_path), str(tmp_path / "cache")).names

    assert prepared("bio.jsonl") == {}
    assert prepared("bio.jsonl?names=names.json") == {"GGP": "gene"}
    written(tmp_path, {"GGP": "gene", "SO": "sequence feature"})
    with pytest.raises(UserError, match="'SO' is not an entity type"):
        prepared("bio.jsonl?names=names.json")
    assert prepared("bio.jsonl?names=names.json&limit=1")["SO"]  # the first rows need not hold every type
    with pytest.raises(UserError, match="option 'names' is unknown"):
        prepared("bio.jsonl?names=names.json", "pairs")


def test_a_label_without_a_name_is_a_user_error() -> None:
    with pytest.raises(UserError, match="'odd': no readable name can be made of its entity type '_'.*names=FILE"):
        Vocabulary.of([source("odd", "PER", "_")])
    assert Vocabulary.of([source("odd", "PER", "_", _="thing")]).names == ("person", "thing")


def test_a_source_without_entities_is_a_user_error() -> None:
    with pytest.raises(UserError, match="'empty' has no entity"):
        Vocabulary.of([source("news", "PER"), source("empty")])


def test_two_labels_may_share_a_concept() -> None:
    v = Vocabulary.of([source("a", "PER", "Person", "LOC"), source("b", "person")])
    assert v.names == ("location", "person")
    assert v.index == {"a": {"PER": 1, "Person": 1, "LOC": 0}, "b": {"person": 1}}
    assert v.annotated["a"].tolist() == [0, 1] and v.annotated["b"].tolist() == [1]


# The concepts of a batch


def test_no_place_stays_empty_where_sources_share_concepts() -> None:
    v = Vocabulary.of(
        [source(str(i), *(f"c{k:02d}" for k in ks)) for i, ks in enumerate((range(2, 25), [0], range(23)))]
    )
    assert len(v.choose(np.asarray([], np.int32), v.annotated, 24)) == 24


@settings(max_examples=100)
@given(st.data())
def test_chosen_concepts(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=4))
    starts = [data.draw(st.integers(0, 20)) for _ in sizes]
    v = Vocabulary.of(
        [source(str(i), *(f"c{k:02d}" for k in range(s, s + n))) for i, (s, n) in enumerate(zip(starts, sizes))]
    )
    everything = sorted({int(c) for pool in v.annotated.values() for c in pool})
    positives = np.asarray(data.draw(st.lists(st.sampled_from(everything), max_size=20)), np.int32)
    most = data.draw(st.integers(1, 60))
    chosen = v.choose(positives, v.annotated, most)
    assert chosen.dtype == np.int32 and chosen.tolist() == sorted(set(chosen.tolist()))
    assert set(chosen.tolist()) <= set(everything) and len(chosen) == min(most, len(everything))
    own = set(positives.tolist())
    assert own <= set(chosen.tolist()) if len(own) <= most else set(chosen.tolist()) <= own
    np.testing.assert_array_equal(chosen, v.choose(positives, reversed([*v.annotated]), most))
    for name, pool in v.annotated.items():
        np.testing.assert_array_equal(v.annotates(name, chosen), np.isin(chosen, pool))


def test_the_commonest_positives_stay() -> None:
    v = Vocabulary.of([source("a", *"abcdefgh")])
    assert v.choose(np.asarray([7, 3, 7, 5, 5, 1]), ["a"], 2).tolist() == [5, 7]


def test_only_concepts_of_the_batchs_own_sources_are_drawn() -> None:
    v = Vocabulary.of([source("a", *"abcd"), source("b", *"efgh")])
    assert v.choose(np.asarray([], np.int32), ["b"], 8).tolist() == [4, 5, 6, 7]


def test_a_small_source_is_drawn_whole_beside_a_large_one() -> None:
    v = Vocabulary.of([source("large", *(f"t{i:03d}" for i in range(500))), source("small", "x", "y", "z")])
    chosen = v.choose(np.asarray([4, 9]), ["large", "small"], 40)
    assert len(chosen) == 40 and {4, 9, 500, 501, 502} <= set(chosen.tolist())


def test_other_batches_draw_other_negatives() -> None:
    v = Vocabulary.of([source("large", *(f"t{i:03d}" for i in range(500)))])
    drawn = [set(v.choose(np.asarray([i]), ["large"], 60).tolist()) for i in range(20)]
    assert len(set().union(*drawn)) > 400


def test_contains() -> None:
    assert contains(np.asarray([2, 5]), np.asarray([5, 1, 2, 9])).tolist() == [True, False, True, False]


# A vocabulary of NuNER's size

WIDE = 200_000


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_a_batch_does_not_grow_with_the_vocabulary(loss: str) -> None:
    began = time.process_time()  # of this process: the machine may have other work
    wide = source("wide", *(f"Kind_{i}_of_thing" for i in range(WIDE)))
    news = source("news", "PER", "LOC")
    settings = {"max_length": 16, "loss": loss, "concept_encoder": "frozen", "max_concepts": 64}
    family = NerFamily.create(settings, [wide, news], tokenizer())
    assert len(family.vocabulary.names) == WIDE + 2
    rng = np.random.default_rng(0)
    examples = []
    for i in range(300):
        tag = f"B-Kind_{rng.integers(WIDE)}_of_thing" if i % 2 else "B-PER"
        examples.append(family.encode_record({"tokens": ["the", "cat"], "tags": ["O", tag]}, ["news", "wide"][i % 2]))
    layout = Layout(8, 64, 8)
    for _ in range(20):
        placed, batch = collate(family, examples, layout)
    assert len(placed) == 64 and batch["concepts"].shape == (64,) and batch["annotated"].shape == (8, 8, 64)
    assert sum(a.nbytes for a in batch.values()) < 20_000
    person, location = family.vocabulary.index["news"].values()
    assert {person, location} <= set(batch["concepts"].tolist())
    head = {
        "concepts": jnp.asarray(rng.normal(size=(WIDE + 2, 8)), jnp.float32),
        "projection": {"kernel": jnp.eye(8)},
        **{"log_scale": 0.0, "bias": 0.0, "outside": jnp.ones(8)},
    }
    table = jnp.asarray(rng.normal(size=(97, 8)), jnp.float32)
    value, metrics = jax.jit(lambda h, b: family.loss(h, lambda ids, segments: table[ids], b))(head, batch)
    assert np.isfinite(value) and metrics["dropped"] == 0
    assert time.process_time() - began < 40
