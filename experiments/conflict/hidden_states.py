"""Hidden states of several encoders on the texts of a config, measured layer by layer."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

import jaxprefit
from configs.datasets import DATASETS
from experiments.common import assembly, family_data
from jaxprefit.data import sources
from jaxprefit.data.builders import Prepared
from jaxprefit.data.registry import resolve
from jaxprefit.downstream.tasks import TASKS
from jaxprefit.encoder.tokenization import encode_text, encode_words
from jaxprefit.errors import UserError
from jaxprefit.representations.comparison import measure, steps
from jaxprefit.representations.hidden import View, views
from jaxprefit.representations.probes import Probe
from jaxprefit.representations.texts import Origin, Sample
from jaxprefit.runtime.terminal import printable, progress_bar

ROWS_OF = ("data.ner.sources", "data.tc.sources", "data.held_out", "data.limit", "data.drop_overlap")
"""What decides which rows of a run are held out."""


def measure_models(config: ConfigDict, workdir: pathlib.Path, models: Mapping[str, jaxprefit.Model]) -> dict[str, Any]:
    """What representations.json holds, of loaded models by name; the first is the one to compare with."""
    c = config.conflict.representations
    tokenizer = next(iter(models.values())).tokenizer
    for name, model in models.items():
        if model.tokenizer.to_str() != tokenizer.to_str():
            raise UserError(f"'{name}' has another tokenizer than '{next(iter(models))}'; tokens cannot be compared")
    looked = [view for name, model in models.items() for view in views(name, model)]
    train, test = downstream_rows(config, workdir, "train"), downstream_rows(config, workdir, "test")
    samples = draw(config, workdir, models, test)
    probes = [
        Probe.of(a.name, a, b, tokenizer, config.downstream.max_length, c.fold_rows, c.folds, c.seed)
        for family in TASKS
        for a, b in zip(train[family], test[family])
    ]
    settings = {"models": [_described(view, models[view.name.partition("+")[0]]) for view in looked]}
    with progress_bar() as bar:
        row = bar.add_task("reading", total=steps(looked, samples, probes))
        return measure(
            looked,
            samples,
            probes,
            settings,
            c.seed,
            lambda what: bar.update(row, advance=1, description=printable(what)),
        )


def downstream_rows(config: ConfigDict, workdir: pathlib.Path, split: str) -> dict[str, list[Prepared]]:
    """The rows of the downstream tasks, by family."""
    cache, d = str(family_data.cache_folder(config, workdir)), config.downstream
    return {
        name: [
            sources.prepare(s, cls.kind, config.data.root, cache, split=split)
            for s in resolve(d[name], cls.kind, DATASETS)
        ]
        for name, cls in TASKS.items()
    }


def draw(
    config: ConfigDict,
    workdir: pathlib.Path,
    models: Mapping[str, jaxprefit.Model],
    tests: Mapping[str, Sequence[Prepared]],
) -> list[Sample]:
    """The texts of each family: as many from each source's held-out rows and each task's test rows."""
    c = config.conflict.representations
    rng = np.random.default_rng(c.seed)
    tokenizer, length = next(iter(models.values())).tokenizer, config.downstream.max_length
    data = held_out_data(config, workdir, models)
    samples = []
    for name in TASKS:
        parts: list[tuple[str, Any, Any]] = []  # name, rows, a record's texts as ids
        if name in data:
            family = data[name].family
            # A hard negative says something else, so a pair is the first two.
            parts += [
                (source, rows, lambda r, f=family, s=source: tuple(f.encode_record(r, s)["texts"][:2]))
                for source, rows in data[name].held_out
            ]
        for test in tests[name]:
            if name == "ner":
                parts.append((test.name, test, lambda r: (encode_words(tokenizer, r["tokens"], length)[0],)))
            else:
                parts.append((test.name, test, lambda r: (encode_text(tokenizer, r["text"], length),)))
        origins = []
        for source, rows, encode in parts:
            share = -(-c.texts // len(parts))
            order = rng.permutation(len(rows))
            records: list[tuple[np.ndarray, ...]] = []
            for i in order:
                if sum(map(len, records)) >= share:
                    break
                records.append(encode(rows[int(i)]))
            origins.append(Origin(source, records))
        if origins:
            samples.append(Sample.of(name, origins, tokenizer, c.tokens, c.seed))
    if not samples:
        raise UserError("no texts to measure on; give a run, or name data.ner.sources or downstream.ner in the config")
    return samples


def held_out_data(
    config: ConfigDict, workdir: pathlib.Path, models: Mapping[str, jaxprefit.Model]
) -> dict[str, family_data.FamilyData]:
    """The families' data of the runs among `models`, which must hold out the same rows; without a run, the config's."""
    runs = {name: model for name, model in models.items() if model.meta}
    if not runs:
        tokenizer = next(iter(models.values())).tokenizer
        return family_data.load(config, tokenizer, family_data.cache_folder(config, workdir))
    (name, model), *others = runs.items()
    for other, also in others:
        for key in ROWS_OF:
            if _rows_of(also, key) != _rows_of(model, key):
                raise UserError(
                    f"'{other}' was trained with other {key} than '{name}'; a row held out by one may be known to the "
                    "other, so compare runs on the same data"
                )
    return assembly.reopen(model, config, workdir)[1]


def _rows_of(model: jaxprefit.Model, key: str) -> Any:
    return json.loads(json.dumps(flatten_dict(model.meta["config"], sep=".").get(key)))


def _described(view: View, model: jaxprefit.Model) -> dict[str, Any]:
    return {
        "name": view.name,
        "strategy": model.strategy.name,
        "step": model.meta.get("step"),
        "adapter": view.name.partition("+")[2] or None,
    }
