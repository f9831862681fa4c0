"""Tokenisation that keeps words aligned, and padding."""

import numpy as np
import pytest
import tokenizers
from golden.model_files import VOCABULARY, tokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import processors

from jaxprefit.encoder.tokenization import batches_by_length, encode_text, encode_words, pad_ids

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


def ending(*closing: str, opening: tuple[str, ...] = ()) -> tokenizers.Tokenizer:
    """LOWER with another template around a text."""
    made = tokenizer()
    pairs = [(t, VOCABULARY.index(t)) for t in {*opening, *closing}]
    single = " ".join((*opening, "$A", *closing))
    made.post_processor = processors.TemplateProcessing(single=single, pair=f"{single} $B", special_tokens=pairs)
    return made


TEMPLATES = {
    "none": ending(),
    "no closing": ending(opening=("[CLS]",)),
    "two closing": ending("[SEP]", "[MASK]", opening=("[CLS]",)),
}


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=60, deadline=None)
@given(text=st.text(st.sampled_from("ab thecat[SEP]"), max_size=40), max_length=st.integers(4, 12))
@example(text="the cat sat [SEP]", max_length=4)
@example(text="", max_length=4)
def test_a_text_is_cut_as_the_library_cuts_it_whatever_closes_it(name: str, text: str, max_length: int) -> None:
    made = TEMPLATES[name]
    reference = tokenizers.Tokenizer.from_str(made.to_str())
    reference.enable_truncation(max_length)  # knows how many special tokens the template adds
    assert encode_text(made, text, max_length).tolist() == (reference.encode(text).ids or [UNK])
    words = text.split()
    ids, first = encode_words(made, words, max_length)
    cut = reference.encode(words, is_pretokenized=True)
    assert ids.tolist() == (cut.ids or [UNK])
    assert first == [cut.word_ids.index(i) for i in range(len(words)) if i in cut.word_ids]


@given(sizes=st.lists(st.integers(1, 30), max_size=20), size=st.integers(1, 6))
def test_batches_by_length_hold_every_row_once_in_one_shape_a_length(sizes: list[int], size: int) -> None:
    rows = [np.full(n, i + 1, np.int32) for i, n in enumerate(sizes)]
    seen = []
    for numbers, ids, mask in batches_by_length(rows, size, lambda longest: -(-longest // 10) * 10):
        assert ids.shape == mask.shape == (size, -(-max(sizes[i] for i in numbers) // 10) * 10)
        assert mask.any(1).all()  # no row is empty, not even one that only fills the batch up
        for number, row, real in zip(numbers, ids, mask):
            np.testing.assert_array_equal(row[real], rows[number])
            assert not row[~real].any()
        seen += numbers.tolist()
    assert sorted(seen) == list(range(len(rows))) and [sizes[i] for i in seen] == sorted(sizes)


def test_padding_and_its_mask() -> None:
    ids, mask = pad_ids([np.asarray([5, 6, 7]), np.asarray([8])], 4, -1)
    np.testing.assert_array_equal(ids, [[5, 6, 7, -1], [8, -1, -1, -1]])
    np.testing.assert_array_equal(mask, [[1, 1, 1, 0], [1, 0, 0, 0]])
    assert (ids.dtype, mask.dtype) == (np.int32, np.bool_)
