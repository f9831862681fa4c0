"""study.json as records. Scores are shares in [0, 1], and differences of scores are in [-1, 1]."""

import dataclasses
from typing import ClassVar, Literal, Protocol

from experiments.common.results import Family, LoraSettings, Settings
from jaxprefit.runtime.results import record

Verdict = Literal["holds", "does not hold", "undecided"]

Interval = tuple[float | None, float | None]
"""Lower and upper end of a 95 % interval; both None of one task and one pre-finetuning seed."""


class Place(Protocol):
    """Where in the grid a result stands: the part that results, claims, fronts and sweeps share."""

    @property
    def start(self) -> str: ...
    @property
    def mode(self) -> str: ...
    @property
    def fraction(self) -> float: ...


class WithInterval(Protocol):
    """A difference of mean scores with its interval."""

    @property
    def difference(self) -> float: ...
    @property
    def interval(self) -> Interval: ...


@record
class Mode:
    """How the cells of a mode are taken, but for the fraction of the labels."""

    mode: str
    """What an app trains: adapter, probe, full, or mteb."""
    seeds: tuple[int, ...]
    """Seeds of fine-tuning."""
    steps: int
    """Number of fine-tuning steps."""
    batch_size: int
    """Number of texts a step."""
    max_length: int
    """Tokens after which a text is cut."""
    lora_lr: float
    """Learning rate of the adapter."""
    head_lr: float
    """Learning rate of the linear head."""
    backbone_lr: float
    """Learning rate of the backbone, in mode full."""
    limit: int
    """Largest number of test rows that are scored; 0: all."""
    shots: int
    """Number of training rows a class; 0: the fraction decides."""
    split: Literal["test", "dev"]
    """Rows that are scored: test or development rows."""
    dtype: str
    """Type of the encoder's arithmetic."""
    hidden_dropout: float
    """Probability of dropout in the encoder's hidden states."""


@record
class CellCounts:
    """Numbers of cells: a task with a fine-tuning seed."""

    all: int
    """Number of cells of the grid."""
    done: int
    """Number of cells with a score."""
    failed: int
    """Number of cells that failed, or whose encoder failed."""
    missing: int
    """Number of cells that are still to do."""


@record
class Failure:
    """One cell, or all of a folder, that failed."""

    folder: str
    """Folder of the encoder or of its scores, below the study's."""
    task: str | None
    """Name of the task; None where everything in the folder failed."""
    seed: int | None
    """Seed of fine-tuning; None where everything in the folder failed."""
    reason: str
    """Why it failed, in one line."""


@record
class Difference:
    """The mean difference of two variants over tasks, first minus second."""

    tasks: int
    """Number of tasks that both variants have."""
    difference: float
    """Mean over tasks and seeds."""
    interval: Interval
    """95 % by Student's t over tasks and pre-finetuning seeds, fine-tuning seeds averaged before."""
    p_value: float | None
    """Two-sided p-value that the difference equals its margin (0 unless a claim names one); None without interval."""


@record
class Versus(Difference):
    """A variant against a reference at equal capacity, first minus second."""

    p_holm: float | None
    """`p_value` adjusted over the variants that are compared with this reference at this place and family (Holm)."""


@record
class TaskTest:
    """Two variants on one task, tested over its test rows and seeds."""

    difference: float
    """Main score of the first minus that of the second, mean over seeds."""
    interval: tuple[float, float]
    """95 % by a paired bootstrap over test rows and seeds."""
    p_value: float
    """Two-sided p-value of no difference by that bootstrap."""
    p_holm: float
    """`p_value` adjusted over the tasks of the variant and reference (Holm)."""
    mcnemar: tuple[tuple[float, ...], ...] | None
    """P-values of McNemar's test on texts, by pre-finetuning and fine-tuning seed [P, S]; None for entities."""
    aso: float | None
    """Almost-stochastic order over seeds: the first is larger below 0.2; None where the seeds are too few."""


@record
class TaskResult:
    """Scores of a variant on one task."""

    task: str
    """Name of the task."""
    trained_rows: int
    """Number of rows that an app trains on."""
    mean: float
    """Mean of the main score over seeds: strict span F1 of entities, accuracy of texts."""
    scores: tuple[tuple[float, ...], ...]
    """Main scores by pre-finetuning and fine-tuning seed, [P, S]."""
    versus: dict[str, TaskTest]
    """Tests against the references that a claim of the paper compares this variant with."""


@record
class Deviation:
    """Standard deviations of the mean score over tasks."""

    prefinetuning: float | None
    """Standard deviation over pre-finetuning seeds, fine-tuning seeds averaged; None of one seed."""
    finetuning: float | None
    """Standard deviation over fine-tuning seeds, pre-finetuning seeds averaged; None of one seed."""


@record
class Result:
    """One variant at one start, mode, fraction and family."""

    start: str
    """Name of the start encoder."""
    mode: str
    """Name of the mode."""
    fraction: float
    """Share of the training labels that an app has."""
    variant: str
    """Name of the variant."""
    family: Family
    """Family of the tasks."""
    mean: float | None
    """Mean of the main score over tasks; None where a cell is missing."""
    deviation: Deviation | None
    """Spread over seeds; None where a cell is missing."""
    tasks: tuple[TaskResult, ...]
    """Tasks of which every cell is there."""
    versus: dict[str, Versus]
    """Differences to the references `none`, `individual` and `naive` at equal capacity."""


@record
class Front:
    """Which gains over `none` in both families the variants of one strategy reach at one place."""

    start: str
    """Name of the start encoder."""
    mode: str
    """Name of the mode."""
    fraction: float
    """Share of the training labels that an app has."""
    strategy: str
    """Name of the strategy."""
    gains: dict[str, tuple[float, float]]
    """Variant -> gain in NER F1 and in TC accuracy."""
    front: tuple[str, ...]
    """Variants that no other beats in one gain without losing in the second, from high NER gain to low."""
    chosen: str
    """Variant that stands for the strategy, chosen on development rows."""
    area: float
    """Area of the positive gains that some variant reaches in both (hypervolume)."""


@record
class SweepScore:
    """Mean score of a sweep's variant, and how it differs from the mean over the sweep."""

    mean: float
    """Mean of the main score over tasks."""
    difference: float
    """Mean score minus the mean over the sweep's variants, this one among them."""
    interval: Interval
    """95 % interval of the difference, without a test."""


@record
class SweepPoint:
    """One variant of a sweep."""

    variant: str
    """Name of the variant."""
    settings: Settings
    """Settings in which the variants of the sweep differ."""
    scores: dict[Family, SweepScore]
    """Family -> score."""


@record
class Sweep:
    """Variants that differ in one setting, at one place, in the order of its values."""

    sweep: str
    """Name of the sweep."""
    start: str
    """Name of the start encoder."""
    mode: str
    """Name of the mode."""
    fraction: float
    """Share of the training labels that an app has."""
    points: tuple[SweepPoint, ...]
    """Two or more variants."""


@record
class TestedClaim(Difference):
    """A claim of the paper, against its margin."""

    claim: str
    """The claim in words."""
    family: Family
    """Family of the tasks."""
    margin: float
    """Difference that the claim says is exceeded."""
    p_holm: float | None
    """`p_value` adjusted over the claims about one family that are tested together (Holm)."""
    verdict: Verdict
    """Whether the test finds the difference on one side of its margin at 0.05, adjusted."""


@record
class ClaimResult(TestedClaim):
    """A claim of the paper at one start, mode and fraction."""

    paper: str
    """What the paper says."""
    start: str
    """Name of the start encoder."""
    mode: str
    """Name of the mode."""
    fraction: float
    """Share of the training labels that an app has."""
    first: str
    """Variant that stands for the claim's first strategy."""
    second: str
    """Variant that it is compared with."""


@record
class AverageResult(TestedClaim):
    """A claim of the paper over the modes and fractions of a start, or over all starts."""

    start: str | None
    """Name of the start encoder; None: over all."""
    places: int
    """Number of starts, modes and fractions that are averaged, task by task."""


@record
class Cost:
    """What a variant takes to train and to keep on a device: first pre-finetuning seed, float32."""

    start: str
    """Name of the start encoder."""
    variant: str
    """Name of the variant."""
    backbones: int
    """Number of backbones that serve both families."""
    backbone_parameters: int
    """Number of parameters of these backbones."""
    adapter_parameters: int
    """Number of parameters of an app's adapter."""
    adapter_bytes: int
    """Bytes of an app's adapter."""
    family_adapter_parameters: int
    """Number of parameters of the families' adapters."""
    train_tokens: dict[str, int] | None
    """Family -> tokens trained on, without padding, over all encoders; None where one is not trained yet."""


@record
class HeldOut:
    """Held-out losses of a variant after pre-finetuning."""

    start: str
    """Name of the start encoder."""
    variant: str
    """Name of the variant."""
    losses: dict[Family, float]
    """Family -> mean loss over pre-finetuning seeds; empty where one is missing."""


@record
class Development:
    """Scores of a variant on development rows."""

    start: str
    """Name of the start encoder."""
    variant: str
    """Name of the variant."""
    means: dict[Family, float]
    """Family -> mean of the main score; empty where a cell is missing."""


@record
class Choice:
    """Which variant stands for each strategy, chosen without a test row."""

    mode: str
    """Mode in which development rows are scored."""
    fraction: float
    """Share of the training labels there."""
    development: tuple[Development, ...]
    """Scores that decide."""
    chosen: dict[str, dict[str, str]]
    """Start -> strategy -> variant."""


@record
class StudyResult:
    """A study: strategies and controls from several start encoders over all downstream tasks (experiments.study)."""

    SCHEMA: ClassVar[str] = "jaxprefit.study"
    VERSION: ClassVar[int] = 4
    starts: dict[str, Settings]
    """Start encoder -> settings that differ from the config."""
    variants: dict[str, Settings]
    """Variant -> settings that differ from the config."""
    methods: dict[str, str]
    """Variant -> strategy, with its aggregator where it has one, that the variant is a setting of."""
    modes: dict[str, Mode]
    """Mode -> how its cells are taken."""
    fractions: tuple[float, ...]
    """Shares of the training labels."""
    seeds: tuple[int, ...]
    """Seeds of pre-finetuning."""
    lora: LoraSettings
    """LoRA of the config."""
    cells: CellCounts
    """How far the study is."""
    failed: tuple[Failure, ...]
    """What failed."""
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)
    """Task whose score says nothing, so that it is part of no mean or test -> why."""
    results: tuple[Result, ...]
    """One entry a start, mode, fraction, variant and family."""
    held_out: tuple[HeldOut, ...]
    """One entry a start and variant."""
    choice: Choice
    """Choice of a variant for each strategy."""
    fronts: tuple[Front, ...]
    """One entry a start, mode, fraction and strategy."""
    sweeps: tuple[Sweep, ...]
    """One entry a sweep, start, mode and fraction with two or more variants."""
    claims: tuple[ClaimResult, ...]
    """One entry a claim, start, mode, fraction and family."""
    averages: tuple[AverageResult, ...]
    """One entry a claim, family and start with several places, and over all starts."""
    costs: tuple[Cost, ...]
    """One entry a start and variant."""
