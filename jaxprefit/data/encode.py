"""Tokenisation and padding. Ids include [CLS] and [SEP] as the tokenizer's own template adds them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers

from jaxprefit.data.cuts import Cuts, tagged_cuts, text_cuts

TEXTS = ("a", "b", "negative", "text")  # fields of records that hold a running text


def encode_text(tokenizer: tokenizers.Tokenizer, text: str, max_length: int) -> np.ndarray:
    """Ids [n <= max_length] int32 of a text; a longer one is cut before its last special token."""
    return counted_text(tokenizer, text, max_length)[0]


def counted_text(tokenizer: tokenizers.Tokenizer, text: str, max_length: int) -> tuple[np.ndarray, Cuts]:
    """As `encode_text`, and what was cut."""
    encoding = tokenizer.encode(text)
    return _cut(encoding.ids, max_length), text_cuts(encoding, max_length)


def encode_words(
    tokenizer: tokenizers.Tokenizer, words: Sequence[str], max_length: int
) -> tuple[np.ndarray, list[int]]:
    """Ids [n <= max_length] of pre-split words, and the position of each word's first sub-word.

    The list of positions ends at the first word that does not start within `max_length`. A word that the tokenizer
    drops altogether (control characters, say) stands as the unknown token, so that positions and words stay aligned.
    """
    encoding, first = _aligned(tokenizer, words, max_length)
    return _cut(encoding.ids, max_length), first


def counted_words(
    tokenizer: tokenizers.Tokenizer, words: Sequence[str], tags: Sequence[str], max_length: int
) -> tuple[np.ndarray, list[int], Cuts]:
    """As `encode_words`, and what of the words and of the entities in their `tags` was cut."""
    encoding, first = _aligned(tokenizer, words, max_length)
    return _cut(encoding.ids, max_length), first, tagged_cuts(tags, len(first), len(encoding.ids), max_length)


def record_cuts(
    tokenizer: tokenizers.Tokenizer, record: Mapping[str, Any], max_length: int, prefixes: Mapping[str, str]
) -> Cuts:
    """What of a record of any kind is beyond `max_length`; `prefixes` by field are put before its texts."""
    if "tokens" in record:
        return counted_words(tokenizer, record["tokens"], record["tags"], max_length)[2]
    texts = (prefixes.get(field, "") + record[field] for field in TEXTS if record.get(field))
    return Cuts.total(counted_text(tokenizer, text, max_length)[1] for text in texts)


def _aligned(
    tokenizer: tokenizers.Tokenizer, words: Sequence[str], max_length: int
) -> tuple[tokenizers.Encoding, list[int]]:
    encoding = tokenizer.encode(list(words), is_pretokenized=True)
    present = set(encoding.word_ids)
    if any(i not in present for i in range(len(words))):
        unknown = _unknown_token(tokenizer)
        words = [w if i in present else unknown for i, w in enumerate(words)]
        encoding = tokenizer.encode(list(words), is_pretokenized=True)
    first: list[int] = []
    for position, word in enumerate(encoding.word_ids):
        if word == len(first) and position < max_length - 1:  # the last place belongs to [SEP]
            first.append(position)
    return encoding, first


def pad_ids(rows: Sequence[np.ndarray], length: int, fill: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows padded with `fill` to [B, length] int32, and the mask [B, length] bool of real entries."""
    ids = np.full((len(rows), length), fill, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = True
    return ids, mask


def _cut(ids: list[int], max_length: int) -> np.ndarray:
    return np.asarray(ids if len(ids) <= max_length else [*ids[: max_length - 1], ids[-1]], np.int32)


def _unknown_token(tokenizer: tokenizers.Tokenizer) -> str:
    return getattr(tokenizer.model, "unk_token", None) or "[UNK]"
