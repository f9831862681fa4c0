"""What a reader must know beside a task's scores, one sentence each: where a score says less than it seems to."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxprefit.downstream.cells import Cell, cuts
from jaxprefit.downstream.finetune import TaskData
from jaxprefit.encoder.cuts import share

CUT_TOLD = 0.05  # share of a test's entities beyond max_length that is told


def says_nothing(data: TaskData, cell: Cell) -> list[str]:
    """Why the task's main score is the same for every model that is worth the name; empty where it is not.

    Such a score is left out of averages.
    """
    if data.task.kind == "ner":
        right, _, missed = np.sum(cell.counts, 0)
        return [] if right + missed else ["no scored row has an entity, so F1 has nothing to find"]
    if len(data.task.labels) == 1:
        return [f"{data.task.labels[0]!r} is its only label, so any model is always right"]
    return []


def of_scores(data: TaskData, cell: Cell, mean: Mapping[str, float]) -> list[str]:
    """Classes that nothing was learned of, entities that were cut, a test of one label, a lenient F1 below the strict
    one."""
    if data.task.kind == "ner":
        notes = _unlearned("entity types", _types(cell.unseen), len(_types(cell.labels)))
        test = cuts(data, cell)["test"]
        if (cut := share(test, "entities")) > CUT_TOLD:
            notes.append(
                f"{100 * cut:.1f} % of the entities, {test['cut_entities']:,} of {test['entities']:,}, are beyond "
                f"downstream.max_length, {data.task.max_length}, and count as missed; take a larger one"
            )
        if mean["f1_lenient"] < mean["f1"]:
            notes.append("the lenient F1 is the lower one: ill-formed tags, once repaired, are mostly wrong entities")
        return notes
    notes = _unlearned("labels", cell.unseen, len(cell.labels))
    labels = {data.test[i]["label"] for i in range(len(data.test))}
    if len(labels) == 1 < len(cell.labels):
        notes.append(f"every scored row has the label {labels.pop()!r}: to say always that is to be always right")
    return notes


def _types(tags: Sequence[str]) -> list[str]:
    """The entity types that the tags begin."""
    return [tag[2:] for tag in tags if tag.startswith("B-")]


def _unlearned(what: str, unseen: Sequence[str], number: int) -> list[str]:
    """That some of the `number` classes have no row to learn from; empty where each has."""
    if not unseen:
        return []
    names = ", ".join(map(repr, unseen[:5])) + (" ..." if len(unseen) > 5 else "")
    return [f"{len(unseen)} of {number} {what} are in none of the rows trained on: {names}"]
