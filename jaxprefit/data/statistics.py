"""What one source holds: rows, duplicates, lengths in tokens and what is beyond a limit, entity types or labels."""

import collections
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tokenizers

from jaxprefit.data.overlap import normalise, texts_of
from jaxprefit.encoder.cuts import Cuts
from jaxprefit.encoder.tokenization import record_cuts

PERCENTILES = (5, 50, 95, 99, 100)
BATCH = 1024  # texts tokenised at once


class Statistics:
    """Counts what passes through `watch`."""

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, max_length: int, prefixes: Mapping[str, str] | None = None
    ) -> None:
        """`max_length` in tokens and `prefixes` of texts, by their field, are those that the rows are encoded with."""
        self.tokenizer, self.max_length, self.prefixes = tokenizer, max_length, prefixes or {}
        self.cuts = Cuts()
        self.rows = 0
        self.duplicates = 0  # rows whose normalised texts an earlier row has
        self.types: collections.Counter[str] = collections.Counter()  # entities of a type, or rows of a label
        self._seen: set[bytes] = set()
        self._lengths: list[int] = []
        self._waiting: list[str] = []

    def watch(self, records: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        """The records, counted as they are taken."""
        for record in records:
            self._add(record)
            yield record

    def _add(self, record: Mapping[str, Any]) -> None:
        self.rows += 1
        texts = texts_of(record)
        key = hashlib.blake2b("\n".join(map(normalise, texts)).encode(), digest_size=16).digest()
        self.duplicates += key in self._seen
        self._seen.add(key)
        self.cuts = self.cuts.plus(record_cuts(self.tokenizer, record, self.max_length, self.prefixes))
        self.types.update(tag[2:] for tag in record.get("tags", ()) if tag.startswith("B-"))
        self.types.update([record["label"]] if "label" in record else ())
        self._waiting += texts
        if len(self._waiting) >= BATCH:
            self._tokenise()

    def _tokenise(self) -> None:
        self._lengths += [len(e.ids) for e in self.tokenizer.encode_batch_fast(self._waiting)]
        self._waiting = []

    def report(self) -> dict[str, Any]:
        """All counts as JSON; lengths with special tokens, by percentile (of the texts, two of a pair)."""
        self._tokenise()
        lengths = np.asarray(self._lengths or [0])
        at = np.percentile(lengths, PERCENTILES, method="nearest").tolist()
        return {
            "rows": self.rows,
            "duplicates": self.duplicates,
            "texts": len(self._lengths),
            "tokens": int(lengths.sum()),
            "length_percentiles": {str(p): int(v) for p, v in zip(PERCENTILES, at)},
            "max_length": self.max_length,
            "cuts": self.cuts.report(),
            "types": len(self.types),
            "top_types": dict(sorted(self.types.items(), key=lambda item: (-item[1], item[0]))[:20]),
        }
