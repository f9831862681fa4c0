"""What one task family is: its records, its batch, its head, its loss.

A third family implements this class, is named in `families.FAMILIES` and gets a data block in the config; the training
code does not change.
"""

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self

import jax
import numpy as np
import tokenizers

from jaxprefit.data.builders import Prepared
from jaxprefit.data.packing import Packing
from jaxprefit.encoder.huggingface import Pretrained

Batch = Mapping[str, np.ndarray]


class Encode(Protocol):
    """The encoder as a family's loss sees it: through the family's adapter where it has one."""

    def __call__(self, input_ids: jax.Array, segments: jax.Array, fold: int | jax.Array = 0) -> jax.Array:
        """Ids [R, L] and segments [R, L] (or a bool mask) -> hidden [R, L, D]. Calls with different `fold` draw
        different dropout."""
        ...

    @property
    def word_embedding(self) -> jax.Array:
        """The backbone's table of word vectors [V, D], for a decoder tied to it."""
        ...

    def with_params(self, params: Mapping, input_ids: jax.Array, mask: jax.Array) -> jax.Array:
        """As a call, by other parameters of the same shapes (`Family.encoders`), without adapter and dropout."""
        ...


class Objective(Protocol):
    """All that a training step asks of what it trains: a pre-finetuning family, or a downstream task."""

    def loss(self, head: Mapping, encode: Encode, batch: Mapping) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Scalar float32 loss, and scalar metrics to log."""
        ...


class Family(abc.ABC):
    """One family. Its batches are packed rows of one fixed shape (`data.packing`): 'input_ids' and 'segments' [R, L].

    The leading axis of every array of a batch is divided over devices, so it is R or a multiple of R.
    """

    name: ClassVar[str]
    kind: ClassVar[str]  # of the records it reads, a key of data.records.KINDS
    max_length: int  # tokens of a text
    windows: ClassVar[bool] = False  # whether a longer text gives a window of it, drawn anew each time; else it is cut
    constants: tuple[str, ...] = ()  # leaves of the head that are computed once and never trained
    # Subtrees of the head that are encoders, trained at the backbone's learning rate.
    encoders: tuple[str, ...] = ()
    # Whether the loss is a mean over parts of rows, so that its gradient may be accumulated (`counts`).
    accumulates: ClassVar[bool] = False
    of_batch: ClassVar[tuple[str, ...]] = ()  # arrays that are about all rows, which each micro-batch needs whole

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "type[Family]":
        """The class that `config`, the family's part of the run's config, asks for: each objective has its own."""
        return cls

    @classmethod
    @abc.abstractmethod
    def create(cls, config: Mapping[str, Any], sources: Sequence[Prepared], tokenizer: tokenizers.Tokenizer) -> Self:
        """The family over its prepared sources; `config` is its part of the run's config."""

    @abc.abstractmethod
    def init_head(self, key: jax.Array, start: Pretrained) -> dict:
        """The head's parameter tree for the encoder `start`."""

    @property
    def texts_per_example(self) -> int:
        """Most texts of one example, which stand in a batch together."""
        return 1

    def describe(self) -> dict[str, Any]:
        """What a checkpoint says of the family, as JSON; two families with equal descriptions share a head."""
        return {}

    @abc.abstractmethod
    def encode_record(self, record: Mapping[str, Any], source: str) -> dict[str, Any]:
        """One record of the source named `source`, tokenised; 'texts' holds the ids [n] of each of its texts, 'cuts'
        (`data.cuts.Cuts`) what of them is beyond `max_length`."""

    def draw(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """What is drawn anew each time an encoded record is seen, such as a mask; by default nothing."""
        return example

    @abc.abstractmethod
    def collate(self, examples: Sequence[Mapping[str, Any]], packing: Packing) -> dict[str, np.ndarray]:
        """Encoded records -> one batch, with their texts where `packing` puts them."""

    @abc.abstractmethod
    def loss(self, head: Mapping, encode: Encode, batch: Mapping) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Scalar float32 loss, and scalar metrics to log."""

    def counts(self, batch: Mapping) -> dict[str, jax.Array]:
        """How many things of the batch 'loss', and each metric by its name, is the mean over; a metric that is not
        named is a sum. Of families that accumulate."""
        raise NotImplementedError(f"the loss of {self.name} is no mean over parts of rows")


def useful_tokens(batch: Mapping) -> Any:
    """Number of real (non-padding) tokens in a batch of packed or padded rows."""
    mask = batch["segments"] if "segments" in batch else batch["mask"]
    return (mask != 0).astype(np.int32).sum()
