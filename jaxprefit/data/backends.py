"""Where a source's rows come from: a file, a folder of splits, a TFDS dataset or one of the Hugging Face hub."""

import dataclasses
import functools
import hashlib
import importlib
import io
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from jaxprefit.data import hub
from jaxprefit.data.records import BlankText, Kind, Record, make_record, pick, source_columns
from jaxprefit.data.records.readers import COMPRESSED, FORMATS, file_format, read
from jaxprefit.errors import UserError
from jaxprefit.runtime.paths import user_path

_log = logging.getLogger(__name__)

# TFDS knows conll2003, glue and other older datasets only once their module is imported.
TFDS_AREAS = ("text", "question_answering", "summarization", "translate")
TFDS_ADVICE = "check the name, the split, the columns, and that the data is array_record"

SPLIT_NAMES = {
    "dev": ("dev", "devel", "development", "devset", "valid", "validation", "val", "testa", "eset"),
    "test": ("test", "testset", "testb", "tst"),
}
"""What the file of a split is called in a folder, without suffix and in any case; of another split, its name alone."""

Rows = Callable[[list[int]], Iterator[Record]]
"""Reads a source from its start; what it drops as blank it appends to the list, by line."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where one dataset comes from and how to read it.

    Attributes:
      name: a name for people; the cache folder bears it too.
      kind: "ner", "pairs", "labelled" or "text".
      path: a file; or a folder that holds ``{split}.jsonl`` (or another format, or compressed);
        or a folder that TFDS prepared as ArrayRecord. Beside ``tfds``: the TFDS ``data_dir``.
      tfds: a TFDS dataset, such as "conll2003" or "glue/sst2:1.0.0".
      hub: a dataset of the Hugging Face hub, or a folder laid out like one; with its subset and revision.
      split: of a folder, TFDS or the hub; for these two also a slice such as "train[:10%]".
      format, columns, scheme, delimiter, quotes: as for ``readers.read``; columns as (field, column) pairs.
      limit: only the first so many rows; 0 for all.
      blank: what to do with a row whose text is blank: "refuse" the source, or "skip" the row.
    """

    name: str
    kind: str
    path: str = ""
    tfds: str = ""
    split: str = "train"
    format: str = ""
    columns: tuple[tuple[str, str | int], ...] = ()
    scheme: str = "iob2"
    limit: int = 0
    blank: str = "refuse"
    hub: str = ""
    subset: str = ""
    revision: str = ""
    delimiter: str = ""
    quotes: str = ""


def locate(source: Source, kind: Kind, quiet: bool) -> tuple[str, str, Rows]:
    """(what identifies the content, format, a function that reads the rows)."""
    if source.blank not in ("refuse", "skip"):
        raise UserError(f"source {source.name!r}: blank is {source.blank!r}; use refuse or skip")
    if source.tfds:
        with as_user_error(f"tfds {source.tfds}"):
            for area in TFDS_AREAS:
                importlib.import_module(f"tensorflow_datasets.{area}")
            builder = tfds.builder(source.tfds, data_dir=source.path or None, file_format="array_record")
        rows = functools.partial(_tfds_rows, source, kind, builder, quiet)
        return builder.info.full_name, "tfds", rows
    if source.hub:
        with as_user_error(f"hub {source.hub}", hub.ADVICE):
            found = hub.find(source.hub, source.subset, source.revision)
        return str(found.hash), source.format or "hub", _hub_rows(source, kind, found, quiet)
    if not source.path:
        raise UserError(f"source {source.name!r}: has neither path nor tfds; give one of them")
    path = user_path(source.path)
    if os.path.isdir(path):
        folder = _tfds_folder(path)
        if folder:
            with as_user_error(folder):
                builder = tfds.builder_from_directory(folder)
                files = [str(f) for part in builder.info.splits.values() for f in part.filepaths]
            content = _digest([folder / "features.json", *files])
            return content, "tfds", functools.partial(_tfds_rows, source, kind, builder, quiet)
        path = _split_file(path, source.split)
    columns = dict(source.columns)

    def read_file(dropped: list[int]) -> Iterator[Record]:
        return read(
            path,
            kind.name,
            format=source.format or None,
            columns=columns,
            scheme=source.scheme,
            delimiter=source.delimiter or None,
            quotes=source.quotes or None,
            limit=source.limit,
            dropped=dropped if source.blank == "skip" else None,
        )

    read_file([])  # nothing is read yet, but a wrong path or format is told here
    return _digest([path]), source.format or file_format(path, kind.name), read_file


def split_names(split: str) -> tuple[str, ...]:
    """The usual names of the file of a split, its own first."""
    return SPLIT_NAMES.get(split, (split,))


def has_split(folder: Path, split: str) -> bool:
    """Whether the folder has a file with a usual name of the split, whatever its suffix."""
    return any(name.partition(".")[0].lower() in split_names(split) for name in os.listdir(folder) if "." in name)


def _split_file(folder: Path, split: str) -> Path:
    """The folder's file of the split: that of the split's own name, else the only one of its other usual names."""
    names = sorted(os.listdir(folder))
    suffixes = [f"{suffix}{c}" for suffix in FORMATS for c in ("", *COMPRESSED)]
    matches = [
        [name for name in names if name.lower() in {f"{stem.lower()}{suffix}" for suffix in suffixes}]
        for stem in split_names(split)
    ]
    candidates = matches[0] or sorted(name for same in matches[1:] for name in same)
    if len(candidates) == 1:
        return folder / candidates[0]
    if candidates:
        raise UserError(f"{folder}: holds {' and '.join(candidates)}; give the path of one of them")
    there = ", ".join(names[:10]) or "nothing"
    usual = f"; nor is a file called {', '.join(split_names(split)[1:])}" if split in SPLIT_NAMES else ""
    raise UserError(
        f"{folder}: has no file {split}.jsonl, .conll, .csv ... (it holds {there}){usual}; "
        "set the split or give the path of a file"
    )


def _tfds_folder(path: Path) -> Path | None:
    """The folder of a prepared TFDS dataset: ``path`` itself, or its newest version."""
    if (path / "dataset_info.json").is_file():
        return path
    versions = [
        info.parent for info in path.glob("*/dataset_info.json") if re.fullmatch(r"\d+\.\d+\.\d+", info.parent.name)
    ]
    return max(versions, key=lambda p: [int(n) for n in p.name.split(".")], default=None)


def _tfds_rows(source: Source, kind: Kind, builder: Any, quiet: bool, dropped: list[int]) -> Iterator[Record]:
    """Yields the records of a TFDS dataset, which it downloads and prepares if need be."""
    where = f"tfds {source.tfds}" if source.tfds else source.path
    columns = source_columns(kind, {field: field for field in kind.fields} | dict(source.columns))
    with ExitStack() as stack:
        stack.enter_context(as_user_error(where))
        if source.tfds:
            if quiet:
                tfds.disable_progress_bar()
                stack.enter_context(redirect_stdout(io.StringIO()))
            builder.download_and_prepare()
        data = builder.as_data_source(source.split)
        features = pick(builder.info.features, columns)
        data[0]  # opens the file, and fails if the split is empty
    kept = 0
    for i in range(len(data)):
        try:
            row = pick(data[i], columns)
            values = {field: _from_feature(features[field], row[field]) for field in columns}
            record = make_record(kind, values, source.scheme)
        except ValueError as error:
            if source.blank == "skip" and isinstance(error, BlankText):
                dropped.append(i + 1)
                continue
            raise UserError(f"{where}:{i + 1}: {error}") from None
        yield record
        kept += 1
        if kept == source.limit:
            return


def _hub_rows(source: Source, kind: Kind, builder: Any, quiet: bool) -> Rows:
    """What yields the records of a hub dataset, which `datasets` downloads if need be."""
    where, spans = f"hub {source.hub}", source.format == hub.SPANS
    if source.format not in ("", hub.SPANS) or (spans and kind.name != "ner"):
        raise UserError(
            f"{where}: unknown format {source.format!r} for {kind.name}; leave it out, or {hub.SPANS} for ner"
        )
    columns = source_columns(kind, {field: field for field in kind.fields} | dict(source.columns))
    told: list[int] = []

    def read_hub(dropped: list[int]) -> Iterator[Record]:
        with as_user_error(where, hub.ADVICE):
            data = hub.rows(builder, source.split, quiet)
            features = pick(data.features, columns)
        kept = missed = 0
        for i, row in enumerate(data, start=1):
            try:
                values = {f: hub.named(features[f], value) for f, value in pick(row, columns).items()}
                if spans:
                    values, lost = hub.tag_spans(values["tokens"], values["tags"])
                    missed += lost
                record = make_record(kind, values, source.scheme)
            except ValueError as error:
                if (source.blank == "skip" and isinstance(error, BlankText)) or isinstance(error, hub.BadSpans):
                    dropped.append(i)
                    continue
                raise UserError(f"{where}:{i}: {error}") from None
            yield record
            kept += 1
            if kept == source.limit:
                break
        if not kept:
            raise UserError(f"{where}: split {source.split!r} holds no records; choose another")
        if missed and not told:  # the rows are read twice
            _log.info(f"source {source.name}: {missed:,} entities whose text does not stand in theirs are left out")
            told.append(missed)

    return read_hub


def _from_feature(feature: Any, value: Any) -> Any:
    """A TFDS value as text or a list of text; class indices become their names."""
    if isinstance(feature, tfds.features.Sequence):
        return [_from_feature(feature.feature, item) for item in value]
    if isinstance(feature, tfds.features.ClassLabel):
        if value < 0:
            raise ValueError("the row has no class; take another split")
        return feature.int2str(int(value))
    return as_text(value)


def as_text(value: Any) -> Any:
    """``bytes`` as ``str``, an array or list as a list of such, a number as Python's."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list):
        return [as_text(item) for item in value]
    return as_text(value.tolist()) if hasattr(value, "tolist") else value


def _digest(paths: Iterable[str | Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        try:
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); check it") from None
    return digest.hexdigest()


@contextmanager
def as_user_error(where: object, advice: str = TFDS_ADVICE) -> Iterator[None]:
    """For calls into TFDS and datasets, which raise a dozen kinds of error, most of many lines."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        line = (str(error).strip().splitlines() or ["no message"])[0][:300]
        raise UserError(f"{where}: {type(error).__name__}: {line}; {advice}") from None
