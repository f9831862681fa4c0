"""The texts that all encoders see when their hidden states are measured."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tokenizers

from jaxprefit.errors import UserError
from jaxprefit.representations.hidden import ordinary_tokens

GROUPS = 10  # of records, for the jackknife


class Origin(NamedTuple):
    """One source of texts: the ids of each drawn record's texts, one or, for a pair, two."""

    name: str
    records: Sequence[tuple[np.ndarray, ...]]


@dataclasses.dataclass(frozen=True)
class Sample:
    """Texts of one kind, and which of their tokens are measured: those that are no special tokens."""

    name: str  # 'ner' or 'tc'
    origins: tuple[str, ...]
    texts: list[np.ndarray]  # T ids [length]
    keep: list[np.ndarray]  # positions of each text's ordinary tokens, two or more
    record: np.ndarray  # [T] int: the two texts of a pair are of one record, and not independent
    pairs: np.ndarray  # [P, 2] int: texts that say the same
    scored: np.ndarray  # [n] int: which of all kept tokens are compared between encoders, ascending

    @classmethod
    def of(
        cls, name: str, origins: Sequence[Origin], tokenizer: tokenizers.Tokenizer, tokens: int, seed: int
    ) -> "Sample":
        """All records with two ordinary tokens in each text, and at most `tokens` of their tokens drawn by `seed`."""
        texts: list[np.ndarray] = []
        keep: list[np.ndarray] = []
        record: list[int] = []
        pairs: list[tuple[int, int]] = []
        count = 0
        for origin in origins:
            for ids in origin.records:
                kept = [ordinary_tokens(tokenizer, t) for t in ids]
                if min(map(len, kept)) < 2:  # one token alone is its own mean
                    continue
                if len(ids) == 2:
                    pairs.append((len(texts), len(texts) + 1))
                texts += ids
                keep += kept
                record += [count] * len(ids)
                count += 1
        if count < 2 * GROUPS:
            raise UserError(f"{count} {name} records to measure hidden states on; intervals need {2 * GROUPS} or more")
        total = sum(map(len, keep))
        scored = np.random.default_rng(seed).permutation(total)[:tokens]
        return cls(
            name,
            tuple(origin.name for origin in origins),
            texts,
            keep,
            np.asarray(record),
            np.asarray(pairs, int).reshape(-1, 2),
            np.sort(scored),
        )

    @property
    def text_of_token(self) -> np.ndarray:
        """[all kept tokens] int."""
        return np.repeat(np.arange(len(self.texts)), [len(k) for k in self.keep])

    @property
    def group(self) -> np.ndarray:
        """[T] int, 0 ... GROUPS - 1: records are dealt to groups in turn."""
        return self.record % GROUPS

    def describe(self) -> dict:
        """What the result file says of it."""
        return {
            "origins": list(self.origins),
            "texts": len(self.texts),
            "pairs": len(self.pairs),
            "tokens": sum(map(len, self.keep)),
            "scored_tokens": len(self.scored),
        }
