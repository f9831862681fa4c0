"""The downstream tasks that a config names, with the rows to train on and those to score."""

import functools
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

import jaxprefit
from configs.datasets import DATASETS
from experiments.common import family_data
from jaxprefit.data import backends, rows, sources
from jaxprefit.data.builders import Prepared
from jaxprefit.data.registry import resolve
from jaxprefit.downstream import sampling
from jaxprefit.downstream.finetune import FinetuneConfig, TaskData
from jaxprefit.downstream.tasks import TASKS, check_labels
from jaxprefit.errors import UserError
from jaxprefit.runtime.terminal import printable

FEW_ROWS = 3  # fewer equal rows are no sign that one file stands for both
TOLD_SHARE = 0.05  # of the scored rows that are trained on: below it, chance repetitions of short texts


def task_sources(config: ConfigDict) -> list[tuple[str, str]]:
    """(family, short string) of every task of the config. Raises UserError for none, or for one named twice."""
    named = [(f, name) for f, cls in TASKS.items() for name in resolve(config.downstream[f], cls.kind, DATASETS)]
    if not named:
        raise UserError("no task to score; name folders with train and test files in downstream.ner or downstream.tc")
    sources.check_different(
        "downstream.ner and downstream.tc name the task", [source for _, source in named], config.data.root
    )
    return named


def task_names(config: ConfigDict, family: str) -> list[str]:
    """Names of the family's tasks."""
    return [task_name(source) for f, source in task_sources(config) if f == family]


def task_name(source: str) -> str:
    """The name of the task that a source's short string describes, in files and tables."""
    return source.partition("?")[0].replace(":", "_")


def task_rows(source: str, kind: str, config: ConfigDict, cache: str) -> tuple[rows.Rows, rows.Rows, list[str]]:
    """(rows to train on, rows to score, what to tell of them), the second of the split that downstream.split names.

    Without development rows of its own, a task has a tenth of its training rows for that. Raises UserError where both
    are the same rows, and where the development rows are the test rows, so that a setting is chosen on the test.
    """
    split, root = config.downstream.split, config.data.root
    train = sources.prepare(source, kind, root, cache, split="train")
    if split == "dev" and not sources.has_development_rows(source, kind, root):
        names = ", ".join(backends.split_names("dev"))
        cut = f"a tenth of its training rows is held out for development, as no file called {names} is there"
        return *sampling.cut_development(train), [cut]
    scored = sources.prepare(source, kind, root, cache, split=split)
    what = {"dev": "development", "test": "test"}[split]
    if split == "dev" and (test := _test_rows(source, kind, root, cache)):
        check_differ(source, {"test": test, what: scored})
    share = check_differ(source, {"training": train, what: scored})
    notes = [f"{share:.0%} of its {what} rows stand among its training rows, too"] if share >= TOLD_SHARE else []
    return rows.Rows(train, range(len(train))), rows.Rows(scored, range(len(scored))), notes


def _test_rows(source: str, kind: str, root: str, cache: str) -> Prepared | None:
    """The task's test rows; None where it has none that can be read."""
    try:
        return sources.prepare(source, kind, root, cache, split="test")
    except UserError:
        return None


def check_differ(source: str, parts: Mapping[str, Prepared]) -> float:
    """The share of the second part's rows that stand in the first, two parts of one task by what they are for.

    Raises UserError where both hold the same rows, in whatever order; fewer than FEW_ROWS may agree by chance, as in
    an example, and are told.
    """
    (one, first), (other, second) = parts.items()
    share, same = overlap(first.directory, second.directory)
    if same and len(second) >= FEW_ROWS:
        raise UserError(
            f"task '{source}': its {other} rows are its {one} rows; name a folder with rows of its own for each"
        )
    return share


@functools.lru_cache(maxsize=256)
def overlap(first: pathlib.Path, second: pathlib.Path) -> tuple[float, bool]:
    """(share of the second's rows that stand in the first, whether both are the same rows), of two prepared folders.

    A grid asks again for each of its parts.
    """
    hashes = [
        [hash(json.dumps(data[i], sort_keys=True)) for i in range(len(data))]
        for data in (Prepared(folder, folder.name) for folder in (first, second))
    ]
    known = {*hashes[0]}
    return sum(h in known for h in hashes[1]) / len(hashes[1]), sorted(hashes[0]) == sorted(hashes[1])


MAIN_SCORE = {"ner": "f1", "tc": "accuracy"}


NOT_RECIPE = ("ner", "tc", "seeds", "cache_mb")  # what does not change a cell's result


def description(config: ConfigDict) -> dict[str, Any]:
    """What scores.json says of how they are taken, as JSON: 'downstream' and 'lora'."""
    settled = {k: v for k, v in config.downstream.to_dict().items() if k not in NOT_RECIPE}
    arithmetic = {"dtype": config.model.dtype, "hidden_dropout": config.model.hidden_dropout}
    described: dict[str, Any] = {"downstream": settled | arithmetic, "lora": config.lora.to_dict()}
    return json.loads(json.dumps(described))


def recipe(config: ConfigDict) -> FinetuneConfig:
    """The config's recipe. Raises UserError for a mode that does not exist."""
    c = config.downstream
    cfg = FinetuneConfig(
        c.mode, c.steps, c.batch_size, c.fraction, c.lora_lr, c.head_lr, c.backbone_lr, c.limit, c.cache_mb, c.shots
    )
    cfg.validate()
    return cfg


def load_those_that_can(
    config: ConfigDict, workdir: pathlib.Path, model: jaxprefit.Model
) -> tuple[list[TaskData], dict[str, str]]:
    """The config's tasks, and by name the reason of each that cannot be read, so that one does not stop the rest.

    Raises UserError with the first reason where none can.
    """
    check_length(config, model)
    tasks: list[TaskData] = []
    unreadable: dict[str, str] = {}
    for family, source in task_sources(config):
        try:
            tasks.append(load_task(config, workdir, model, family, source))
        except UserError as error:
            unreadable[task_name(source)] = str(error)
    if not tasks:
        raise UserError(next(iter(unreadable.values())))
    for name, reason in unreadable.items():
        print(printable(f"{name} failed: {reason}"), file=sys.stderr)
    return tasks, unreadable


def load_tasks(config: ConfigDict, workdir: pathlib.Path, model: jaxprefit.Model) -> list[TaskData]:
    """The config's tasks with their train and test rows. Raises UserError for one that cannot be read."""
    check_length(config, model)
    return [load_task(config, workdir, model, family, source) for family, source in task_sources(config)]


def load_task(config: ConfigDict, workdir: pathlib.Path, model: jaxprefit.Model, family: str, source: str) -> TaskData:
    """One task with its train and test rows."""
    cache, longest, cls = str(family_data.cache_folder(config, workdir)), config.downstream.max_length, TASKS[family]
    train, test, told = task_rows(source, cls.kind, config, cache)
    check_labels(source, train.data, test.data)
    task = cls.create({"max_length": longest}, [train.data], model.tokenizer)
    return TaskData(task_name(source), family, task, train, test, tuple(told))


def check_length(config: ConfigDict, model: jaxprefit.Model) -> None:
    """Raises UserError for a downstream.max_length that the encoder does not take."""
    longest, most = config.downstream.max_length, model.config.max_positions
    if not 4 <= longest <= most:
        raise UserError(f"downstream.max_length is {longest}; this encoder takes 4 to {most} tokens")
