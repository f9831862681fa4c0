"""From records to batches: tokenisation that keeps words aligned, and the mixture of sources."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from golden.model_files import VOCABULARY, tokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxprefit.data.builders import Prepared, Source, prepare
from jaxprefit.data.encode import encode_text, encode_words, pad_ids
from jaxprefit.data.mixture import Slice, held_out_batches, mixture, split_held_out
from jaxprefit.errors import UserError
from jaxprefit.families import ClassificationFamily, Family, NerFamily

LOWER, CASED = tokenizer(), tokenizer(lower=False)
# As LOWER, but its special tokens are not registered as such, as in a tokenizer made from a bare vocabulary.
BARE = tokenizers.Tokenizer.from_str(
    tokenizers.BertWordPieceTokenizer({token: i for i, token in enumerate(VOCABULARY)}).to_str()
)
CLS, SEP, UNK = (VOCABULARY.index(t) for t in ("[CLS]", "[SEP]", "[UNK]"))


def names(ids: np.ndarray) -> list[str]:
    return [VOCABULARY[i] for i in ids]


# Words


def test_words_start_where_their_first_sub_word_stands() -> None:
    ids, first = encode_words(LOWER, ["Hello", "isn't", "sat-on", "cat"], 64)
    assert names(ids)[1:-1] == ["hello", "i", "##s", "##n", "'", "t", "sat", "-", "on", "cat"]
    assert first == [1, 2, 7, 10]
    assert (ids.dtype, ids[0], ids[-1]) == (np.int32, CLS, SEP)


@pytest.mark.parametrize("dropped", ["\u200b", "\u0000", "\u0301", "", " ", "\ufe0f"])
def test_a_word_that_the_tokenizer_drops_stands_as_unknown(dropped: str) -> None:
    ids, first = encode_words(LOWER, [dropped, "the", dropped, "cat", dropped], 64)
    assert [int(ids[i]) for i in first] == [UNK, VOCABULARY.index("the"), UNK, VOCABULARY.index("cat"), UNK]


def test_a_zero_width_character_inside_a_word_moves_nothing() -> None:
    ids, first = encode_words(LOWER, ["c\u200bat", "on"], 64)
    assert names(ids) == ["[CLS]", "cat", "on", "[SEP]"] and first == [1, 2]


def test_only_words_that_start_before_the_last_place_have_a_position() -> None:
    words = ["the", "xxx", "cat"]  # [CLS] the x ##x ##x cat [SEP]
    for max_length, positions in ((7, [1, 2, 5]), (6, [1, 2]), (4, [1, 2]), (3, [1]), (2, [])):
        ids, first = encode_words(LOWER, words, max_length)
        assert first == positions
        assert len(ids) == max_length and (ids[0], ids[-1]) == (CLS, SEP)


@pytest.mark.parametrize("made", [LOWER, CASED, BARE], ids=["lower", "cased", "bare"])
@settings(max_examples=150, deadline=None)
@given(words=st.lists(st.text(max_size=8), max_size=8), max_length=st.integers(2, 20))
@example(words=["[SEP]", "[UNK]x", "[PAD]"], max_length=20)
@example(words=["\u200b", "\u200b"], max_length=3)
def test_any_words_can_be_encoded(made: tokenizers.Tokenizer, words: list[str], max_length: int) -> None:
    ids, first = encode_words(made, words, max_length)
    assert 2 <= len(ids) <= max_length and (ids[0], ids[-1]) == (CLS, SEP)
    assert len(first) <= len(words)
    assert first == sorted(set(first)) and all(1 <= p < len(ids) - 1 for p in first)
    whole, positions = encode_words(made, words, 10_000)
    assert len(positions) == len(words)  # with room enough, every word has a place
    assert first == [p for p in positions if p < max_length - 1]
    np.testing.assert_array_equal(ids[:-1], whole[: len(ids) - 1])


# Texts


def test_a_long_text_is_cut_before_its_last_special_token() -> None:
    assert names(encode_text(LOWER, "the cat sat on", 64)) == ["[CLS]", "the", "cat", "sat", "on", "[SEP]"]
    assert names(encode_text(LOWER, "the cat sat on", 6)) == ["[CLS]", "the", "cat", "sat", "on", "[SEP]"]
    assert names(encode_text(LOWER, "the cat sat on", 5)) == ["[CLS]", "the", "cat", "sat", "[SEP]"]
    assert names(encode_text(LOWER, "", 5)) == ["[CLS]", "[SEP]"]


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60), max_length=st.integers(2, 20))
def test_any_text_can_be_encoded(text: str, max_length: int) -> None:
    ids = encode_text(LOWER, text, max_length)
    assert 2 <= len(ids) <= max_length and ids.dtype == np.int32 and (ids[0], ids[-1]) == (CLS, SEP)


def test_padding_and_its_mask() -> None:
    ids, mask = pad_ids([np.asarray([5, 6, 7]), np.asarray([8])], 4, -1)
    np.testing.assert_array_equal(ids, [[5, 6, 7, -1], [8, -1, -1, -1]])
    np.testing.assert_array_equal(mask, [[1, 1, 1, 0], [1, 0, 0, 0]])
    assert (ids.dtype, mask.dtype) == (np.int32, np.bool_)


# The mixture: three sources of pairs whose texts tell where they come from.

SIZES = {"small": 20, "middle": 60, "large": 120}
BATCH = 16


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Prepared]:
    folder = tmp_path_factory.mktemp("pairs")
    made = {}
    for name, rows in SIZES.items():
        lines = [json.dumps({"a": f"{name} {i}", "b": f"answer {name} {i}"}) + "\n" for i in range(rows)]
        (folder / f"{name}.jsonl").write_text("".join(lines))
        source = Source(name=name, kind="pairs", path=str(folder / f"{name}.jsonl"))
        made[name] = prepare(source, folder / "cache")
    return made


@pytest.fixture(scope="module")
def parts(prepared: dict[str, Prepared]) -> list[tuple[str, Slice]]:
    return [(name, split_held_out(source, 6)[0]) for name, source in prepared.items()]


FAMILY = ClassificationFamily(LOWER, 24, 0.05)


def key_of(name: str, row: int) -> int:
    return FAMILY.encode_record({"a": f"{name} {row}", "b": ""}, name)["a_key"]


ORIGIN = {key_of(name, i): (name, i) for name, rows in SIZES.items() for i in range(rows)}


def rows_of(batch: dict) -> list[tuple[str, int]]:
    return [ORIGIN[int(key)] for key in batch["a_key"]]


def drawn(parts: list[tuple[str, Slice]], weights: dict[str, float], batches: int, seed: int = 0) -> list:
    stream = iter(mixture(FAMILY, parts, weights, BATCH, seed))
    return [row for batch in itertools.islice(stream, batches) for row in rows_of(batch)]


def test_the_seed_decides_the_stream(parts: list[tuple[str, Slice]]) -> None:
    first = drawn(parts, {}, 20, seed=1)
    assert first == drawn(parts, {}, 20, seed=1)
    assert first != drawn(parts, {}, 20, seed=2)


@pytest.mark.parametrize(
    "weights, shares",
    [
        ({}, {name: size / sum(SIZES.values()) for name, size in SIZES.items()}),
        ({"small": 3.0, "middle": 1.0, "large": 1.0}, {"small": 0.6, "middle": 0.2, "large": 0.2}),
        ({"small": 2.0}, {"small": 0.5, "middle": 0.25, "large": 0.25}),  # 1 where not named
        ({"small": 1.0, "middle": 0.0, "large": 0.0}, {"small": 1.0, "middle": 0.0, "large": 0.0}),
        ({"large": 0.0}, {"small": 0.5, "middle": 0.5, "large": 0.0}),
    ],
)
def test_sources_have_their_shares(
    weights: dict[str, float], shares: dict[str, float], parts: list[tuple[str, Slice]]
) -> None:
    rows = drawn(parts, weights, 50)
    for name, share in shares.items():
        error = np.sqrt(share * (1 - share) / len(rows))
        assert abs(sum(n == name for n, _ in rows) / len(rows) - share) <= 3 * error, name


def test_an_epoch_shows_every_training_row_once_and_the_next_in_another_order(
    prepared: dict[str, Prepared],
) -> None:
    part = Slice(prepared["middle"], 0, 48)
    rows = [i for _, i in drawn([("middle", part)], {}, 6)]
    assert sorted(rows[:48]) == sorted(rows[48:]) == list(range(48))
    assert rows[:48] != rows[48:] and rows[:48] != sorted(rows[:48])


@pytest.mark.parametrize("weights", [{}, {"small": 5.0}])
def test_a_stream_resumes_exactly_from_its_state_as_json(
    weights: dict[str, float], parts: list[tuple[str, Slice]]
) -> None:
    stream = iter(mixture(FAMILY, parts, weights, BATCH, 3))
    for _ in range(23):  # small sources are in their second epoch and further
        next(stream)
    state = json.dumps(stream.get_state())
    wanted = [next(stream) for _ in range(10)]

    other = iter(mixture(FAMILY, parts, weights, BATCH, 3))
    next(other)
    other.set_state(json.loads(state))
    for batch in wanted:
        found = next(other)
        assert set(found) == set(batch)
        for name in batch:
            np.testing.assert_array_equal(found[name], batch[name])


@pytest.mark.parametrize(
    "weights, expected",
    [
        ({"smal": 1.0, "large": 2.0}, "data.tc.weights names 'smal', which is not a source (small, middle, large)"),
        ({"small": -1.0}, "must be non-negative with a positive sum"),
        ({"small": 0.0, "middle": 0.0, "large": 0.0}, "must be non-negative with a positive sum"),
    ],
)
def test_wrong_weights_are_named(weights: dict[str, float], expected: str, parts: list[tuple[str, Slice]]) -> None:
    with pytest.raises(UserError) as error:
        mixture(FAMILY, parts, weights, BATCH, 0)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_a_mixture_needs_rows(prepared: dict[str, Prepared]) -> None:
    with pytest.raises(UserError, match="'tc' has no data source"):
        mixture(FAMILY, [], {}, BATCH, 0)
    with pytest.raises(UserError, match="'small' has no rows left"):
        mixture(FAMILY, [("small", Slice(prepared["small"], 0, 0))], {}, BATCH, 0)


def test_held_out_rows_are_never_trained_on(prepared: dict[str, Prepared], parts: list[tuple[str, Slice]]) -> None:
    held_out = [(name, split_held_out(source, 6)[1]) for name, source in prepared.items()]
    assert [len(part) for _, part in held_out] == [2, 6, 6]  # at most a tenth
    for (_, train), (name, last) in zip(parts, held_out):
        assert [last[i] for i in range(len(last))] == [
            prepared[name][i] for i in range(SIZES[name] - len(last), SIZES[name])
        ]
        assert len(train) + len(last) == SIZES[name]
    batches = held_out_batches(FAMILY, held_out, 7, seed=0)
    kept = [row for batch in batches for row in rows_of(batch)]
    assert len(batches) == 2 and len(set(kept)) == 14
    assert not set(kept) & set(drawn(parts, {}, 60))
    again = held_out_batches(FAMILY, held_out, 7, seed=0)
    assert [rows_of(b) for b in again] == [rows_of(b) for b in batches]


def test_batches_say_which_source_a_row_comes_from(tmp_path: Path) -> None:
    made = []
    for name, tag in (("one", "B-PER"), ("two", "B-LOC")):
        rows = [{"tokens": [name, str(i)], "tags": [tag, "O"]} for i in range(10)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        made.append(prepare(Source(name=name, kind="ner", path=str(tmp_path / f"{name}.jsonl")), tmp_path / "cache"))
    settings = {"max_length": 16, "loss": "sigmoid", "concept_encoder": "frozen", "max_concepts": 8}
    family: Family = NerFamily.create(settings, made, LOWER)
    stream = iter(mixture(family, [(s.name, Slice(s, 0, 10)) for s in made], {}, 8, 0))
    for batch in itertools.islice(stream, 5):
        # Concepts are (location, person): each row's entity is of the one type that its source annotates.
        np.testing.assert_array_equal(batch["annotated"].argmax(1), batch["labels"].max(1))
        np.testing.assert_array_equal(batch["annotated"].sum(1), 1)
