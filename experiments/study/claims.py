"""The paper's claims (arXiv 2510.07566) beside what a study finds, each marked by the statistics.

The rule, fixed for all pages: a claim about one family of tasks at one place (a start, mode and fraction) is decided
where the t test over tasks and seeds of pre-finetuning (`significance.mean_difference`) against its margin is below
LEVEL, adjusted (Holm) over the claims about that family there. CLAIMS are named before any score is seen, so that
their number depends on no result. Wilcoxon's exact test over nine tasks with Holm over both families' lines, the rule
until now, decides only if all nine agree: simulated with the spread between tasks that this study has (1.8 points), it
finds a true difference of 2 points in 21 % of studies, and of 3 in 59 %, against 52 % and 91 %. The t test keeps its
level there (intervals cover 95 %). Tasks count as drawn independently, which those of one suite, such as CrossNER's,
are not quite.
"""

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from experiments.common.study_results import AverageResult, ClaimResult, Difference, TestedClaim, Verdict
from experiments.study.expansion import Entry
from jaxprefit import significance

LEVEL = 0.05
"""Of a false verdict among the claims about one family at one start, mode and fraction."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim that the mean score of the strategy `first` exceeds that of `second` by more than `margin`, in each of
    the families. For each strategy stands the variant that `fronts.chosen` names."""

    text: str
    paper: str
    first: str
    second: str
    margin: float = 0.0  # of scores in [0, 1]
    families: tuple[str, ...] = ("ner", "tc")
    fraction: float | None = None  # of the training labels; None: at each


CLAIMS = (
    Claim("individual > none", "yes, in both families", "individual", "none"),
    Claim("naive < individual", "yes, overall", "individual", "naive"),
    Claim("task_primary is at most 0.5 points below individual", "comparable, with one backbone", "task_primary",
          "individual", -0.005),
    Claim("task_primary > naive", "yes (less interference)", "task_primary", "naive"),
    Claim("task_primary gains more than 8.4 points over none at 10 % of the NER labels", "+8.4 % F1", "task_primary",
          "none", 0.084, ("ner",), 0.1),
)  # fmt: skip


Table = Mapping[str, np.ndarray]
"""Task -> main scores [P, S] by seed of pre-finetuning and of fine-tuning, of the tasks that are complete."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """The differences that a claim is about at one place, that of `entry`: a start, mode and fraction."""

    claim: Claim
    entry: Entry
    second: str  # the variant that the entry's is compared with
    differences: Mapping[str, np.ndarray]  # task -> first minus second, [P, S] as in Table


def measure(
    entries: Sequence[Entry],
    tables: Mapping[Entry, Table],
    reference: Callable[[Entry, str], Table | None],
    stands: Mapping[str, Mapping[str, str]],
) -> list[Measured]:
    """The differences of each claim, start, mode, fraction and family that the study has scores for.

    `stands` are start -> strategy -> the variant chosen for it, `reference` gives the scores of another variant at an
    entry's capacity.
    """
    out = []
    for claim in CLAIMS:
        for e in entries:
            at = claim.fraction is None or e.fraction == claim.fraction
            chosen = stands[e.start]
            compared = chosen.get(claim.first) == e.variant and claim.second in chosen
            if not (at and compared and e.family in claim.families):
                continue
            second = chosen[claim.second]
            first, other = tables[e], reference(e, second)
            if other is None:  # not scored at this capacity
                continue
            if differences := {name: first[name] - other[name] for name in first if name in other}:
                out.append(Measured(claim, e, second, differences))
    return out


def judge(measured: Sequence[Measured]) -> list[ClaimResult]:
    """The verdict on each claim, adjusted (Holm) over those about one start, mode, fraction and family."""
    lines = []
    for m in measured:
        e = m.entry
        lines.append(ClaimResult(
            claim=m.claim.text, paper=m.claim.paper, first=e.variant, second=m.second, start=e.start, mode=e.mode,
            fraction=e.fraction, family=e.family, **_tested(m.claim, m.differences),
        ))  # fmt: skip
    return _decided(lines, lambda line: (line.start, line.mode, line.fraction, line.family))


def average(measured: Sequence[Measured]) -> list[AverageResult]:
    """The verdict on each claim over the modes and fractions of a start, and (start None) over all starts.

    Each task's differences are averaged over two or more of these, then tested as those of one; Holm over a start and
    family.
    """
    groups: dict[tuple[Claim, str | None, str], list[Measured]] = {}
    for start in (*dict.fromkeys(m.entry.start for m in measured), None):
        for m in measured:
            if start in (m.entry.start, None):
                groups.setdefault((m.claim, start, m.entry.family), []).append(m)
    lines = []
    for (claim, start, family), group in groups.items():
        shared = [task for task in group[0].differences if all(task in m.differences for m in group)]
        if len(group) < 2 or not shared or (start is None and len({m.entry.start for m in group}) < 2):
            continue
        differences = {task: _mean([m.differences[task] for m in group]) for task in shared}
        lines.append(AverageResult(
            claim=claim.text, start=start, family=family, places=len(group), **_tested(claim, differences)
        ))  # fmt: skip
    return _decided(lines, lambda line: (line.start, line.family))


def _mean(differences: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of differences [P, S]; where these have other numbers of seeds, of their means over seeds: [1, 1]."""
    alike = len({d.shape for d in differences}) == 1
    return np.mean([d if alike else d.mean(keepdims=True) for d in differences], 0)


def _tested(claim: Claim, differences: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The fields of a `TestedClaim` that the differences [P, S] by task decide, before its adjustment."""
    tested = over_tasks(np.asarray([*differences.values()]), claim.margin)
    return {**vars(tested), "margin": claim.margin, "p_holm": None, "verdict": "undecided"}


def over_tasks(differences: np.ndarray, margin: float = 0.0) -> Difference:
    """The mean of [T, P, S], by task and seed of pre-finetuning and of fine-tuning, with its interval and p-value
    against the margin (`significance.mean_difference` over tasks and seeds of pre-finetuning).

    Fine-tuning seeds are averaged before: their noise is part of what differs between tasks.
    """
    tested = significance.mean_difference(differences.mean(2), margin)
    low, high = tested["interval"]
    return Difference(
        tasks=len(differences), difference=tested["difference"], interval=(low, high), p_value=tested["p_value"]
    )


Line = TypeVar("Line", bound=TestedClaim)


def _decided(lines: Sequence[Line], table: Callable[[Line], Hashable]) -> list[Line]:
    """The lines with `p_holm`, over those of the same table, and `verdict`."""
    adjusted = significance.holm_by_table((table(line), line.p_value) for line in lines)
    return [
        dataclasses.replace(line, p_holm=p, verdict=verdict(line.difference, line.margin, p))
        for line, p in zip(lines, adjusted)
    ]


def verdict(difference: float, margin: float, p_value: float | None) -> Verdict:
    """The verdict on 'the difference exceeds the margin', from the p-value of being equal to it.

    None, the p-value of one task and seed, is undecided.
    """
    if p_value is None or p_value >= LEVEL:
        return "undecided"
    return "holds" if difference > margin else "does not hold"
