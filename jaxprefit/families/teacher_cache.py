"""A teacher's vectors of all texts of a run, computed once and read from disk.

A folder DIR/KEY, KEY naming the teacher's weights, the sources and the length of texts, with three NumPy files:
`keys` [T] uint64, sorted, a hash of each different text's ids; `begin` [T] int64, where the text's vectors begin in
`vectors` [tokens, D] float16, which is mapped and not loaded. A text's vectors do not depend on what it was packed
with, so a batch made from them is the one made on the fly, up to the rounding to 16 bits (5e-4 of an entry).
"""

import dataclasses
import hashlib
import os
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from jaxprefit.data.builders import Prepared
from jaxprefit.data.packing import Layout, packed
from jaxprefit.encoder.transformer import EncoderConfig
from jaxprefit.errors import UserError
from jaxprefit.families.teacher import Teacher
from jaxprefit.runtime.paths import user_path

ROWS = 32  # of a batch in which vectors are computed


@dataclasses.dataclass(frozen=True)
class CachedTeacher:
    """As `Teacher`, of texts that are on disk."""

    config: EncoderConfig
    fingerprint: str
    folder: pathlib.Path
    keys: np.ndarray
    begin: np.ndarray
    stored: np.ndarray

    def vectors(self, input_ids: np.ndarray, segments: np.ndarray) -> np.ndarray:
        """Unit vectors [R, L, D] float32 of packed rows [R, L]; zeros at padding."""
        out = np.zeros((*input_ids.shape, self.stored.shape[1]), np.float32)
        for row, (ids, which) in enumerate(zip(input_ids, segments)):
            for segment in range(1, which.max(initial=0) + 1):
                (places,) = np.nonzero(which == segment)
                key = text_key(ids[places])
                at = int(np.searchsorted(self.keys, key))
                if at == len(self.keys) or self.keys[at] != key:
                    raise UserError(f"{self.folder} lacks a text of the sources; delete it, and it is computed again")
                out[row, places] = self.stored[self.begin[at] : self.begin[at] + len(places)]
        return out


def cached(
    teacher: Teacher,
    parent: str | os.PathLike,
    sources: Sequence[Prepared],
    max_length: int,
    texts_of: Callable[[Any, str], np.ndarray],
) -> CachedTeacher:
    """The cache of `teacher` below `parent` for all rows of `sources`, computed where it is not there yet.

    `texts_of(record, source)` gives a record's ids. The folder appears whole or not at all.
    """
    named = [teacher.fingerprint, str(max_length), *sorted(p.directory.name for p in sources)]
    folder = user_path(parent) / f"teacher_{hashlib.sha256(' '.join(named).encode()).hexdigest()[:16]}"
    if not folder.exists():
        temporary = folder.with_name(f"{folder.name}.{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            _compute(teacher, temporary, [texts_of(p[i], p.name) for p in sources for i in range(len(p))], max_length)
            os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    try:
        keys, begin = (np.load(folder / f"{name}.npy") for name in ("keys", "begin"))
        stored = np.load(folder / "vectors.npy", mmap_mode="r")
    except (OSError, ValueError, EOFError) as e:
        raise UserError(f"{folder} is damaged ({type(e).__name__}); delete it, and it is computed again") from None
    return CachedTeacher(teacher.config, teacher.fingerprint, folder, keys, begin, stored)


def text_key(ids: np.ndarray) -> np.uint64:
    """A hash of a text's ids; 64 bits, so that even among a billion texts a collision is unlikely."""
    digest = hashlib.blake2b(np.ascontiguousarray(ids, np.int32).tobytes(), digest_size=8).digest()
    return np.frombuffer(digest, np.uint64)[0]


def _compute(teacher: Teacher, folder: pathlib.Path, every: Sequence[np.ndarray], max_length: int) -> None:
    different = {int(text_key(ids)): ids for ids in every}
    keys = sorted(different)
    texts = [different[key] for key in keys]
    sizes = [len(ids) for ids in texts]
    begin = np.cumsum([0, *sizes])
    shape = int(begin[-1]), teacher.config.hidden_size
    stored = np.lib.format.open_memmap(folder / "vectors.npy", mode="w+", dtype=np.float16, shape=shape)
    console, done = Console(stderr=True), 0
    layout = Layout.of(ROWS, max_length)
    batches = -(-shape[0] // layout.tokens)  # at least
    shown = track(packed(sizes, layout), "teacher's vectors", total=batches, console=console,
                  disable=not console.is_terminal)  # fmt: skip
    for numbers, packing in shown:
        vectors = teacher.vectors(packing.lay([texts[t] for t in numbers]), packing.segments())
        for t, row, offset, size in zip(numbers, packing.row, packing.offset, packing.size):
            stored[begin[t] : begin[t + 1]] = vectors[row, offset : offset + size]
        done += len(numbers)
    assert done == len(texts)
    stored.flush()
    np.save(folder / "keys.npy", np.asarray(keys, np.uint64))
    np.save(folder / "begin.npy", begin[:-1])
