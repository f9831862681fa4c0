"""The conflict report's content, conflict.json, and its tables on the terminal. `page` shows the same as HTML.

Each mode of experiments.conflict measures one section; sections gather in one file. A cosine never stands alone: beside
it are its interval, the cosine inside each family at the same batch size (the reference level), the batch size and the
number of batches. Where the data cannot decide, the cell says so.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxprefit import significance
from jaxprefit.conflict.blocks import ROWS_DRAWN
from jaxprefit.conflict.report.results import ConflictReport, ReportedRun
from jaxprefit.conflict.results import (
    AblationSection,
    Advice,
    BlockMeasures,
    ComparedRun,
    OnlineSection,
    ProbeSection,
)
from jaxprefit.errors import UserError
from jaxprefit.render.tables import bounds, signed
from jaxprefit.representations.results import RepresentationsReport
from jaxprefit.runtime import results

Section = (
    OnlineSection | ProbeSection | AblationSection | RepresentationsReport | tuple[ComparedRun, ...] | Advice | None
)

SECTIONS = {
    "online": "online",
    "probe": "probe",
    "ablation": "ablate",
    "representations": "represent",
    "compare": "compare",
    "advice": "advise",
}
"""Section of conflict.json -> the mode that measures it."""
EVIDENCE = ("probe", "ablation")
"""Sections that the advice is drawn from."""


def content(run: ReportedRun, sections: Mapping[str, Section], file: pathlib.Path) -> ConflictReport:
    """What conflict.json holds: the sections that `file` has already, of the same run, and these new ones.

    Advice is not kept where the evidence it was drawn from changes. `run` says whose gradients they are. Raises
    UserError where `file` is a report on another run.
    """
    old = ConflictReport(run=run, interval_level=significance.LEVEL)
    if file.exists():
        old = read(file)
        if dataclasses.replace(old.run, checkpoint="") != dataclasses.replace(run, checkpoint=""):
            reported = old.run.checkpoint or "several runs"
            raise UserError(f"{file} is a report on {reported}, another run or step; use a new --workdir")
        if any(sections[name] != getattr(old, name) for name in EVIDENCE if name in sections):
            old = dataclasses.replace(old, advice=None)
    changes: dict[str, Any] = {**sections, "run": run, "interval_level": significance.LEVEL}
    return dataclasses.replace(old, **changes)


def read(file: pathlib.Path) -> ConflictReport:
    """A conflict.json of this version. Raises UserError for anything else."""
    return results.read(file, ConflictReport)


def rows(blocks: Mapping[str, BlockMeasures]) -> list[list[str]]:
    """One row of text a block."""
    out = []
    for name, b in blocks.items():
        within = " / ".join(signed(c) for c in b.cosine_within)
        out.append(
            [
                name,
                f"{signed(b.cosine)} {bounds(b.cosine_interval)}",
                within,
                verdict(b),
                corrected(b),
                "-" if b.share_negative is None else f"{100 * b.share_negative:.0f} %",
                "-" if b.norm_ratio is None else f"{b.norm_ratio:.2f}",
            ]
        )
    return out


def verdict(block: BlockMeasures) -> str:
    """A block's verdict as text, with what it speaks of where that is not the population."""
    limited = block.verdict != "undecided" and block.scope == ROWS_DRAWN
    return f"{block.verdict} ({ROWS_DRAWN})" if limited else block.verdict


def corrected(block: BlockMeasures, digits: int = 2) -> str:
    """A block's noise-corrected cosine with its interval as text, or 'refused' where a gradient's norm is not resolved,
    so that there is none."""
    if block.corrected_cosine is None or None in block.corrected_interval:
        return "refused"
    near = ", near refusal" if block.near_refusal else ""  # not in older reports
    return estimate(block.corrected_cosine, block.corrected_interval, True, digits) + near


def estimate(value: float | None, interval: Sequence[float | None], decided: bool, digits: int = 3) -> str:
    """'+0.10 [-0.20, +0.40], undecided'. The number stands beside its interval whether or not its sign is decided:
    those of decided ones alone would be too large on average."""
    return f"{signed(value, digits)} {bounds(interval, digits)}".rstrip() + ("" if decided else ", undecided")


def header(a: str, b: str) -> list[str]:
    """Column names for `rows` of families a and b."""
    return [
        "block",
        "cosine [95 %]",
        f"within {a} / {b}",
        "verdict",
        "noise-corrected [95 %]",
        "negative",
        f"norm {a}/{b}",
    ]


def print_tables(result: ConflictReport, groupings: tuple[str, ...] = ("layer", "kind")) -> None:
    """The probe's section on the terminal."""
    assert result.probe is not None
    for pair in result.probe.pairs:
        a, b = pair.families
        for grouping in groupings:
            table = Table(title=f"gradient conflict {a} vs {b}, by {grouping}")
            for i, name in enumerate(header(a, b)):
                table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
            for row in rows({**getattr(pair.blocks, grouping), **pair.blocks.whole}):
                table.add_row(*row)
            Console(width=140).print(table)
    print(explain(result))


def explain(result: ConflictReport) -> str:
    """How to read the probe's table, with the numbers that a cosine must not be without."""
    probe, run = result.probe, result.run
    assert probe is not None
    sizes = ", ".join(f"{n:,} tokens of {f}" for f, n in probe.batch_tokens.items())
    at = f"(step {run.step}, {run.strategy})"
    repeated = (
        f" Rows of {' and '.join(probe.repeated)} were drawn more than once, which inflates 'within' and pulls the"
        " noise-corrected cosine toward 0: intervals and verdicts are of the gradient on the rows drawn, and void for"
        " other rows like these."
        if probe.repeated
        else ""
    )
    return (
        f"{probe.rounds} rounds at fixed parameters {at}, batches of {sizes}. 'within' is the cosine of two"
        " disjoint batches of one family: with that much noise, no raw cosine between families can be large."
        " 'verdict' is the sign of the expected gradients' inner product where a two-sided test at 5 %, adjusted for"
        " the number of blocks (Holm), tells it; 'noise-corrected' is their cosine, 'refused' where the batches do not"
        " tell how long they are, 'near refusal' where they hardly do: then its size is a lower bound. Where the test"
        " has little power, the cosines beside its verdicts are larger than the truth on average: read the intervals."
        " 'negative' is the share of batches with a cosine below zero. A negative cosine is consistent with harm; it"
        " does not show it." + repeated
    )
