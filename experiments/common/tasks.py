"""The downstream tasks that a config names, with the rows to train on and those to score."""

import functools
import json
import pathlib
from collections.abc import Mapping

from ml_collections import ConfigDict

from configs.datasets import DATASETS
from jaxprefit.data import backends, sources
from jaxprefit.data.builders import Prepared
from jaxprefit.data.registry import resolve
from jaxprefit.downstream import sampling
from jaxprefit.downstream.tasks import TASKS
from jaxprefit.errors import UserError
from jaxprefit.families import mixture

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


def task_rows(source: str, kind: str, config: ConfigDict, cache: str) -> tuple[mixture.Rows, mixture.Rows, list[str]]:
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
    return mixture.Rows(train, range(len(train))), mixture.Rows(scored, range(len(scored))), notes


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
