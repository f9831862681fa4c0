"""The file conflict.json: the sections of a report on one run, or on several side by side."""

from typing import Annotated, ClassVar

from jaxprefit.conflict.results import (
    AblationSection,
    Advice,
    ComparedRun,
    OnlineSection,
    ProbeSection,
)
from jaxprefit.representations.results import RepresentationsReport
from jaxprefit.runtime.results import ResultFileInside, record


@record
class ReportedRun:
    """The run that a report is about. All but `checkpoint` are null in a report on several runs."""

    checkpoint: str
    """Path of the run or checkpoint; several are separated by commas."""
    strategy: str | None
    """Strategy of the run."""
    aggregator: str | None
    """How the run combined gradients."""
    step: int | None
    """Step of the checkpoint."""
    seed: int | None
    """Seed of the run."""
    families: tuple[str, ...] | None
    """Families of the run."""
    fingerprint: str | None
    """Hash of the run's settings, data, encoder and step."""


@record
class ConflictReport:
    """Where the families' gradients conflict, whether it costs anything, and where LoRA should go.

    A section that was not measured is null.
    """

    SCHEMA: ClassVar[str] = "jaxprefit.conflict"
    VERSION: ClassVar[int] = 4
    run: ReportedRun
    """The run, or runs, that the report is about."""
    interval_level: float
    """Level of all intervals."""
    online: OnlineSection | None = None
    """Conflict over training (mode online)."""
    probe: ProbeSection | None = None
    """Gradients at the checkpoint's parameters (mode probe)."""
    ablation: AblationSection | None = None
    """Short trainings with one family stopped on one block (mode ablate)."""
    representations: Annotated[RepresentationsReport, ResultFileInside(RepresentationsReport)] | None = None
    """Hidden states against the start encoder's (mode represent)."""
    compare: tuple[ComparedRun, ...] | None = None
    """Several runs side by side (mode compare)."""
    advice: Advice | None = None
    """Where LoRA should go (mode advise)."""
