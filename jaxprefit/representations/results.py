"""What is measured of hidden states, as records. Layer 0 is the embeddings; None stands for undefined."""

from typing import ClassVar, Literal

from jaxprefit.runtime.results import record

Numbers = tuple[float | None, ...]
"""One number a layer."""
Direction = Literal["higher", "lower", "undecided"]


@record
class Band:
    """One measure of one encoder, layer by layer, with its interval at 95 %."""

    value: Numbers
    """Estimate at each layer."""
    low: Numbers
    """Lower bound at each layer."""
    high: Numbers
    """Upper bound at each layer."""


@record
class DifferenceBand:
    """The second encoder's measure minus the first's, layer by layer, with its interval at 95 %."""

    value: Numbers
    """Estimate at each layer."""
    low: Numbers
    """Lower bound at each layer."""
    high: Numbers
    """Upper bound at each layer."""
    verdict: tuple[Direction, ...]
    """Direction of the difference at each layer, where the interval excludes zero."""


AnyBand = DifferenceBand | Band


@record
class EncoderInfo:
    """An encoder that was measured."""

    name: str
    """Name of the encoder; `NAME+ADAPTER` through an adapter."""
    strategy: str
    """Strategy of its run."""
    step: int | None
    """Step of its checkpoint; null for an encoder that is no run."""
    adapter: str | None
    """Adapter that it was measured through."""


@record
class SampleInfo:
    """The texts of one kind that all encoders saw."""

    origins: tuple[str, ...]
    """Names of the sources."""
    texts: int
    """Number of texts."""
    pairs: int
    """Number of pairs of texts that say the same."""
    tokens: int
    """Number of tokens, special ones left out."""
    scored_tokens: int
    """Number of tokens that CKA and effective rank are measured on."""


@record
class ProbedTask:
    """A downstream task that linear probes were fitted to."""

    task: str
    """Name of the task."""
    family: Literal["ner", "tc"]
    """Family of the task."""
    score: Literal["macro_f1", "accuracy"]
    """Score of its probes."""
    classes: int
    """Number of classes; for NER of entity types."""
    folds: int
    """Number of folds with a score."""
    train_rows: int
    """Number of training rows of a fold."""
    test_rows: int
    """Number of test rows of a fold."""


@record
class EncoderMeasures:
    """All measures of one encoder."""

    texts: dict[str, dict[str, Band]]
    """Sample -> `intra_sentence`, `intra_sentence_excess`, `effective_rank`, `uniformity` and, with pairs,
    `alignment`."""
    probes: dict[str, Band]
    """Probe score of each task, and of `ner` and `tc`, the mean over the family's tasks."""


@record
class EncoderDifference:
    """All measures of one encoder against another on the same texts."""

    first: str
    """Name of the first encoder."""
    second: str
    """Name of the second encoder."""
    texts: dict[str, dict[str, AnyBand]]
    """Sample -> `cka`, the similarity of the two, which has no verdict, and the differences of all other measures."""
    probes: dict[str, DifferenceBand]
    """Difference of the probe score of each task, and of `ner` and `tc`."""


@record
class Hypothesis:
    """Whether tokens nearer to their mean go with a worse NER probe, at the last layer on NER texts."""

    tokens: Direction | None
    """Direction of intra-sentence similarity; null where it was not measured."""
    ner: Direction | None
    """Direction of the NER probes' mean; null where it was not measured."""
    verdict: Literal["consistent", "opposite", "against", "undecided"]
    """'consistent': nearer and worse; 'opposite': both the other way round; 'against': otherwise."""


@record
class RepresentationsReport:
    """Hidden states of several encoders on the same texts, layer by layer."""

    SCHEMA: ClassVar[str] = "jaxprefit.representations"
    VERSION: ClassVar[int] = 1
    models: tuple[EncoderInfo, ...]
    """The encoders, the reference first."""
    reference: str
    """Name of the encoder that the others are compared with."""
    layers: int
    """Number of layers, the embeddings not counted."""
    seed: int
    """Seed of the texts, the mixed sentences and the bootstrap."""
    interval_level: float
    """Level of all intervals."""
    samples: dict[str, SampleInfo]
    """The texts of each kind, `ner` and `tc`."""
    tasks: tuple[ProbedTask, ...]
    """The tasks probed."""
    measures: dict[str, EncoderMeasures]
    """Measures of each encoder by name."""
    differences: tuple[EncoderDifference, ...]
    """One entry a pair of encoders."""
    hypothesis: dict[str, Hypothesis]
    """One entry an encoder that is compared with the reference."""
