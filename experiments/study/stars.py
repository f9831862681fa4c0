"""Two encoders of a study on one task: the tests over its test rows and over seeds, from the cells' files."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.common.study_results import TaskResult, TaskTest
from experiments.study.claims import CLAIMS
from jaxprefit import significance
from jaxprefit.downstream import cells

PAIRS = frozenset((claim.first, claim.second) for claim in CLAIMS)
"""(strategy, reference) that are tested task by task: those that a claim of the paper is about."""

Cells = Sequence[Sequence[pathlib.Path]]
"""Files by seed of pre-finetuning, then of fine-tuning."""


def against(first: Cells, second: Cells, scores: tuple[np.ndarray, np.ndarray], tasks: int) -> TaskTest:
    """The difference of the main score on one task, the seeds averaged, with its interval and p-value over test rows
    and seeds; of texts also `mcnemar`, one p-value per pair of seeds; `aso` over seeds, None where they are too few.
    `scores` are [P, S] of both; `tasks` is the number of tests that `adjusted` will take together, and `p_holm` is not
    adjusted yet.

    A side with one seed of pre-finetuning, such as an encoder that was not trained, stands against each of the other's.
    """
    sides = [[[cells.read(file).counts for file in line] for line in side] for side in (first, second)]
    counts = [np.asarray(side) for side in sides]  # [P, S, N, 2 or 3]
    interval = significance.paired_bootstrap(counts[0], counts[1], draws=draws(tasks))
    texts = counts[0].shape[-1] == 2
    return TaskTest(
        difference=interval.difference,
        interval=(interval.low, interval.high),
        p_value=interval.p_value,
        p_holm=interval.p_value,
        mcnemar=_mcnemar(*sides) if texts else None,
        aso=significance.almost_stochastic_order(scores[0].ravel(), scores[1].ravel()),
    )


def draws(tasks: int) -> int:
    """Of a test's bootstrap, no more than needed, since a study has hundreds of these tests: the smallest p-value, 2 /
    (draws + 1), times the number of tasks that Holm adjusts it for is below 0.05."""
    return max(1_000, 40 * tasks)


def _mcnemar(first: Sequence[Sequence[Any]], second: Sequence[Sequence[Any]]) -> tuple[tuple[float, ...], ...]:
    """P-values [P, S] of McNemar's test, from counts per text by seed of pre-finetuning and of fine-tuning."""
    number = max(len(first), len(second))
    lines = zip(*(side if len(side) == number else [*side] * number for side in (first, second)))
    return tuple(
        tuple(significance.mcnemar(np.asarray(a)[:, 0] > 0, np.asarray(b)[:, 0] > 0) for a, b in zip(*line))
        for line in lines
    )


def adjusted(tasks: Sequence[TaskResult]) -> tuple[TaskResult, ...]:
    """The tasks of one variant, with the `p_holm` of each reference's tests over the tasks."""
    tests = [(i, other, test) for i, t in enumerate(tasks) for other, test in t.versus.items()]
    p_values = significance.holm_by_table((other, test.p_value) for _, other, test in tests)
    versus: list[dict[str, TaskTest]] = [{} for _ in tasks]
    for (i, other, test), p in zip(tests, p_values):
        assert p is not None  # each of these tests has a p-value
        versus[i][other] = dataclasses.replace(test, p_holm=p)
    return tuple(dataclasses.replace(t, versus=v) for t, v in zip(tasks, versus))
