"""What the analysis of conflict measures, as records: blocks, pairs of families, and the sections made of them.

A report on disk gathers these sections (`report.results.ConflictReport`). None stands for what is undefined or refused.
"""

from typing import Literal

from jaxprefit.runtime.results import record

Interval = tuple[float | None, float | None]
"""(low, high) at 95 %; (None, None) where there is no interval."""
Verdict = Literal["conflict", "agreement", "undecided"]
Effect = Literal["lower", "higher", "undecided"]
Evidence = Literal["costs", "helps", "undecided"]
Pair = tuple[str, str]
"""Names of two families."""


@record
class IntervalEstimate:
    """An estimate with its interval."""

    value: float | None
    """The estimate; null where the data cannot say."""
    interval: Interval
    """Interval of the estimate at 95 %."""


Matrix = tuple[tuple[IntervalEstimate | None, ...], ...]
"""[i][j]: an estimate of what a step on family i does to family j; None on a diagonal that is 1 by definition."""


@record
class BlockMeasures:
    """One block of the shared parameters and one pair of families: all measures of their gradients.

    Raw measures are of single batches, mean over the rounds, with the noise of a batch in them. Lists of two are of
    the first and the second family of the pair.
    """

    batches: int
    """Number of batches that each family gave."""
    cosine: float | None
    """Mean raw cosine of the two families' batch gradients."""
    cosine_interval: Interval
    """Percentile bootstrap interval of `cosine` over the rounds."""
    cosine_within: tuple[float | None, float | None]
    """Mean cosine of two disjoint batches of one family: the reference level of `cosine`."""
    corrected_cosine: float | None
    """Cosine of the expected gradients, corrected for noise; null where a gradient's norm is not resolved."""
    corrected_interval: Interval
    """Fieller's interval of `corrected_cosine`."""
    near_refusal: bool = False
    """Whether `corrected_cosine` would be refused if a norm came out one standard error shorter."""
    p_conflict: float | None
    """One-sided p-value of the expected inner product being zero or above; small in conflict."""
    p_holm: tuple[float | None, float | None] = (None, None)
    """Two-sided p-values of conflict and of agreement, adjusted (Holm) over the blocks of the grouping."""
    verdict: Verdict = "undecided"
    """Sign of the expected inner product, where the adjusted test tells it at 5 %."""
    share_negative: float | None
    """Share of batch pairs with a raw cosine below zero."""
    undefined: int
    """Number of batch pairs without a cosine, since a gradient was zero or not finite."""
    norm_ratio: float | None
    """Root mean square gradient norm of the first family over that of the second."""
    magnitude_similarity: float | None
    """Mean of 2 |a| |b| / (|a|^2 + |b|^2) over batches: 1 where the gradients are of one size."""
    curvature_bound: float | None
    """Mean multi-task curvature bounding measure over batches (Yu et al., 2020)."""
    condition_number: float | None
    """Median condition number of the 2 x 2 Gram matrix of two batch gradients."""
    dominance: tuple[float | None, float | None]
    """Mean share of each family in the sum of the two gradients' norms."""
    corrected_magnitude_similarity: float | None
    """`magnitude_similarity` of the expected gradients."""
    corrected_curvature_bound: float | None
    """`curvature_bound` of the expected gradients."""
    corrected_condition_number: float | None
    """`condition_number` of the expected gradients."""
    conflicting_share: float | None
    """Share of the coordinates' products that is negative, by absolute size."""
    snr: tuple[float | None, float | None]
    """Signal-to-noise ratio of a batch gradient."""
    snr_interval: tuple[Interval, Interval]
    """Interval of each `snr`."""
    noise_scale: tuple[float | None, float | None]
    """Gradient noise scale in batches (McCandlish et al., 2018)."""
    batches_for_sign: float | None
    """Number of batches a family that would find the sign of the inner product as estimated, with power 0.8."""
    batches_for_norms: float | None
    """Number of batches a family that would resolve both norms, with power 0.8."""
    batches_for_sought: float | None = None
    """Number of batches a family that would find the sign of a cosine of 0.1, with power 0.8."""
    contribution: float | None = None
    """Expected inner product in the block over the product of the norms over all shared parameters."""
    contribution_interval: Interval = (None, None)
    """Interval of `contribution`."""
    scope: Literal["population", "rows drawn"] = "population"
    """What intervals and verdict speak of: the latter where rows were drawn more than once."""


Blocks = dict[str, BlockMeasures]
"""Block -> its measures."""


@record
class Groupings:
    """A pair's blocks under every grouping of the shared parameters."""

    whole: Blocks
    """All shared parameters as one block, `whole`."""
    layer: Blocks
    """One block a layer."""
    kind: Blocks
    """One block a kind of matrix, over all layers."""
    module: Blocks
    """One block a matrix of a layer."""


@record
class Preconditioned:
    """A pair's blocks between gradients in Adam's metric."""

    whole: Blocks
    """All shared parameters as one block, `whole`."""
    layer: Blocks
    """One block a layer."""


@record
class PairReport:
    """What the probe measured of one pair of families."""

    families: Pair
    """The two families."""
    blocks: Groupings
    """Measures of the gradients."""
    preconditioned: Preconditioned | None
    """Measures of the gradients in Adam's metric; null before Adam's first step."""


@record
class Adapters:
    """Parameters of shared adapters whose tangent direction is not defined."""

    undefined: int
    """Number of adapter factors without a defined direction."""
    total: int
    """Number of adapter factors in all."""


@record
class Affinity:
    """What steps on one family did to every family's held-out loss, tried and predicted."""

    steps: int
    """Number of steps tried for each family."""
    held_out_batches: dict[str, int]
    """Number of held-out batches of each family."""
    learning_rate: float
    """Learning rate of the steps."""
    measured: Matrix
    """[i][j]: measured relative fall of the loss of j by a step on i."""
    first_order: Matrix
    """[i][j]: fall that the gradients predict."""
    second_order: Matrix
    """[i][j]: fall that gradients and curvature predict."""


@record
class TriadReport:
    """The tragic triad of one pair of families (Yu et al., 2020); null where a condition is undecided."""

    families: Pair
    """The two families."""
    conflict: bool | None
    """Whether the gradients conflict, given how their sizes differ."""
    curvature: bool | None
    """Whether curvature along the step is above its bound."""
    step: bool | None
    """Whether the step is long enough to feel the curvature."""
    flag: bool | None
    """Whether all three conditions hold."""


@record
class CurvatureSection:
    """Curvature of the losses, per unit length, mean over batches."""

    steps: int
    """Number of batches that each family gave."""
    metric: Literal["adam"] | None = None
    """Metric of gradients and Hessians; null in older reports, which mixed the plain metric with Adam's step."""
    along_update: dict[str, IntervalEstimate]
    """Curvature of each family's loss along its own update."""
    joint: IntervalEstimate
    """Curvature of the sum of the losses along the joint update."""
    lipschitz: IntervalEstimate
    """Lower bound of the largest curvature of the sum of the losses."""
    triads: tuple[TriadReport, ...]
    """One entry a pair of families."""


@record
class CutCounts:
    """Texts, words and entities of a source, and how many of them did not fit the maximum length."""

    texts: int
    """Number of texts."""
    cut_texts: int
    """Number of texts with more tokens than fit."""
    words: int
    """Number of words."""
    cut_words: int
    """Number of words that do not begin within the maximum length."""
    entities: int
    """Number of entities."""
    cut_entities: int
    """Number of entities of which some word does not begin within the maximum length."""


@record
class ProbeSection:
    """Gradients at the parameters of one checkpoint, on batches drawn anew."""

    rounds: int
    """Number of rounds; each draws two batches a family."""
    batch_tokens: dict[str, int]
    """Number of tokens of a batch, by family."""
    examples: dict[str, int]
    """Number of examples drawn, by family."""
    rows: dict[str, int]
    """Number of training rows to draw from, by family."""
    repeated: tuple[str, ...]
    """Families of which rows were drawn more than once."""
    seed: int
    """Seed of the order of the rows."""
    pairs: tuple[PairReport, ...]
    """One entry a pair of families."""
    transfer: dict[str, Matrix]
    """`gradient`, and after Adam's first step `adam`: effect of a step on i on the loss of j, as a share of j's own."""
    adapters: Adapters | None
    """Directions of shared adapters that are not defined; null without a shared adapter."""
    affinity: Affinity | None
    """Steps tried; null where none was."""
    curvature: CurvatureSection | None
    """Curvature; null where it was not measured."""
    cuts: dict[str, dict[str, CutCounts]] | None = None
    """Texts drawn that did not fit, by family and source; null in older reports."""


@record
class Window:
    """Raw cosines in one window of training steps."""

    first_step: int
    """First step of the window."""
    last_step: int
    """Last step of the window."""
    steps: int
    """Number of logged steps in the window."""
    cosine: float | None
    """Mean raw cosine over the steps."""
    cosine_interval: Interval
    """Student's t interval of `cosine` over the steps."""
    noise: float | None
    """Standard deviation of one step's cosine."""
    p_value: float | None
    """Two-sided p-value of a mean cosine of zero."""
    p_holm: float | None = None
    """`p_value` adjusted (Holm) over all blocks and windows."""
    share_negative: float | None
    """Share of steps with a cosine below zero."""
    norm_ratio: float | None
    """Root mean square gradient norm of the first family over that of the second."""
    verdict: Verdict = "undecided"
    """Sign of the mean cosine, where the adjusted test tells it at 5 %."""


@record
class Trend:
    """One block over training."""

    windows: tuple[Window, ...]
    """Windows of training steps, in order."""
    change: float | None
    """Mean cosine of the last window minus that of the first; null with one window."""
    change_interval: Interval
    """Welch's t interval of `change`."""


@record
class PairTrend:
    """One pair of families over training."""

    families: Pair
    """The two families."""
    layer: dict[str, Trend]
    """One block a layer."""
    whole: dict[str, Trend]
    """All shared parameters as one block, `whole`."""


@record
class OnlineSection:
    """Conflict over training, from the Gram matrices that the run logged."""

    steps: int
    """Number of logged steps."""
    tokens_per_step: dict[str, float | None]
    """Mean number of tokens of a step, by family."""
    pairs: tuple[PairTrend, ...]
    """One entry a pair of families."""


@record
class LossChange:
    """What one change of a training did to a family's held-out loss."""

    difference: float
    """Mean loss with the change minus that without, nats."""
    interval: Interval
    """Interval of `difference`, over seeds and batches."""
    p_value: float | None
    """Two-sided p-value of no difference."""
    p_holm: float | None = None
    """`p_value` adjusted (Holm) over all effects of stops, or over all of controls."""
    verdict: Effect = "undecided"
    """Direction of the difference, where the adjusted test tells it at 5 %."""


@record
class AblationRow:
    """One variant of the training."""

    variant: str
    """Name of the variant."""
    says: str
    """What differs from the run, in words."""
    stopped: dict[str, tuple[str, ...]]
    """Family -> blocks on which its gradient was stopped; empty for a control."""
    loss: dict[str, float]
    """Mean held-out loss of each family, nats."""
    effect: dict[str, LossChange]
    """Change of each family's held-out loss; empty for the run as it is."""


@record
class AblationSection:
    """Short trainings that differ in one thing."""

    steps: int
    """Number of steps of a training."""
    seeds: tuple[int, ...]
    """Seeds of the trainings of each variant."""
    batches: dict[str, int]
    """Number of held-out batches, by family."""
    batch_tokens: dict[str, int]
    """Number of tokens of a batch, by family."""
    rows: tuple[AblationRow, ...]
    """One entry a variant; the first is the run as it is."""


@record
class Placement:
    """Where a family's LoRA is, and of what size: values for config.lora."""

    layers: tuple[int, ...]
    """Numbers of the layers; empty: the last ones."""
    last_layers: int
    """Number of last layers, where `layers` is empty."""
    targets: tuple[str, ...]
    """Kinds of matrix."""
    rank: int
    """Rank of the adapter."""
    alpha: float
    """Scale of the adapter times its rank."""


@record
class LayerEvidence:
    """What is known of one layer."""

    layer: int
    """Number of the layer."""
    gradients: Verdict
    """'conflict' where some pair of families is in conflict there, else 'agreement' where some pair agrees."""
    contribution: float | None
    """Sum of the contributions of the pairs in conflict to the whole cosine."""
    contribution_interval: Interval | None = None
    """Interval of `contribution`, where one pair is in conflict."""
    ablation: Evidence | None
    """What stopping a family there does to another's loss; null where no ablation was measured."""
    candidate: bool
    """Whether the layer may carry the families' LoRA."""


@record
class Advice:
    """Where the families' LoRA should go."""

    decided: bool
    """Whether some layer is a candidate; else the default stays."""
    reason: str
    """Reason in words."""
    lora: Placement
    """Placement advised."""
    parameters: int
    """Number of parameters of an adapter as advised."""
    default: Placement
    """Placement of the run."""
    default_parameters: int
    """Number of parameters of an adapter as in the run."""
    evidence: tuple[LayerEvidence, ...]
    """One entry a layer."""


@record
class ComparedRun:
    """One run among several side by side."""

    name: str
    """Name of the run's folder."""
    strategy: str
    """Strategy of the run."""
    aggregator: str
    """How the run combined gradients."""
    step: int
    """Step of the checkpoint."""
    seed: int
    """Seed of the run."""
    held_out: dict[str, float] | None
    """Final held-out loss of each family, nats; null where the run's summary is of another step or missing."""
    rounds: int
    """Number of rounds of the probe."""
    batch_tokens: dict[str, int]
    """Number of tokens of a batch, by family."""
    pairs: tuple[PairReport, ...]
    """One entry a pair of families."""
