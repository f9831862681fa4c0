"""Leaving out the rows of a source that stand in a test set; which rows those are is kept in the cache."""

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxprefit.data import overlap
from jaxprefit.data.builders import Prepared
from jaxprefit.files import whole_file

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
