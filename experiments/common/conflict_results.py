"""The files of the conflict programs besides the report: a cell of an ablation, and the trial of an advice."""

from typing import Any, ClassVar, Literal

from jaxprefit.conflict.results import Interval
from jaxprefit.runtime.results import record


@record
class AblationCell:
    """The end of one short training of an ablation."""

    SCHEMA: ClassVar[str] = "jaxprefit.ablation_cell"
    VERSION: ClassVar[int] = 1
    variant: str
    """Name of the variant."""
    says: str
    """What differs from the run, in words."""
    seed: int
    """Seed of the training."""
    steps: int
    """Number of steps of the training."""
    losses: dict[str, tuple[float, ...]]
    """Loss of each family on each held-out batch, nats."""


@record
class OverSeeds:
    """One number of every pre-finetuning seed."""

    mean: float
    """Mean over the seeds."""
    deviation: float | None
    """Standard deviation over the seeds; null for one seed."""
    seeds: tuple[float, ...]
    """The number of each seed."""


@record
class Change:
    """Advised minus default placement."""

    difference: float
    """Mean difference."""
    interval: Interval
    """Interval of `difference` at 95 %."""
    p_value: float | None
    """Two-sided p-value of no difference."""


@record
class TrialPlacement:
    """One placement of the families' LoRA, the values of config.lora."""

    last_layers: int
    """Number of last layers, where `layers` is empty."""
    layers: tuple[int, ...]
    """Numbers of the layers; empty: the last ones."""
    targets: tuple[str, ...]
    """Kinds of matrix."""
    rank: int
    """Rank of the adapter."""
    alpha: float
    """Scale of the adapter times its rank."""
    dropout: float
    """Dropout of the adapter's input."""
    parameters: int
    """Number of parameters of an adapter."""


@record
class Placements:
    """The two placements of a trial."""

    default: TrialPlacement
    """The placement of the config."""
    advised: TrialPlacement
    """The placement that the report advises."""


@record
class TrialLosses:
    """Held-out losses of one family."""

    batches: int
    """Number of held-out batches."""
    default: OverSeeds
    """Loss by the placement of the config, nats."""
    advised: OverSeeds
    """Loss by the advised placement, nats."""
    effect: Change
    """Change of the loss, over seeds and batches, nats."""


@record
class TrialTask:
    """Scores of one downstream task."""

    task: str
    """Name of the task."""
    family: Literal["ner", "tc"]
    """Family of the task."""
    score: Literal["f1", "accuracy"]
    """Main score of the family."""
    default: OverSeeds
    """Score by the placement of the config, mean over fine-tuning seeds."""
    advised: OverSeeds
    """Score by the advised placement, mean over fine-tuning seeds."""


@record
class TrialDownstream:
    """Downstream scores of a trial."""

    settings: dict[str, Any] | None
    """Settings of fine-tuning, as in the scores file; null without a task."""
    tasks: tuple[TrialTask, ...]
    """One entry a task."""


@record
class Trial:
    """The LoRA that a conflict report advises, tried against the default."""

    SCHEMA: ClassVar[str] = "jaxprefit.trial"
    VERSION: ClassVar[int] = 1
    start: str
    """Name of the start encoder's folder; `random` without one."""
    steps: int
    """Number of steps of pre-finetuning."""
    seeds: tuple[int, ...]
    """Seeds of pre-finetuning."""
    lora: Placements
    """The two placements."""
    held_out: dict[str, TrialLosses]
    """Held-out losses by family."""
    downstream: TrialDownstream
    """Downstream scores."""
