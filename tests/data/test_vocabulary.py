"""WordPiece vocabularies: the same in every process, and what they hold."""

import json
import subprocess
import sys

import pytest
import tokenizers
from helpers.paths import ROOT

from jaxprefit.data import synthetic
from jaxprefit.data.wordpiece import MAX_ALPHABET, SPECIAL, train_wordpiece

TRAIN = """
import sys
from jaxprefit.data import synthetic
from jaxprefit.data.wordpiece import train_wordpiece
sys.stdout.write(train_wordpiece(synthetic.corpus(3000, 0), 1500).to_str())
"""


@pytest.fixture(scope="module")
def trained() -> tokenizers.Tokenizer:
    return train_wordpiece(synthetic.corpus(3000, 0), 1500)


def test_the_same_bytes_in_other_processes(trained: tokenizers.Tokenizer) -> None:
    command = [sys.executable, "-c", TRAIN]
    root = ROOT
    others = [subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root, text=True) for _ in range(2)]
    assert [other.communicate(timeout=120)[0] for other in others] == [trained.to_str()] * 2


def test_the_tokenizer_is_a_plain_bert_tokenizer(trained: tokenizers.Tokenizer) -> None:
    assert [trained.token_to_id(token) for token in SPECIAL] == [0, 1, 2, 3, 4]
    assert trained.get_vocab_size() == 1500
    assert sorted(trained.get_vocab().values()) == list(range(1500))
    assert [t["content"] for t in json.loads(trained.to_str())["added_tokens"]] == list(SPECIAL)
    encoding = trained.encode("Book a t\u00e4ble.")
    assert encoding.tokens[0] == "[CLS]" and encoding.tokens[-1] == "[SEP]"
    assert "".join(t.removeprefix("##") for t in encoding.tokens[1:-1]) == "bookatable."


def test_frequent_words_are_whole_and_pieces_occur_twice() -> None:
    tokenizer = train_wordpiece(["the cat sat"] * 5 + ["the zebra"], 100)
    assert tokenizer.encode("the cat sat", add_special_tokens=False).tokens == ["the", "cat", "sat"]
    assert len(tokenizer.encode("zebra", add_special_tokens=False).tokens) > 1


def test_case_is_kept_where_asked() -> None:
    tokenizer = train_wordpiece(["Rome rome"] * 3, 100, lowercase=False)
    assert tokenizer.encode("Rome rome", add_special_tokens=False).tokens == ["Rome", "rome"]


def test_the_alphabet_has_a_limit_and_rare_characters_go() -> None:
    rare = [chr(0x4E00 + i) for i in range(MAX_ALPHABET)]
    tokenizer = train_wordpiece(["ab ab", *rare], 2000)
    held = set(tokenizer.get_vocab())
    assert {"a", "##b", "ab"} <= held and rare[-1] not in held
    assert tokenizer.encode(rare[-1], add_special_tokens=False).tokens == ["[UNK]"]


def test_the_alphabet_stays_whole_at_a_tiny_size() -> None:
    tokenizer = train_wordpiece(["abc"], 6)
    assert set(tokenizer.get_vocab()) == {*SPECIAL, "a", "b", "c", "##b", "##c"}
