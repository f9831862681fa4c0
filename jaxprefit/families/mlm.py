"""Masked language modelling (MLM): hidden words are predicted from their text, after BERT (arXiv 1810.04805).

Whole words are masked, anew each time a text is seen (RoBERTa, arXiv 1907.11692). Of the chosen words 80 % are replaced
by [MASK], 10 % by random tokens, 10 % stay. With `masking='tfidf'` a word is chosen the more readily the larger its
tf * idf, so that what a text is about is predicted more often than its function words. How many tokens a word has plays
no part in either case.

A text longer than `max_length` gives a window of it, drawn anew each time and cut between words. The decoder is tied
to the encoder's word table and sees only the predicted positions, of which a row has a fixed number of places.
"""

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tokenizers

from jaxprefit.data.builders import Prepared
from jaxprefit.data.packing import Packing
from jaxprefit.encoder.cuts import Cuts
from jaxprefit.encoder.huggingface import Pretrained
from jaxprefit.encoder.tokenization import special_ends
from jaxprefit.encoder.transformer import gelu
from jaxprefit.errors import UserError
from jaxprefit.families.base import Encode, Family

MASKINGS = ("uniform", "tfidf")
MASKED, RANDOM = 0.8, 0.1  # shares of the chosen words; the rest stays as it is
HEADROOM = 1.25  # places for predictions in a row, over the number expected in a full one
NORM_EPS = 1e-12  # as BERT's
COUNTED = 20_000  # texts that document frequencies are taken from
CHECKED = 100  # texts of a source in which a word is looked for
NO_WORD = -1  # a special token's word
_LEFT, _MASKED, _RANDOM, _KEPT = range(4)  # what becomes of a word: not chosen, or chosen and ...


@dataclasses.dataclass(frozen=True)
class MlmFamily(Family):
    """Batch: input_ids, segments [R, L] int32; positions [R, P] int32 of the predicted tokens in their row, targets
    [R, P] int32 their ids, valid [R, P] bool. P is `places`; predictions beyond it are left out of the loss."""

    name = "mlm"
    kind = "text"
    accumulates = True
    windows = True

    tokenizer: tokenizers.Tokenizer
    max_length: int
    mask_share: float
    mask_id: int
    ordinary: np.ndarray  # ids of the tokens that are not special
    idf: Mapping[tuple[int, ...], float] | None  # by a word's ids; None: every word alike
    idf_unseen: float = 0.0  # of a word that is not among them

    @functools.cached_property
    def is_ordinary(self) -> np.ndarray:
        """[V] bool, by id: whether a token is not special."""
        return np.isin(np.arange(max(self.tokenizer.get_vocab().values()) + 1), self.ordinary)

    @functools.cached_property
    def special_ends(self) -> tuple[int, int]:
        """How many special tokens the tokenizer puts before a text and after it."""
        return special_ends(self.tokenizer.encode("a"))

    @classmethod
    def create(cls, config: Mapping[str, Any], sources: Sequence[Prepared], tokenizer: tokenizers.Tokenizer) -> Self:
        mask_id = tokenizer.token_to_id("[MASK]")
        if mask_id is None:
            raise UserError("the encoder's tokenizer has no [MASK] token; mlm needs one of the BERT kind")
        special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        ordinary = np.asarray(sorted(set(tokenizer.get_vocab().values()) - special), np.int32)
        family = cls(tokenizer, config["max_length"], config["mask_share"], mask_id, ordinary, None)
        for source in sources:
            family._check_words(source)
        if config["masking"] == "uniform":
            return family
        documents = _sample(sources)
        frequency = Counter(w for d in documents for w in set(_words(*family._encode(d)).values()))
        idf = {word: math.log((1 + len(documents)) / (1 + n)) + 1 for word, n in frequency.items()}
        return dataclasses.replace(family, idf=idf, idf_unseen=math.log(1 + len(documents)) + 1)

    def _check_words(self, source: Prepared) -> None:
        """Raises UserError for a source of whose texts the tokenizer knows no word: nothing is predicted there."""
        every = max(1, len(source) // CHECKED)
        texts = [source[i]["text"] for i in range(0, len(source), every)][:CHECKED]
        if texts and not any((self._encode(text)[1] != NO_WORD).any() for text in texts):
            raise UserError(
                f"source '{source.name}': the tokenizer knows no word of {len(texts)} of its texts, so that there is "
                "nothing to predict; take a tokenizer for this language or script, or other text"
            )

    def init_head(self, key: jax.Array, start: Pretrained) -> dict:
        d = start.config.hidden_size
        return {
            "dense": {"kernel": 0.02 * jax.random.normal(key, (d, d)), "bias": jnp.zeros(d)},
            "norm": {"scale": jnp.ones(d), "bias": jnp.zeros(d)},
            "bias": jnp.zeros(start.config.vocab_size),
        }

    def encode_record(self, record: Mapping[str, Any], source: str) -> dict[str, Any]:
        """'texts': the whole text's ids, uncut; 'words' [n]: which word a token belongs to, NO_WORD if special;
        'weights' [number of words]: how readily each is chosen. What is 'cuts' is said when `draw` takes a window."""
        ids, words = self._encode(record["text"])
        weights = np.ones(words.max(initial=NO_WORD) + 1)
        if self.idf is not None:
            parts = _words(ids, words)
            counts = Counter(parts.values())
            for word, part in parts.items():
                weights[word] = counts[part] * self.idf.get(part, self.idf_unseen)
        return {"texts": (ids,), "words": words, "weights": weights}

    def _encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        encoding = self.tokenizer.encode(text)
        ids = np.asarray(encoding.ids, np.int32)
        words = np.asarray([NO_WORD if w is None else w for w in encoding.word_ids], np.int32)
        # A special token may stand in the text itself, above all [UNK]: it is nothing to predict.
        return ids, np.where(self.is_ordinary[ids], words, NO_WORD)

    def draw(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """The example with its words masked: 'texts' as the encoder sees it, 'positions' [p] and 'targets' [p]."""
        ids, words = self._window(example["texts"][0], example["words"], rng)
        chosen = self._choose(words, example["weights"], rng)
        fates = np.full(len(example["weights"]) + 1, _LEFT)  # by word; the last entry is NO_WORD's
        fates[chosen] = rng.choice([_MASKED, _RANDOM, _KEPT], len(chosen), p=[MASKED, RANDOM, 1 - MASKED - RANDOM])
        fate = fates[words]  # by token
        random = self.ordinary[rng.integers(len(self.ordinary), size=len(ids))]
        masked = np.select([fate == _MASKED, fate == _RANDOM], [np.int32(self.mask_id), random], ids)
        positions = np.flatnonzero(fate != _LEFT)
        cuts = self._cuts(example["texts"][0], example["words"], words)
        return {**example, "texts": (masked,), "positions": positions, "targets": ids[positions], "cuts": cuts}

    def _cuts(self, ids: np.ndarray, words: np.ndarray, inside: np.ndarray) -> Cuts:
        """What is outside a window of a text; `inside` are the entries of `words` in the window."""
        number, begun = (len(np.setdiff1d(w, [NO_WORD])) for w in (words, inside))
        return Cuts(1, int(len(ids) > self.max_length), number, number - begun)

    def _window(self, ids: np.ndarray, words: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """At most `max_length` tokens, between the special tokens that open and close a text, if any; begins at a word
        and ends after one if it can."""
        if len(ids) <= self.max_length:
            return ids, words
        opening, closing = self.special_ends
        room, last = self.max_length - opening - closing, len(ids) - closing  # `last` is the place of [SEP]
        inner = words[opening:last]
        starts = opening + np.flatnonzero((np.diff(inner, prepend=NO_WORD) != 0) | (inner == NO_WORD))
        # The last start is the first from which the rest of the text fits.
        latest = starts[min(int(np.searchsorted(starts, last - room)), len(starts) - 1)]
        first = int(rng.choice(starts[starts <= latest]))
        ends = np.append(starts, last)
        fitting = ends[(ends > first) & (ends <= first + room)]
        stop = int(fitting[-1]) if len(fitting) else min(first + room, last)  # a word may be longer than the window
        inside = np.concatenate([np.arange(opening), np.arange(first, stop), np.arange(last, len(ids))])
        return ids[inside], words[inside]

    def _choose(self, words: np.ndarray, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The numbers of the words to predict, each with its probability of `inclusion`.

        Systematic sampling (Madow, 1949): probabilities are laid end to end, and a word is taken where its stretch
        holds one of the points 1, 2, ... counted from a random start. Words lie in order of their size, those of one
        size in random order, so that the number of tokens hardly varies between draws.
        """
        numbers, sizes = np.unique(words[words != NO_WORD], return_counts=True)
        order = np.lexsort((rng.random(len(numbers)), sizes))
        ends = np.cumsum(inclusion(weights[numbers], sizes, self.mask_share)[order]) + rng.random()
        return numbers[order[np.diff(np.floor(ends), prepend=0.0) > 0]]

    def places(self, length: int) -> int:
        """Places for predictions in a row of `length` tokens."""
        return min(length, 8 * math.ceil(HEADROOM * self.mask_share * length / 8))

    def collate(self, examples: Sequence[Mapping[str, Any]], packing: Packing) -> dict[str, np.ndarray]:
        rows, places = packing.layout.rows, self.places(packing.layout.length)
        positions, targets = np.zeros((2, rows, places), np.int32)
        filled = np.zeros(rows, int)
        for example, row, offset in zip(examples, packing.row, packing.offset):
            begin = filled[row]
            end = min(begin + len(example["positions"]), places)
            positions[row, begin:end] = offset + example["positions"][: end - begin]
            targets[row, begin:end] = example["targets"][: end - begin]
            filled[row] = end
        return {
            "input_ids": packing.lay([e["texts"][0] for e in examples]),
            "segments": packing.segments(),
            "positions": positions,
            "targets": targets,
            "valid": np.arange(places) < filled[:, None],
        }

    def loss(self, head: Mapping, encode: Encode, batch: Mapping) -> tuple[jax.Array, dict[str, jax.Array]]:
        hidden = encode(batch["input_ids"], batch["segments"])
        predicted = jnp.take_along_axis(hidden, batch["positions"][..., None], axis=1)  # [R, P, D]
        logits = decode(head, encode.word_embedding, predicted)
        return masked_loss(logits, batch["targets"], batch["valid"])

    def counts(self, batch: Mapping) -> dict[str, jax.Array]:
        predicted = batch["valid"].sum()
        return {"loss": predicted, "accuracy": predicted}


def inclusion(weights: np.ndarray, sizes: np.ndarray, share: float) -> np.ndarray:
    """Probability [W] that each word is chosen: in proportion to `weights` [W], but at most 1, and such that `share` of
    the tokens are chosen on average. With equal weights it is `share` for every word. `sizes` [W] are in tokens."""
    certain = np.zeros(len(weights), bool)
    while True:
        left = share * sizes.sum() - sizes[certain].sum()
        p = np.where(certain, 1.0, weights * left / max((weights * sizes)[~certain].sum(), 1e-30))
        if not (above := (p > 1) & ~certain).any():
            return p
        certain |= above


def decode(head: Mapping, table: jax.Array, hidden: jax.Array) -> jax.Array:
    """Scores [..., V] float32 of every token for `hidden` [..., D]: a layer of its own, then the word table [V, D]."""
    dtype = hidden.dtype
    x = hidden @ head["dense"]["kernel"].astype(dtype) + head["dense"]["bias"].astype(dtype)
    x = gelu(x, False).astype(jnp.float32)
    x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + NORM_EPS) * head["norm"]["scale"] + head["norm"]["bias"]
    scores = jnp.einsum("...d,vd->...v", x.astype(dtype), table.astype(dtype), preferred_element_type=jnp.float32)
    return scores + head["bias"]


def masked_loss(logits: jax.Array, targets: jax.Array, valid: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean cross-entropy, and accuracy, of logits [R, P, V] over the `valid` [R, P] predictions of `targets`."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    count = jnp.maximum(valid.sum(), 1)
    correct = valid & (logits.argmax(-1) == targets)
    return jnp.where(valid, losses, 0.0).sum() / count, {"accuracy": correct.sum() / count}


def _words(ids: np.ndarray, words: np.ndarray) -> dict[int, tuple[int, ...]]:
    """Number of a word -> the ids of its tokens."""
    parts: dict[int, tuple[int, ...]] = {}
    for token, word in zip(ids.tolist(), words.tolist()):
        if word != NO_WORD:
            parts[word] = (*parts.get(word, ()), token)
    return parts


def _sample(sources: Sequence[Prepared]) -> list[str]:
    """At most COUNTED texts, evenly spread over all rows of all sources."""
    total = sum(map(len, sources))
    every = max(1, math.ceil(total / COUNTED))
    return [source[i]["text"] for source in sources for i in range(0, len(source), every)]
