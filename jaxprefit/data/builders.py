"""From a user's data to a cache of TFDS ArrayRecord that is read at random.

``prepare`` reads a source twice. The first pass validates every row and counts; only then does
the second write, through a real ``tfds.core.GeneratorBasedBuilder``. So a mistake in the last
row leaves nothing half-written, and the error is the reader's own. No TensorFlow is needed.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import operator
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, SupportsIndex

import tensorflow_datasets as tfds

from jaxprefit.data.backends import Rows, Source, as_text, as_user_error, locate
from jaxprefit.data.records import Kind, Record, check_settings
from jaxprefit.data.records.tags import entity_types
from jaxprefit.errors import UserError
from jaxprefit.runtime.paths import user_path

FORMAT_VERSION = 3  # raise it when what is written changes, so that old caches are left alone

# TFDS gathers a split in memory and spills it over 1000 MiB through TensorFlow, which we do not
# have. Splits of at most this much text (and one split in all but huge sources) avoid both.
PART_BYTES = 256 * 2**20

STALE_SECONDS = 24 * 3600  # a temporary folder that old was left by a killed process

Progress = Callable[[int, int], None]  # (rows read, rows in all)


class Prepared:
    """A prepared source as a random-access data source, such as ``grain.MapDataset`` takes.

    ``prepared[i]`` is a record of plain ``str`` and ``list[str]``. It pickles as its folder.

    Attributes:
      name, kind: of the source.
      rows: their number, also ``len(prepared)``.
      types: sorted entity types ("ner") or labels ("labelled"); empty for "pairs" and "text".
      dropped: number of rows left out since their text is blank (``blank=skip``).
      names: readable names of some of the types, as their user gives them (`data.names`); no part of the cache.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self.directory, self.name = directory, name
        self.names: dict[str, str] = {}
        try:
            meta = json.loads((directory / "meta.json").read_text(encoding="utf-8"))
            self.kind: str = meta["kind"]
            self.rows: int = meta["rows"]
            self.types: tuple[str, ...] = tuple(meta["types"])
            self.dropped: int = meta["dropped"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{directory}: the cache is damaged ({type(error).__name__}); delete the folder") from None

    @functools.cached_property
    def _data(self) -> Any:
        with as_user_error(f"{self.directory}: the cache is damaged", "delete the folder"):
            builder: Any = tfds.builder_from_directory(self.directory)
            data = builder.as_data_source("all")
            data[0]  # opens the file
        return data

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: SupportsIndex) -> Record:
        i = operator.index(index)
        if not -self.rows <= i < self.rows:
            raise IndexError(f"row {i} of {self.rows} in {self.name}")
        return {field: as_text(value) for field, value in self._data[i % self.rows].items()}

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_data"}

    def __repr__(self) -> str:
        return f"Prepared({self.directory.name}, kind={self.kind}, rows={self.rows})"


class JaxprefitRecords(tfds.core.GeneratorBasedBuilder):
    """Writes records of one kind, in their order, to ArrayRecord: splits rows0000, rows0001..."""

    VERSION = tfds.core.Version(f"{FORMAT_VERSION}.0.0")

    def __init__(self, kind: Kind, rows: Iterable[Record], parts: list[int], data_dir: str) -> None:
        self._kind, self._rows, self._parts = kind, rows, parts
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=self._kind.features(), disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        keyed = enumerate(self._rows)  # one iterator: TFDS drains the parts one after another
        return {f"rows{part:04d}": self._generate_examples(keyed, count) for part, count in enumerate(self._parts)}

    def _generate_examples(self, keyed: Iterator[tuple[int, Record]], count: int) -> Iterator[tuple[int, Record]]:
        yield from itertools.islice(keyed, count)

    # TFDS prints these two to stdout whatever the log level.
    def _log_download_bytes(self) -> None:
        pass

    def _log_download_done(self) -> None:
        pass


def prepare(source: Source, cache_dir: str | Path, progress: Progress | None = None) -> Prepared:
    """The source as random-access records, built under ``cache_dir`` unless it stands there.

    The folder is ``cache_dir/NAME-FINGERPRINT``; the fingerprint covers the content and the
    settings, so a changed file or setting gets a new folder. It appears by one rename when it is
    complete: a killed build leaves only a hidden folder, and of two processes that build the
    same one throws its copy away.

    Args:
      progress: called as ``progress(rows_read, rows)`` now and then. Without it all is quiet.

    Raises:
      UserError: for a source that is not there or has a malformed row.
    """
    where = f"source {source.name!r}"
    kind = check_settings(where, source.kind, dict(source.columns), source.scheme, source.limit)
    content, format, rows = locate(source, kind, quiet=progress is None)
    settings = dataclasses.asdict(source) | {"name": "", "path": "", "format": format}
    identity = json.dumps([FORMAT_VERSION, content, settings], sort_keys=True)
    fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:16]
    safe_name = re.sub(r"[^\w.-]+", "_", source.name, flags=re.ASCII).strip(".")[:80] or "data"
    final = user_path(cache_dir) / f"{safe_name}-{fingerprint}"
    if not final.is_dir():
        _build(kind, rows, final, progress)
    return Prepared(final, source.name)


def _build(kind: Kind, rows: Rows, final: Path, progress: Progress | None) -> None:
    meta, parts = _survey(kind, rows)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{final.parent}: {error.strerror}; choose another cache folder") from None
    _sweep(final)
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=f".{final.name}.") as work:
        tfds.disable_progress_bar()
        builder = JaxprefitRecords(kind, _watched(rows([]), meta["rows"], progress), parts, work)
        builder.download_and_prepare(
            download_dir=os.path.join(work, "downloads"),
            download_config=tfds.download.DownloadConfig(num_shards=1),
        )
        done = Path(str(builder.data_dir))
        (done / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        try:
            os.rename(done, final)
        except OSError:
            if not final.is_dir():  # else another process was first, with the same rows
                raise


def _survey(kind: Kind, rows: Rows) -> tuple[dict[str, Any], list[int]]:
    """What ``meta.json`` says, and the number of rows in each part; validates every row."""
    types: set[str] = set()
    parts, size = [0], 0
    dropped: list[int] = []
    for record in rows(dropped):
        if kind.name == "ner":
            types |= entity_types(record["tags"])
        elif kind.name == "labelled":
            types.add(record["label"])
        # Four bytes a character at most, and some for the protocol buffer around each text.
        texts = [[value] if isinstance(value, str) else value for value in record.values()]
        row_size = sum(4 * len(text) + 16 for text in itertools.chain(*texts))
        if size and size + row_size > PART_BYTES:
            parts.append(0)
            size = 0
        parts[-1] += 1
        size += row_size
    meta = {"kind": kind.name, "rows": sum(parts), "types": sorted(types), "dropped": len(dropped)}
    return meta, parts


def _watched(rows: Iterator[Record], total: int, progress: Progress | None) -> Iterator[Record]:
    done = 0
    for done, record in enumerate(rows, start=1):
        if progress and (done % 1000 == 0 or done == total):
            progress(done, total)
        yield record  # TFDS does not come back after the last
    if done < total:
        raise UserError(f"the data shrank from {total} to {done} rows while it was read; try again")


def _sweep(final: Path) -> None:
    """Deletes what a killed build of the same folder left long ago."""
    for left in final.parent.glob(f".{final.name}.*"):
        with suppress(OSError):  # another process may delete its own meanwhile
            if time.time() - left.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(left)
