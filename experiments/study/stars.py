"""Two encoders of a study on one task: the tests over its test rows and over seeds, from the cells' files."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.study.claims import CLAIMS
from jaxprefit import significance
from jaxprefit.downstream import cells

PAIRS = frozenset((claim.first, claim.second) for claim in CLAIMS)
"""(strategy, reference) that are tested task by task: those that a claim of the paper is about."""

Cells = Sequence[Sequence[pathlib.Path]]
"""Files by seed of pre-finetuning, then of fine-tuning."""


def against(mine: Cells, other: Cells, scores: tuple[np.ndarray, np.ndarray], tasks: int) -> dict[str, Any]:
    """The difference of the main score on one task, the seeds averaged, with its interval and p-value over test rows
    and seeds; of texts also `mcnemar`, one p-value per pair of seeds; `aso` over seeds, None where they are too few.
    `scores` are [P, S] of both; `tasks` is the number of tests that `adjust` will take together.

    A side with one seed of pre-finetuning, such as an encoder that was not trained, stands against each of the other's.
    """
    first, second = ([[cells.read(file).counts for file in line] for line in side] for side in (mine, other))
    counts = [np.asarray(side) for side in (first, second)]  # [P, S, N, 2 or 3]
    found = significance.paired_bootstrap(counts[0], counts[1], draws=draws(tasks))
    texts = counts[0].shape[-1] == 2
    return {
        "difference": found.difference,
        "interval": [found.low, found.high],
        "p_value": found.p_value,
        "mcnemar": _mcnemar(first, second) if texts else None,
        "aso": significance.almost_stochastic_order(scores[0].ravel(), scores[1].ravel()),
    }


def draws(tasks: int) -> int:
    """Of a test's bootstrap, no more than needed, since a study has hundreds of these tests: the smallest p-value, 2 /
    (draws + 1), times the number of tasks that Holm adjusts it for is below 0.05."""
    return max(1_000, 40 * tasks)


def _mcnemar(first: Sequence[Sequence[Any]], second: Sequence[Sequence[Any]]) -> list[list[float]]:
    """[P, S]."""
    number = max(len(first), len(second))
    lines = zip(*(side if len(side) == number else [*side] * number for side in (first, second)))
    return [
        [significance.mcnemar(np.asarray(a)[:, 0] > 0, np.asarray(b)[:, 0] > 0) for a, b in zip(*line)]
        for line in lines
    ]


def adjust(tasks: Sequence[Mapping[str, Any]]) -> None:
    """Adds `p_holm`, over the tasks, to the tests of one variant."""
    for other in {name for t in tasks for name in t["versus"]}:
        mine = {t["task"]: t["versus"][other] for t in tasks if other in t["versus"]}
        adjusted = significance.holm({name: found["p_value"] for name, found in mine.items()})
        for name, found in mine.items():
            found["p_holm"] = adjusted[name]
