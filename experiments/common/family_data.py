"""Families with their rows: from the sources that a config names to streams of batches."""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import tokenizers
from ml_collections import ConfigDict

from configs.datasets import DATASETS
from jaxprefit.data import sources
from jaxprefit.data.builders import Prepared
from jaxprefit.data.overlap import OverlapFilter
from jaxprefit.data.packing import Layout
from jaxprefit.data.registry import concepts, resolve
from jaxprefit.data.rows import Rows, split_held_out
from jaxprefit.downstream.tasks import TASKS
from jaxprefit.errors import UserError
from jaxprefit.families import FAMILIES, Family, mixture
from jaxprefit.runtime.paths import user_path

Parts = list[tuple[str, Rows]]


@dataclasses.dataclass(frozen=True)
class FamilyData:
    """One family with its rows: those trained on, and some of each source, held out."""

    family: Family
    train: Parts
    held_out: Parts
    dropped: dict[str, int]  # source -> number of its rows left out since they stand in a test set


def cache_folder(config: ConfigDict, workdir: pathlib.Path) -> pathlib.Path:
    """Where caches of data live: data.cache, or 'cache' beside the workdir, shared by the runs there."""
    return user_path(config.data.cache) if config.data.cache else workdir.parent / "cache"


def load(config: ConfigDict, tokenizer: tokenizers.Tokenizer, cache: pathlib.Path) -> dict[str, FamilyData]:
    """Every family that the config names, over its prepared sources."""
    level, out = config.data.get("drop_overlap", ""), {}
    kept = OverlapFilter([t for ts in test_sets(config, cache).values() for t in ts], level, cache) if level else None
    for name in FAMILIES:
        prepared = prepared_sources(config, name, cache)
        if not prepared:
            continue
        rows = [Rows(p, kept.kept(p) if kept else range(len(p))) for p in prepared]
        dropped = {r.data.name: len(r.data) - len(r) for r in rows}
        for source in (r.data for r in rows if not len(r)):
            raise UserError(
                f"source '{source.name}': all of its {len(source):,} rows stand in a test set "
                f"(data.drop_overlap={level}); leave the source out, or the test"
            )
        parts = [(r.data.name, *split_held_out(r, config.data.held_out)) for r in rows]
        settings = config.data[name]
        family = FAMILIES[name].of(settings).create(settings.to_dict(), prepared, tokenizer)
        out[name] = FamilyData(family, [(n, a) for n, a, _ in parts], [(n, b) for n, _, b in parts], dropped)
    return out


def prepared_sources(config: ConfigDict, name: str, cache: pathlib.Path) -> list[Prepared]:
    """The sources that the config names for a family."""
    kind, c = FAMILIES[name].of(config.data[name]).kind, config.data
    named = resolve(c[name].sources, kind, DATASETS)
    sources.check_different(f"data.{name}.sources names the source", named, c.root)
    prepared = [sources.prepare(s, kind, c.root, str(cache), limit=c.limit) for s in named]
    for p in prepared:  # names that the source string gives go before those of the registry
        p.names = {**concepts(p.name, p.types, DATASETS), **p.names}
    return prepared


def test_sets(config: ConfigDict, cache: pathlib.Path) -> dict[str, list[Prepared]]:
    """The test rows of the downstream tasks, by family."""
    root = config.data.root
    return {
        name: [
            sources.prepare(s, cls.kind, root, str(cache), split="test")
            for s in resolve(config.downstream[name], cls.kind, DATASETS)
        ]
        for name, cls in TASKS.items()
    }


def streams(data: Mapping[str, FamilyData], trained: Iterable[str], config: ConfigDict, seed: int) -> dict[str, Any]:
    """One iterator of batches (`mixture.Drawn`) per trained family."""
    out = {}
    for i, name in enumerate(FAMILIES):
        if name in trained:
            d, c = data[name], config.data[name]
            # Seeds apart by more than any number of sources, so that families draw independently.
            out[name] = mixture.mixture(
                d.family,
                d.train,
                requested_shares(config, d),
                layout(config, name),
                seed * 1_000_003 + 1_000 * i,
                c.exhaustion,
            )
    return out


def layout(config: ConfigDict, name: str) -> Layout:
    """The shape of the family's batches."""
    return Layout.of(config.data[name].rows, config.data[name].row_length)


def requested_shares(config: ConfigDict, data: FamilyData) -> dict[str, float]:
    """Source -> the share of the family's examples that the config asks for."""
    c, name = config.data[data.family.name], data.family.name
    weights = parse_weights(c.weights, f"data.{name}.weights")
    return mixture.shares({source: len(rows) for source, rows in data.train}, weights, c.alpha, name)


def parse_weights(text: str, key: str) -> dict[str, float]:
    """'a=2,b=0.5' -> {'a': 2.0, 'b': 0.5}."""
    weights = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        try:
            weights[name.strip()] = float(value)
        except ValueError:
            raise UserError(f"{key} has '{part}'; write it as name=number,name=number") from None
    return weights
