"""The paper's claims (arXiv 2510.07566) beside what a study finds, each marked by the statistics."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.study_grid import Entry
from jaxprefit.downstream import significance

LEVEL = 0.05
"""Of a false verdict among the lines of one start, mode and fraction."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """That the mean score of the strategy `first` exceeds that of `second` by more than `margin`, in each of the
    families; each by the variant that stands for it (`study_fronts.chosen`)."""

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


def judge(
    entries: Sequence[Entry],
    tables: Mapping[Entry, Table],
    reference: Callable[[Entry, str], Table | None],
    stands: Mapping[str, Mapping[str, str]],
) -> list[dict[str, Any]]:
    """One line per claim, start, mode, fraction and family that the study has scores for; `stands` are start ->
    strategy -> the variant chosen for it, `reference` the scores of another variant at an entry's capacity."""
    lines: list[dict[str, Any]] = []
    for claim in CLAIMS:
        for e in entries:
            at = claim.fraction is None or e.fraction == claim.fraction
            chosen = stands[e.start]
            compared = chosen.get(claim.first) == e.variant and claim.second in chosen
            if not (at and compared and e.family in claim.families):
                continue
            second = chosen[claim.second]
            mine, other = tables[e], reference(e, second)
            if other is None:  # not scored at this capacity
                continue
            differences = np.asarray([mine[name] - other[name] for name in mine if name in other])
            if not differences.size:
                continue
            found = significance.crossed_bootstrap(differences)
            p = significance.wilcoxon(differences.mean((1, 2)), np.full(len(differences), claim.margin))
            place = {"start": e.start, "mode": e.mode, "fraction": e.fraction, "family": e.family}
            lines.append({
                "claim": claim.text, "paper": claim.paper, "first": e.variant, "second": second, **place,
                "margin": claim.margin, "tasks": len(differences),
                "difference": found.difference, "interval": [found.low, found.high], "p_value": p,
            })  # fmt: skip
    tables_of = [(x["start"], x["mode"], x["fraction"]) for x in lines]
    for table in set(tables_of):
        group = {str(i): lines[i] for i, of in enumerate(tables_of) if of == table}
        adjusted = significance.holm({i: x["p_value"] for i, x in group.items()})
        for i, line in group.items():
            line["p_holm"] = adjusted[i]
            line["verdict"] = verdict(line["interval"], line["margin"], line["p_holm"])
    return lines


def verdict(interval: Sequence[float], margin: float, p_value: float) -> str:
    """Of 'the difference exceeds the margin': decided where the interval and the test over tasks agree on one side."""
    low, high = interval
    if p_value >= LEVEL or low <= margin <= high:
        return "undecided"
    return "holds" if low > margin else "does not hold"
