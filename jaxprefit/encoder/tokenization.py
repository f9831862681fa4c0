"""Tokenisation and padding. Ids include [CLS] and [SEP] as the tokenizer's own template adds them, if it does."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers

from jaxprefit.encoder.cuts import Cuts, tagged_cuts, text_cuts
from jaxprefit.errors import UserError

TEXTS = ("a", "b", "negative", "text")  # fields of records that hold a running text


def encode_text(tokenizer: tokenizers.Tokenizer, text: str, max_length: int) -> np.ndarray:
    """Ids [1 <= n <= max_length] int32 of a text; a longer one is cut before the special tokens that close it.

    A text without a token, such as "" of a tokenizer that adds none, stands as the unknown token.
    """
    return counted_text(tokenizer, text, max_length)[0]


def counted_text(tokenizer: tokenizers.Tokenizer, text: str, max_length: int) -> tuple[np.ndarray, Cuts]:
    """As `encode_text`, and what was cut."""
    encoding = tokenizer.encode(text)
    return _cut(tokenizer, encoding, max_length), text_cuts(encoding, max_length, special_ends(encoding)[1])


def encode_words(
    tokenizer: tokenizers.Tokenizer, words: Sequence[str], max_length: int
) -> tuple[np.ndarray, list[int]]:
    """Ids [n <= max_length] of pre-split words, and the position of each word's first sub-word.

    The list of positions ends at the first word that does not start within `max_length`. A word that the tokenizer
    drops altogether (control characters, say) stands as the unknown token, so that positions and words stay aligned.
    """
    encoding, first = _aligned(tokenizer, words, max_length)
    return _cut(tokenizer, encoding, max_length), first


def counted_words(
    tokenizer: tokenizers.Tokenizer, words: Sequence[str], tags: Sequence[str], max_length: int
) -> tuple[np.ndarray, list[int], Cuts]:
    """As `encode_words`, and what of the words and of the entities in their `tags` was cut."""
    encoding, first = _aligned(tokenizer, words, max_length)
    cuts = tagged_cuts(tags, len(first), len(encoding.ids), max_length)
    return _cut(tokenizer, encoding, max_length), first, cuts


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
    end = max_length - special_ends(encoding)[1]  # the last place belongs to [SEP]
    for position, word in enumerate(encoding.word_ids):
        if word == len(first) and position < end:
            first.append(position)
    return encoding, first


def special_ends(encoding: tokenizers.Encoding) -> tuple[int, int]:
    """How many special tokens the tokenizer has put before a text and after it."""
    special = encoding.special_tokens_mask
    opening = special.index(0) if 0 in special else len(special)
    return opening, special[::-1].index(0) if 0 in special else 0


def pad_ids(rows: Sequence[np.ndarray], length: int, fill: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows padded with `fill` to [B, length] int32, and the mask [B, length] bool of real entries."""
    ids = np.full((len(rows), length), fill, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = True
    return ids, mask


def batches_by_length(
    rows: Sequence[np.ndarray], size: int, padded: Callable[[int], int]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Batches of about equal lengths and of few shapes: numbers of rows [n <= size], ids and mask [size, L].

    L is `padded` of the longest row. The last batch is filled up with copies of one of its rows.
    """
    order = np.argsort([len(row) for row in rows], kind="stable")
    for numbers in (order[i : i + size] for i in range(0, len(rows), size)):
        chosen = [rows[i] for i in numbers]
        ids, mask = pad_ids(chosen + chosen[:1] * (size - len(chosen)), padded(len(chosen[-1])))
        yield numbers, ids, mask


def _cut(tokenizer: tokenizers.Tokenizer, encoding: tokenizers.Encoding, max_length: int) -> np.ndarray:
    ids = encoding.ids
    if len(ids) > max_length:
        closing = special_ends(encoding)[1]
        ids = ids[: max_length - closing] + ids[len(ids) - closing :]
    return np.asarray(ids or [_unknown_id(tokenizer)], np.int32)


def _unknown_id(tokenizer: tokenizers.Tokenizer) -> int:
    unknown = tokenizer.token_to_id(_unknown_token(tokenizer))
    if unknown is None:
        raise UserError(
            "the tokenizer gives no token for an empty text and knows no unknown token; leave such texts out"
        )
    return unknown


def _unknown_token(tokenizer: tokenizers.Tokenizer) -> str:
    return getattr(tokenizer.model, "unk_token", None) or "[UNK]"
