"""What one task family is: its records, its batch, its head, its loss.

A third family implements this class, is named in `families.FAMILIES` and gets a data block in the config; the training
code does not change.
"""

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import jax
import numpy as np
import tokenizers

from jaxprefit.data.builders import Prepared
from jaxprefit.pretrained import Pretrained

Encode = Callable[[jax.Array, jax.Array], jax.Array]
"""(input_ids [B, L], mask [B, L]) -> hidden [B, L, D], through the family's adapter where it has one."""
Batch = Mapping[str, np.ndarray]


class Family(abc.ABC):
    """One family. Arrays of a batch have the batch as leading axis; token masks are named 'mask' or '..._mask'."""

    name: ClassVar[str]
    kind: ClassVar[str]  # of the records it reads, a key of data.records.KINDS
    constants: ClassVar[tuple[str, ...]] = ()  # leaves of the head that are computed once and never trained

    @classmethod
    @abc.abstractmethod
    def create(cls, config: Mapping[str, Any], sources: Sequence[Prepared], tokenizer: tokenizers.Tokenizer) -> Self:
        """The family over its prepared sources; `config` is its part of the run's config."""

    @abc.abstractmethod
    def init_head(self, key: jax.Array, start: Pretrained) -> dict:
        """The head's parameter tree for the encoder `start`."""

    def describe(self) -> dict[str, Any]:
        """What a checkpoint says of the family, as JSON; two families with equal descriptions share a head."""
        return {}

    @abc.abstractmethod
    def encode_record(self, record: Mapping[str, Any], source: str) -> dict[str, Any]:
        """One record of the source named `source`, tokenised; ragged."""

    @abc.abstractmethod
    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """Encoded records -> one batch of fixed shapes."""

    @abc.abstractmethod
    def loss(self, head: Mapping, encode: Encode, batch: Mapping) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Scalar float32 loss, and scalar metrics to log."""


def useful_tokens(batch: Mapping) -> Any:
    """Number of real (non-padding) tokens in a batch."""
    return sum(batch[k].astype(np.int32).sum() for k in batch if k == "mask" or k.endswith("_mask"))
