"""One finished cell of a grid, a task with a seed, as one file: its scores, and the predictions they come from, with
what is right in each row, so that two cells can be tested against each other without the data.

A cell appears whole or not at all, so that a grid can be stopped at any moment and continued.
"""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import numpy as np

from jaxprefit import significance
from jaxprefit.downstream.evaluate import score, strict_scores
from jaxprefit.downstream.finetune import Finetuned, Predictions, TaskData, cuts_of, encoded
from jaxprefit.errors import UserError
from jaxprefit.runtime.files import write_json

CELL_VERSION = 2
NAME_BYTES = 120  # of a task in a file's name; file systems allow 255 for all of it
ROWS = ("predictions", "counts")  # one line of numbers per test row


@dataclasses.dataclass(frozen=True)
class Cell:
    """One task fine-tuned with one seed."""

    task: str
    family: str
    seed: int
    train_rows: int  # trained on
    unseen: tuple[str, ...]  # classes that none of those rows has
    scores: dict[str, float]
    labels: tuple[str, ...]
    predictions: Predictions  # indices into labels, per test row
    counts: list[list[int]]  # per test row, what `significance.paired_bootstrap` takes: [N, 3] of NER, [N, 2] of TC
    cuts: dict[str, dict[str, int]] | None = None  # reports of `Finetuned.cuts`; None in cells of before they were kept


def file_name(task: str, seed: int, digest: str) -> str:
    """The name of a cell's file. A task's name that is too long for a file system is cut, and ends in a hash of it."""
    stem = task.replace("/", "_")
    if len(stem.encode()) > NAME_BYTES:
        start = stem.encode()[:NAME_BYTES].decode(errors="ignore")  # a character may be of several bytes
        stem = f"{start}-{hashlib.sha256(task.encode()).hexdigest()[:12]}"
    return f"{stem}-seed{seed}-{digest}.json"


def make(data: TaskData, seed: int, found: Finetuned) -> Cell | UserError:
    """The scored cell of one seed, or the reason why it failed."""
    predictions = found.predictions[seed]
    if isinstance(predictions, UserError):
        return predictions
    return Cell(
        data.name, data.family, seed, found.train_rows, found.unseen, scores(data, predictions), data.task.labels,
        predictions, counts(data, predictions).tolist(), {rows: cuts.report() for rows, cuts in found.cuts.items()},
    )  # fmt: skip


def scores(data: TaskData, predictions: Predictions) -> dict[str, float]:
    """Scores of predictions on a task's test rows; those of a saved cell are its own scores again."""
    rows = [data.test[i] for i in range(len(data.test))]
    return score(data.task.kind, data.task.labels, rows, predictions)


def counts(data: TaskData, predictions: Predictions) -> np.ndarray:
    """[N, 3] per sentence of a NER task: right, wrong and missed spans; [N, 2] per text of a TC task: right, wrong."""
    labels, rows = data.task.labels, [data.test[i] for i in range(len(data.test))]
    if data.task.kind == "ner":
        tags = [[labels[c] for c in classes] for classes in predictions]
        return significance.span_counts([r["tags"] for r in rows], tags)
    return significance.label_counts([r["label"] for r in rows], [labels[c] for (c,) in predictions])


def cuts(data: TaskData, cell: Cell) -> dict[str, dict[str, int]]:
    """What was beyond max_length, as reports by 'train' and 'test'; the test's alone of a cell that did not keep it."""
    return cell.cuts or {"test": cuts_of(encoded(data.task, data.test)).report()}


def write(file: pathlib.Path, cell: Cell) -> None:
    """One line of text per test row, its classes by number; another for its counts."""
    content: dict[str, Any] = {"schema": "jaxprefit.cell", "version": CELL_VERSION, **dataclasses.asdict(cell)}
    for key in ROWS:
        content[key] = [" ".join(map(str, numbers)) for numbers in content[key]]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, content)


def read(file: pathlib.Path) -> Cell:
    """The cell that `write` wrote. Raises UserError for another version or a damaged file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content.pop("schema") != "jaxprefit.cell" or content.pop("version") != CELL_VERSION:
            raise UserError(f"{file} is a cell of another version; delete it, and it is computed again")
        for key in ROWS:
            content[key] = [[int(c) for c in line.split()] for line in content[key]]
        content["unseen"], content["labels"] = tuple(content["unseen"]), tuple(content["labels"])
        if content["family"] == "ner":  # of an older version they may be other than those of the counts
            content["scores"] |= strict_scores(content["counts"])
        return Cell(**content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{file} is damaged ({type(error).__name__}); delete it, and it is computed again"
        raise UserError(reason) from None
