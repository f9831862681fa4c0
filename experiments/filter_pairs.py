r"""Keeps the text pairs whose partner an encoder finds again: a source's rows, filtered once, before training.

python -m experiments.filter_pairs --config=configs/minilm.py --checkpoint=runs/individual_tc --workdir=DATA_FILTERED \
    --config.data.root=DATA

For every source of data.tc.sources, a pair is kept if its b is among the filter.top_k nearest to its a, compared with a
sample of filter.sample b of that source (as E5, arXiv 2212.03533). --checkpoint is a run's workdir, one of its
steps, or a Hugging Face directory; a run's TC adapter is used where there is one. Writes WORKDIR/SOURCE/train.jsonl.xz,
so that --config.data.root=WORKDIR trains on what was kept, and WORKDIR/filter.json with the kept share of each source.
"""

import functools
import json
import lzma
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

import jaxprefit
from experiments.common import cli, family_data, workdirs
from experiments.common.checks import check
from experiments.common.workdirs import owned
from jaxprefit.data import sources
from jaxprefit.data.builders import Prepared
from jaxprefit.data.pair_filter import consistent
from jaxprefit.errors import UserError
from jaxprefit.runtime.files import read_json, write_json
from jaxprefit.runtime.terminal import plain, printable, progress_bar

FILTER_VERSION = 1
ROWS = "train.jsonl.xz"  # name of a source's file


@owned("filter_pairs")
def run(config: ConfigDict, workdir: pathlib.Path, checkpoint: str) -> dict[str, Any]:
    """Filters every source, and returns what filter.json holds."""
    if not checkpoint:
        raise UserError("--checkpoint is missing; give a run's workdir or a Hugging Face directory")
    check(config)
    c, tc = config.filter, config.data.tc
    if not tc.sources:
        raise UserError("data.tc.sources is empty; name the sources of pairs to filter")
    model = jaxprefit.load(checkpoint)
    adapter = "tc" if "tc" in model.adapters else None
    cache = str(family_data.cache_folder(config, workdir))
    prepared = [sources.prepare(s, "pairs", config.data.root, cache, limit=config.data.limit) for s in tc.sources]
    folders = [workdir / folder_name(p.name) for p in prepared]
    earlier = read_json(workdir / "filter.json")["sources"] if (workdir / "filter.json").exists() else []
    written = [workdir / s["folder"] for s in earlier]
    for folder, source in zip(folders, prepared):
        if folders.count(folder) > 1:
            raise UserError(f"data.tc.sources names two sources that would both be {folder}, as '{source.name}'")
        if (folder / ROWS).exists() and not (folder in written or workdirs.is_marked(folder)):
            raise UserError(f"{folder / ROWS} was not written by filter_pairs; give another --workdir")
        if len(source) <= c.top_k:
            raise UserError(f"source '{source.name}' has {len(source)} rows, so each would rank in the top {c.top_k}")

    def vectors(texts: list[str]) -> np.ndarray:
        return model.encode(texts, adapter, tc.max_length, tokens=False).sentence

    results = []
    with progress_bar() as bar:
        for source, folder in zip(prepared, folders):
            row = bar.add_task(printable(source.name), total=len(source))
            kept = consistent(
                _Prefixed(source, tc.prefix_a, tc.prefix_b),
                vectors,
                c.top_k,
                c.sample,
                c.seed,
                progress=functools.partial(_advance, bar, row),
            )
            workdirs.mark(folder, "filter_pairs")
            write_rows(folder / ROWS, [source[int(i)] for i in np.flatnonzero(kept)])
            results.append(
                {
                    "source": source.name,
                    "folder": folder.relative_to(workdir).as_posix(),
                    "sample": min(c.sample, len(source)),
                    "rows": len(kept),
                    "kept": int(kept.sum()),
                    "share": float(kept.mean()),
                }
            )
    content = {
        "schema": "jaxprefit.filter",
        "version": FILTER_VERSION,
        "checkpoint": checkpoint,
        "adapter": adapter,
        "top_k": c.top_k,
        "sample": c.sample,
        "seed": c.seed,
        "max_length": tc.max_length,
        "sources": results,
    }
    write_json(workdir / "filter.json", content)
    print_table(content)
    return content


class _Prefixed:
    """Pairs with the prefixes that the model was trained with."""

    def __init__(self, pairs: Prepared, prefix_a: str, prefix_b: str) -> None:
        self.pairs, self.prefix_a, self.prefix_b = pairs, prefix_a, prefix_b

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Mapping[str, str]:
        record = self.pairs[index]
        return {"a": self.prefix_a + record["a"], "b": self.prefix_b + record["b"]}


def folder_name(source: str) -> str:
    """Where a source's rows go below the workdir: under its own name, whatever that is."""
    parts = [re.sub(r"[^\w.+-]", "_", part) for part in pathlib.PurePath(source).parts]
    return "/".join(part for part in parts if part.strip("._"))


def write_rows(file: pathlib.Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Rows as JSON lines, compressed; whole or not at all."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    with lzma.open(temporary, "wt", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    os.replace(temporary, file)


def print_table(content: dict[str, Any]) -> None:
    """Rows and kept share of each source."""
    title = f"pairs whose b ranks in the top {content['top_k']} of a sample of {content['sample']}"
    table = Table("source", "rows", "kept", "share", title=title)
    for r in content["sources"]:
        table.add_row(plain(r["source"]), f"{r['rows']:,}", f"{r['kept']:,}", f"{100 * r['share']:.1f} %")
    Console(width=100).print(table)


def _advance(bar: Progress, row: TaskID, done: int) -> None:
    bar.update(row, completed=done)


if __name__ == "__main__":
    cli.run(run, __doc__ or "", checkpoint="A run's workdir, one of its steps, or a Hugging Face directory.")
