"""How a config names its data: one short string per source.

    ner_pf/wikineural_en                         a folder under data.root with train.jsonl.xz (or another format)
    my/notes.conll?scheme=iob1&tokens=0&tags=3   a file, with its tagging scheme and column choice
    ner_pf/bio_craft?names=names/craft.json      readable names of its entity types (`data.names`), also under data.root
    my/pairs.csv?a=question&b=answer             columns by header name
    my/excel.csv?delimiter=;                     a table's or CoNLL file's delimiter: one character (a tab is %09)
    my/excel.tsv?quotes=csv                      fields of a table quoted as in CSV; quotes=none: a quote is text
    my/triples.jsonl?negative=negative           pairs with a hard negative each (an optional field: only where mapped)
    pairs/arxiv?text=a,b                         several columns as one text; a list of tokens is joined, too
    my/tweets?blank=skip                         rows whose text is blank are dropped, not refused
    my/prepared_tfds_folder                      a directory that TFDS prepared
    tfds:conll2003?tags=ner                      a TFDS name (downloaded by TFDS)
    hub:numind/NuNER?split=entity&format=spans&tokens=input&tags=output
                                                 a dataset of the Hugging Face hub, or a folder laid out like one; also
                                                 subset=NAME and revision=NAME; spans: text and 'span <> concept' lists
    generated:ner?rows=4000&seed=1               generated text (`data.synthetic`), no download

Options, and FIELD=COLUMN for the record's fields. A value may be percent-encoded: %26 is &; a + stands for itself.
"""

import dataclasses
import difflib
import glob
import hashlib
import json
import logging
import os
import pathlib
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import rich.progress

from jaxprefit.data import addresses, backends, builders, synthetic
from jaxprefit.data.names import read_names
from jaxprefit.data.records import KINDS
from jaxprefit.errors import UserError
from jaxprefit.runtime.files import whole_file
from jaxprefit.runtime.paths import user_path
from jaxprefit.runtime.terminal import printable, progress_bar

_log = logging.getLogger(__name__)
MAX_SEED = 2**32 - 1  # what JAX and NumPy both take as it stands: a key of JAX has the seed's last 32 bits
_OPTIONS = ("split", "limit", "format", "scheme", "blank")
_FILE_OPTIONS = ("delimiter", "quotes")
_GENERATED: dict[str, Callable[..., Any]] = {
    "ner": synthetic.ner_records,
    "pairs": synthetic.pairs,
    "labelled": synthetic.labelled_records,
    "text": synthetic.text_records,
}


def prepare(text: str, kind: str, root: str, cache: str, split: str = "", limit: int = 0) -> builders.Prepared:
    """The source that `text` names, as records of `kind` behind random access, built under `cache` if need be.

    `split` and `limit` are defaults that the text's own options override. Raises UserError for an option that does
    not exist, and whatever mistake is in the data.
    """
    _check_one(text, root)
    address, options = _parse(text, kind)
    names = options.pop("names", None)
    if address.startswith("generated:"):
        return _generated(text, address.removeprefix("generated:"), kind, options, cache, split, limit)
    source = builders.Source(
        name=address,
        kind=kind,
        tfds=address.removeprefix("tfds:") if address.startswith("tfds:") else "",
        hub=_under_if_there(root, address.removeprefix("hub:")) if address.startswith("hub:") else "",
        path="" if address.startswith(("tfds:", "hub:")) else _under(root, address),
        split=options.pop("split", split) or "train",
        limit=_integer(text, options, "limit", limit),
        format=options.pop("format", ""),
        scheme=options.pop("scheme", "iob2"),
        blank=options.pop("blank", "refuse"),
        subset=options.pop("subset", ""),
        revision=options.pop("revision", ""),
        delimiter=options.pop("delimiter", ""),
        quotes=options.pop("quotes", ""),
        columns=tuple(sorted(options.items())),
    )
    with _Progress(address) as callback:
        prepared = builders.prepare(source, cache, callback)
    if prepared.dropped:
        _log.info(f"source {address}: {prepared.dropped:,} rows without text dropped, {len(prepared):,} kept")
    if names is not None:
        known = () if source.limit else prepared.types  # the first rows need not hold every type
        prepared.names = read_names(_under(root, names), address, known)
    return prepared


def has_development_rows(text: str, kind: str, root: str) -> bool:
    """Whether the source is generated, or a folder with a file of a usual name (`origins.SPLIT_NAMES`). Of TFDS and the
    hub: never."""
    address, options = _parse(text, kind)
    if address.startswith("generated:"):
        return "split" not in options
    folder = pathlib.Path(_under(root, address))
    return "split" not in options and folder.is_dir() and backends.has_split(folder, "dev")


def check_different(naming: str, texts: Iterable[str], root: str) -> None:
    """Raises UserError where two of the sources `texts` are one, by name or by two spellings of a path.

    Options make no other source: a name ends before '?'. `naming` begins the message: 'SETTING names the source'.
    """
    first: dict[str, str] = {}
    for text in texts:
        address = text.partition("?")[0]
        prefix = next((p for p in ("hub:", "tfds:", "generated:") if address.startswith(p)), "")
        path = _under_if_there(root, address[len(prefix) :]) if prefix == "hub:" else _under(root, address)
        there = not prefix or (prefix == "hub:" and os.path.isdir(path))
        same = prefix + os.path.realpath(path) if there else address.rstrip("/")
        if same in first:
            spelled = "" if first[same] == address else f", once as {first[same]}"
            raise UserError(
                f"{naming} {address} twice{spelled} (a name ends before '?'); name it once, or give a "
                "copy of its files another name"
            )
        first[same] = address


def _parse(text: str, kind: str) -> tuple[str, dict[str, str]]:
    address, written = addresses.split(text)
    known = [*_OPTIONS, *KINDS[kind].fields, *KINDS[kind].optional, *(["names"] if kind == "ner" else [])]
    known += ["subset", "revision"] if address.startswith("hub:") else []
    known += _FILE_OPTIONS if not address.startswith(("hub:", "tfds:")) else []
    if address.startswith("generated:"):
        known = ["rows", "seed", "held_out", "split"]
    options = {urllib.parse.unquote(key): urllib.parse.unquote(value) for key, value in written.items()}
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
            raise UserError(f"source '{text}': option '{key}' is unknown; {hint}")
    return address, options


def _check_one(text: str, root: str) -> None:
    """Raises UserError for several files in one text, by commas or by a pattern."""
    addresses.check_one(text, exists=lambda address: bool(address) and os.path.exists(_under(root, address)))
    pattern = _under(root, text.partition("?")[0])
    if not os.path.exists(pattern) and (files := sorted(glob.glob(pattern))):
        raise addresses.one_by_one(text, files)


def _under(root: str, address: str) -> str:
    """`address` under the data root where it is there, else as it stands."""
    path = user_path(address)
    inside = user_path(root) / path if root else path
    return str(inside if inside.exists() or not path.exists() else path)


def _under_if_there(root: str, address: str) -> str:
    """`address` under the data root where that is a folder, else as it stands: a name on the hub is no path."""
    path = user_path(address)
    inside = user_path(root) / path if root else path
    return str(inside if inside.is_dir() else path)


def _integer(text: str, options: dict[str, str], key: str, default: int) -> int:
    value = options.pop(key, str(default))
    if not (value.isascii() and value.isdigit()):
        raise UserError(f"source '{text}': {key} must be a whole number, not '{value}'")
    return int(value)


def _generated(
    text: str, what: str, kind: str, options: dict[str, str], cache: str, split: str, limit: int
) -> builders.Prepared:
    """Generated records, written to a file once and then read like any other source."""
    if what != kind:
        raise UserError(f"source '{text}' gives '{what}' records where '{kind}' records are needed")
    rows, seed = _integer(text, options, "rows", 2000), _integer(text, options, "seed", 0)
    if seed > MAX_SEED:
        raise UserError(f"source '{text}': seed must be at most {MAX_SEED:,}, not {seed:,}")
    rows = min(rows, limit or rows)
    held_out = bool(_integer(text, options, "held_out", 0))
    # Splits differ by their seed; nothing else is promised of generated text.
    splits = {"": 0, "train": 0, "dev": 1000, "test": 2000}
    split = options.pop("split", split)
    if split not in splits:
        raise UserError(f"source '{text}': no split '{split}'; choose from train, dev, test")
    seed += splits[split]
    name = f"generated_{kind}_{rows}_{seed}" + ("_held_out" if held_out else "")
    records: Iterable[Mapping[str, Any]] = _GENERATED[kind](rows, seed, held_out)
    lines = "".join(json.dumps(r) + "\n" for r in records).encode()
    file = user_path(cache) / f"{name}_{hashlib.sha256(lines).hexdigest()[:16]}.jsonl"
    if not file.exists() or file.read_bytes() != lines:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as whole:
            whole.write_bytes(lines)
    return builders.prepare(builders.Source(name=name, kind=kind, path=str(file)), cache)


@dataclasses.dataclass
class _Progress:
    """A progress bar for building a cache, shown only on a terminal and only once rows are written."""

    name: str
    bar: rich.progress.Progress | None = None
    task: Any = None

    def __enter__(self) -> Any:
        return self.update

    def update(self, done: int, total: int) -> None:
        if self.bar is None:
            self.bar = progress_bar(transient=True)
            self.bar.start()
            self.task = self.bar.add_task(printable(f"reading {self.name}"), total=total)
        self.bar.update(self.task, completed=done)

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()
