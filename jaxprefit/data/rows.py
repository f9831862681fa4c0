"""Rows of prepared data sets: chosen ones, and those held out."""

import zlib
from collections.abc import Sequence

import numpy as np

from jaxprefit.data.builders import Prepared

HELD_OUT_SEED = 5  # the same for all runs, so that they can be compared on rows that none was trained on


class Rows:
    """Some rows of a source, by their numbers."""

    def __init__(self, data: Prepared, numbers: Sequence[int] | np.ndarray):
        self.data, self.numbers = data, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict:
        return self.data[int(self.numbers[index])]

    @property
    def fingerprint(self) -> str:
        """The cache folder's name, which holds a hash of the source's content and settings, and a checksum of the rows'
        numbers where some rows are left out."""
        some = "" if isinstance(self.numbers, range) else f"-{zlib.crc32(np.asarray(self.numbers).tobytes()):08x}"
        return self.data.directory.name + some


def split_held_out(rows: Rows, held_out: int, seed: int = HELD_OUT_SEED) -> tuple[Rows, Rows]:
    """(training rows, `held_out` rows, at most a tenth), both in the order of the file.

    The held-out rows are spread over the file: it is divided into so many parts of equal size, and `seed` draws one
    row of each. So a file that is sorted by label, or in which labels take turns, gives each label its share.
    """
    number = min(held_out, len(rows) // 10)
    if not number:
        return rows, Rows(rows.data, rows.numbers[:0])
    edges = np.arange(number + 1) * len(rows) // number
    chosen = np.random.default_rng(seed).integers(edges[:-1], edges[1:])
    numbers = np.asarray(rows.numbers)
    return Rows(rows.data, np.delete(numbers, chosen)), Rows(rows.data, numbers[chosen])
