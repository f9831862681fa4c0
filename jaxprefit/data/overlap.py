"""Which training texts stand in a test set too, exactly or nearly.

A text is compared by its letters and digits alone: case, spaces, punctuation and the way it was tokenised do not
count. Two texts are *near* duplicates if the Jaccard similarity of their sets of GRAM-byte grams is at least THRESHOLD.
Candidates come from MinHash signatures (Broder, 1997) by locality-sensitive hashing, BANDS bands of ROWS hashes each
(Indyk and Motwani, 1998), and each candidate's similarity is then computed exactly: nothing below the threshold
counts, and a pair of similarity s is found with probability 1 - (1 - s^ROWS)^BANDS, 98.8 % at 0.7 and 99.98 % at 0.8.
A test sentence inside a much longer text is not found. No randomness: the hashes come from SEED.
"""

import functools
import hashlib
import itertools
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxprefit.data import overlap
from jaxprefit.data.builders import Prepared
from jaxprefit.runtime.files import whole_file

GRAM = 5  # bytes of the normalised text; fits a 64-bit number, so grams are compared exactly
BANDS, ROWS = 16, 4
THRESHOLD = 0.7
SEED = 0
PARAMETERS = {"gram": GRAM, "bands": BANDS, "rows": ROWS, "threshold": THRESHOLD, "seed": SEED}
VERSION = 1  # raise it when a result may change

NONE, NEAR, EXACT = 0, 1, 2  # levels of overlap, each including the next

CHUNK = 1024  # texts searched at once, which bounds memory
MARGIN = 0.2  # 3.5 standard errors of an estimate from 64 hashes: less similar candidates are not looked at


def texts_of(record: Mapping[str, Any]) -> tuple[str, ...]:
    """A record's texts: one of a sentence or a labelled text, two of a pair."""
    if "tokens" in record:
        return (" ".join(record["tokens"]),)
    return tuple(record[field] for field in ("a", "b", "text") if field in record)


def normalise(text: str) -> str:
    """The text's letters and digits in lower case, in Unicode's compatible form, with nothing between them."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text).casefold())


def grams(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """All grams of the normalised texts, one after another: ([G] uint64, start of each text's [T] int64).

    A text shorter than GRAM bytes is one gram, filled up with zeros.
    """
    data = [text.encode().ljust(GRAM, b"\0") for text in texts]
    stream = np.frombuffer(b"".join(data), np.uint8).astype(np.uint64)
    sizes = np.fromiter(map(len, data), np.int64, len(data))
    counts = sizes - (GRAM - 1)
    starts = np.cumsum(counts) - counts
    # The last GRAM - 1 bytes of a text start no gram of it.
    first = np.arange(counts.sum()) + np.repeat(np.arange(len(data)) * (GRAM - 1), counts)
    out = np.zeros(len(first), np.uint64)
    for i in range(GRAM):
        out = (out << np.uint64(8)) | stream[first + i]
    return out, starts


def minhash(texts: Sequence[str]) -> np.ndarray:
    """MinHash signatures [T, BANDS * ROWS] uint32 of normalised texts; the share of equal entries estimates Jaccard."""
    signatures = np.empty((len(texts), BANDS * ROWS), np.uint32)
    if not texts:
        return signatures
    rng = np.random.default_rng(SEED)
    odd, plus = rng.integers(0, 2**64, (2, BANDS * ROWS), np.uint64)
    values, starts = grams(texts)
    values = _mixed(values)
    for k in range(BANDS * ROWS):
        hashed = ((values * (odd[k] | np.uint64(1)) + plus[k]) >> np.uint64(32)).astype(np.uint32)
        signatures[:, k] = np.minimum.reduceat(hashed, starts)
    return signatures


def jaccard(a: str, b: str) -> float:
    """Similarity of two normalised texts: |A and B| / |A or B| of their sets of grams."""
    left, right = (np.unique(grams([text])[0]) for text in (a, b))
    both = len(np.intersect1d(left, right, assume_unique=True))
    return both / (len(left) + len(right) - both)


@dataclass(frozen=True)
class Overlap:
    """How a source overlaps the tests of an index.

    Attributes:
      rows: [rows, tests] uint8, the highest level at which a row of the source stands in a test.
      tests: [texts] uint8, the highest level at which a distinct text of the tests stands in the source.
    """

    rows: np.ndarray
    tests: np.ndarray


class Index:
    """The texts of some test sets, searched by `compare`.

    Attributes:
      names: of the tests.
      member: [texts, tests] int32, how often a test holds each distinct normalised text.
    """

    def __init__(self, tests: Mapping[str, Iterable[str]]) -> None:
        self.names = tuple(tests)
        self.numbers: dict[str, int] = {}
        held: list[tuple[int, int]] = []
        for test, texts in enumerate(tests.values()):
            for text in filter(None, map(normalise, texts)):
                held.append((self.numbers.setdefault(text, len(self.numbers)), test))
        self.texts = list(self.numbers)
        self.member = np.zeros((len(self.texts), len(self.names)), np.int32)
        np.add.at(self.member, tuple(np.asarray(held, int).reshape(-1, 2).T), 1)
        signatures = [minhash(self.texts[i : i + CHUNK]) for i in range(0, len(self.texts), CHUNK)]
        self.signatures = np.concatenate([np.empty((0, BANDS * ROWS), np.uint32), *signatures])
        keys = _band_keys(self.signatures)
        self.order = keys.argsort(0)
        self.keys = np.take_along_axis(keys, self.order, 0)

    def matches(self, texts: Sequence[str]) -> Iterator[tuple[int, int, int]]:
        """(text, test text, NEAR or EXACT) for each overlap of normalised texts with the tests' texts."""
        if not self.texts or not texts:
            return
        signatures = minhash(texts)
        for i, j in self._candidates(signatures):
            if texts[i] == self.texts[j]:
                yield i, j, EXACT
            elif jaccard(texts[i], self.texts[j]) >= THRESHOLD:
                yield i, j, NEAR

    def _candidates(self, signatures: np.ndarray) -> Iterator[tuple[int, int]]:
        """Pairs that share a band and whose signatures are similar enough, in order."""
        keys, size = _band_keys(signatures), len(self.texts)
        found = []
        for band in range(BANDS):
            low = self.keys[:, band].searchsorted(keys[:, band], "left")
            count = self.keys[:, band].searchsorted(keys[:, band], "right") - low
            place = np.arange(count.sum()) + np.repeat(low - (np.cumsum(count) - count), count)
            found.append(np.unique(np.repeat(np.arange(len(keys)), count) * size + self.order[place, band]))
        pairs = np.unique(np.concatenate(found))
        for block in np.array_split(pairs, len(pairs) // 100_000 + 1):
            i, j = block // size, block % size
            similar = (signatures[i] == self.signatures[j]).mean(1) >= THRESHOLD - MARGIN
            yield from zip(i[similar].tolist(), j[similar].tolist())


def compare(records: Iterable[Mapping[str, Any]], index: Index) -> Overlap:
    """How the records of one source overlap the tests. A record overlaps where any of its texts does."""
    rows, tests = [], np.zeros(len(index.texts), np.uint8)
    for chunk in _chunks(records):
        owners = np.repeat(np.arange(len(chunk)), [len(texts) for texts in chunk])
        texts = [normalise(text) for texts in chunk for text in texts]
        number = {text: i for i, text in enumerate(dict.fromkeys(filter(None, texts)))}  # each distinct text once
        level = np.zeros((len(number) + 1, len(index.names)), np.uint8)  # the last row: a text without a letter
        for i, j, found in index.matches(list(number)):
            level[i] = np.maximum(level[i], np.where(index.member[j] > 0, found, NONE))
            tests[j] = max(tests[j], found)
        of_row = np.zeros((len(chunk), len(index.names)), np.uint8)
        np.maximum.at(of_row, owners, level[[number.get(text, len(number)) for text in texts]])
        rows.append(of_row)
    return Overlap(np.concatenate(rows) if rows else np.zeros((0, len(index.names)), np.uint8), tests)


def _chunks(records: Iterable[Mapping[str, Any]]) -> Iterator[list[tuple[str, ...]]]:
    it = iter(records)
    while chunk := [texts_of(record) for record in itertools.islice(it, CHUNK)]:
        yield chunk


def _band_keys(signatures: np.ndarray) -> np.ndarray:
    """[T, BANDS] uint64, one number for the hashes of each band; chance collisions only cost a comparison."""
    bands = signatures.reshape(len(signatures), BANDS, ROWS).astype(np.uint64)
    key = np.zeros(bands.shape[:2], np.uint64)
    for row in range(ROWS):
        key = _mixed(key ^ bands[:, :, row])
    return key


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64: every bit of the input changes half of the output's."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return values ^ (values >> np.uint64(31))


LEVELS = {"exact": overlap.EXACT, "near": overlap.NEAR}


class OverlapFilter:
    """Finds the rows that overlap no row of `tests` at `level` ("exact", or "near", which includes exact)."""

    def __init__(self, tests: Sequence[Prepared], level: str, cache: Path) -> None:
        self.tests, self.level, self.cache = tests, level, cache

    @functools.cached_property
    def index(self) -> overlap.Index:
        """Of the tests' texts; built only when some source is not in the cache."""
        return overlap.Index({t.directory.name: all_texts(t) for t in self.tests})

    def kept(self, source: Prepared) -> np.ndarray:
        """Numbers of the rows to keep, ascending [n] int64."""
        identity = [overlap.VERSION, overlap.PARAMETERS, self.level, *sorted(t.directory.name for t in self.tests)]
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        file = self.cache / "overlap" / f"{source.directory.name}-{digest}.npy"
        if not file.exists():
            found = overlap.compare(records(source), self.index).rows
            keep = (found < LEVELS[self.level]).all(1)
            file.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(file) as whole, whole.open("wb") as f:
                np.save(f, np.flatnonzero(keep))
        return np.load(file)


def records(source: Prepared) -> Iterator[dict[str, Any]]:
    """All records in their order."""
    return (source[i] for i in range(len(source)))


def all_texts(source: Prepared) -> Iterator[str]:
    """The texts of all records."""
    return (text for record in records(source) for text in overlap.texts_of(record))
